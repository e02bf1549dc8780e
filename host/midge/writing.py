"""Between the event loop and the store: one thread that writes, one batch after the other.
Knows batches and their numbers, not what is in them.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable

from midge.core.broker import Broker
from midge.core.changes import Batch
from midge.store import Store, StoreError

log = logging.getLogger("midge.store")

# s between two writes with durability "interval": what a crash may cost there.
_INTERVAL_S = 1.0
# s that changes may wait on which nobody waits, such as what subscribers have acknowledged: then most of them
# have gone by the time they would be written. A crash may have such a message delivered again at QoS 1.
_IDLE_S = 0.1
# s between two looks for what is too old to be kept for replay.
_TIDY_S = 10.0
# s until a write that failed is tried again.
_RETRY_S = 0.5
# s for which a batch of messages that are under way may wait for their receivers: what they acknowledge in that time,
# mostly 0.1 to 0.3 ms, needs no disk, which takes as long or ten times as long. Timers of event loops are no finer.
_PATIENCE_S = 0.001
# Batches that go to the disk at once after patience was in vain: 2, 4, 8, ... up to this many, so that a receiver
# that is slower than the disk costs next to nothing.
_IMPATIENT_MAX = 256


class Patience:
    """Whether to wait for receivers before asking the disk: as long as they are faster than it."""

    def __init__(self) -> None:
        self._disk_s = self._receivers_s = 0.0  # that they take; running means
        self._since: float | None = None  # a batch waits; set by `begins`, cleared by `ends`
        self._impatient = 0  # batches that are still not to wait
        self._pause = 0  # that many weren't, the last time; 0: waiting has paid

    def wrote(self, seconds: float) -> None:
        self._disk_s += (seconds - self._disk_s) / 8

    def begins(self, now: float) -> bool:
        """Whether the batch that output rests on shall wait; asked once for each."""
        if self._impatient:
            self._impatient -= 1
            return False
        self._since = now
        return True

    def ends(self, now: float, in_vain: bool) -> None:
        """The batch waits no longer; *in_vain*: some of it is still there."""
        if self._since is None:
            return
        self._receivers_s += (now - self._since - self._receivers_s) / 8
        self._since = None
        if in_vain or self._receivers_s > self._disk_s:
            self._pause = self._impatient = min(_IMPATIENT_MAX, 2 * self._pause or 2)
        else:
            self._pause = 0


class Writer:
    """Takes what the core has to write, and tells it what is committed. The event loop's thread calls it."""

    def __init__(
        self, loop: AbstractEventLoop, broker: Broker, store: Store, durability: str, released: Callable[[], None],
        now: Callable[[], float],
    ) -> None:
        """*released* is called when output that rested on a commit may leave, or the store's state has changed.
        *now* gives the broker's time, s since the epoch."""
        self._loop = loop
        self._broker = broker
        self._store = store
        self._interval_s = _INTERVAL_S if durability == "interval" else 0.0
        self._waits = durability == "commit"
        self._released = released
        self._now = now
        # None: that was all. A time (s since the epoch): forget what is too old by then.
        self._batches: queue.SimpleQueue[Batch | float | None] = queue.SimpleQueue()
        self._is_writing = False  # set by `write_soon`, cleared by `_done`
        self._timer: TimerHandle | None = None  # for what nobody waits for
        self._patience = Patience()
        self._patience_timer: TimerHandle | None = None  # while a batch waits for its receivers
        self._taken_at = 0.0  # time.monotonic() at which the batch was taken that is being written
        self.problem = ""  # why it can't be written at the moment; set and cleared by the writer's thread
        self._gives_up = False  # set by `finish`
        self._is_tidying = False  # a time is in `_batches`; cleared by `_tidied`
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()
        if not self._waits:
            broker.committed(1 << 62)  # nothing is ever held back
        self._tidy_timer = loop.call_later(_TIDY_S, self._tidy)

    def write_soon(self) -> None:
        """The turn has ended: write what it changed, unless a batch is being written or nobody is in a hurry."""
        if self._is_writing:
            return
        if self._waits and self._broker.release_what_is_gone():
            self._end_patience(in_vain=False)
            self._released()
        if self._is_urgent():
            if self._is_worth_waiting():
                return
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._take()
        elif self._timer is None and self._broker.changes:
            self._timer = self._loop.call_later(self._interval_s or _IDLE_S, self._time_is_up)

    def _is_worth_waiting(self) -> bool:
        """The receivers of what is to be written may acknowledge it first."""
        changes = self._broker.changes
        assert changes is not None
        if changes.is_large or not changes.may_be_done_soon:
            return False
        if self._patience_timer is None:
            if not self._patience.begins(time.monotonic()):
                return False
            self._patience_timer = self._loop.call_later(_PATIENCE_S, self._patience_is_over)
        return True

    def _patience_is_over(self) -> None:
        self._end_patience(in_vain=True)
        if not self._is_writing:
            self._take()

    def _end_patience(self, in_vain: bool) -> None:
        if self._patience_timer is not None:
            self._patience_timer.cancel()
            self._patience_timer = None
            self._patience.ends(time.monotonic(), in_vain)

    def _is_urgent(self) -> bool:
        changes = self._broker.changes
        assert changes is not None
        return changes.is_large or (self._waits and changes.is_rested_on)

    def _time_is_up(self) -> None:
        self._timer = None
        if not self._is_writing:
            self._take()

    def _take(self) -> None:
        batch = self._broker.take_batch()
        if batch is not None:
            self._end_patience(in_vain=True)
            self._is_writing = True
            self._taken_at = time.monotonic()
            self._batches.put(batch)

    def _done(self, number: int, settled: int) -> None:
        """In the loop: batch *number* is committed, and all up to *settled* can be read back."""
        self._is_writing = self._gives_up
        self._patience.wrote(time.monotonic() - self._taken_at)
        if self._broker.changes is not None:
            self._broker.changes.portion = self._store.portion
        if self._waits:
            self._broker.committed(number)
        self._broker.settled(settled)
        self._update_history()
        self._released()
        self.write_soon()

    def _update_history(self) -> None:
        history = self._broker.replay.history
        history.count, history.bytes = self._store.kept_size
        if self._store.is_untidy and not self._is_tidying:
            self._is_tidying = True
            self._batches.put(self._now())

    def _tidy(self) -> None:
        """Now and then, also when nothing is written."""
        self._tidy_timer = self._loop.call_later(_TIDY_S, self._tidy)
        if self._broker.replay.history.count and not self._is_tidying:
            self._is_tidying = True
            self._batches.put(self._now())

    def _tidied(self) -> None:
        """In the loop: a step is done. If there is more, what was to be written meanwhile comes first."""
        self._is_tidying = False
        self._update_history()

    # -- the writer's thread --

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            if isinstance(batch, float):
                self._forget(batch)
                continue
            settled = self._write(batch)
            if settled is None:
                return
            self._loop.call_soon_threadsafe(self._done, batch.number, settled)

    def _forget(self, now: float) -> None:
        try:
            self._store.tidy(now)
        except StoreError as error:  # it is tried again, and meanwhile more is kept than should be
            log.error("what is too old to be kept for replay can't be removed: %s", error)
        self._loop.call_soon_threadsafe(self._tidied)

    def _write(self, batch: Batch) -> int | None:
        """Until it succeeds: what is in the batch has not been acknowledged, and isn't given up."""
        while True:
            try:
                settled = self._store.write(batch)
                if self.problem:
                    self.problem = ""
                    log.warning("the store can be written again")
                    self._loop.call_soon_threadsafe(self._broker.pressure.store_recovered)
                return settled
            except Exception as error:  # a bug, too, must not end the thread: nobody would be acknowledged any more
                if not self.problem:
                    self.problem = f"the store can't be written: {error}"
                    trace = None if isinstance(error, StoreError) else error
                    log.error("%s; trying again every %s s", error, _RETRY_S, exc_info=trace)
                    self._loop.call_soon_threadsafe(self._failed)
                if self._gives_up:
                    log.error("what was not acknowledged is not written")
                    return None
                time.sleep(_RETRY_S)

    def _failed(self) -> None:
        self._broker.pressure.store_failed()
        self._released()

    def finish(self) -> None:
        """Write what is left, and no more. `join` waits for it."""
        for timer in (self._timer, self._patience_timer, self._tidy_timer):
            if timer is not None:
                timer.cancel()
        self._is_tidying = True  # no more
        self._is_writing = self._gives_up = True
        if (batch := self._broker.take_batch()) is not None:
            self._batches.put(batch)
        self._batches.put(None)

    def join(self) -> None:
        """Until it is written, or can't be: then it was not acknowledged. Blocks."""
        self._thread.join()
