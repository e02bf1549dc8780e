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
# s until a write that failed is tried again.
_RETRY_S = 0.5


class Writer:
    """Takes what the core has to write, and tells it what is committed. The event loop's thread calls it."""

    def __init__(
        self, loop: AbstractEventLoop, broker: Broker, store: Store, durability: str, released: Callable[[], None]
    ) -> None:
        """*released* is called when output that rested on a commit may leave, or the store's state has changed."""
        self._loop = loop
        self._broker = broker
        self._store = store
        self._interval_s = _INTERVAL_S if durability == "interval" else 0.0
        self._waits = durability == "commit"
        self._released = released
        self._batches: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._is_writing = False  # set by `write_soon`, cleared by `_done`
        self._timer: TimerHandle | None = None  # for what nobody waits for
        self.problem = ""  # why it can't be written at the moment; set and cleared by the writer's thread
        self._gives_up = False  # set by `finish`
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()
        if not self._waits:
            broker.committed(1 << 62)  # nothing is ever held back

    def write_soon(self) -> None:
        """The turn has ended: write what it changed, unless a batch is being written or nobody is in a hurry."""
        if self._is_writing:
            return
        if self._is_urgent():
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._take()
        elif self._timer is None and self._broker.changes:
            self._timer = self._loop.call_later(self._interval_s or _IDLE_S, self._time_is_up)

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
            self._is_writing = True
            self._batches.put(batch)

    def _done(self, number: int, settled: int) -> None:
        """In the loop: batch *number* is committed, and all up to *settled* can be read back."""
        self._is_writing = self._gives_up
        if self._broker.changes is not None:
            self._broker.changes.portion = self._store.portion
        if self._waits:
            self._broker.committed(number)
        self._broker.settled(settled)
        self._released()
        self.write_soon()

    # -- the writer's thread --

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            settled = self._write(batch)
            if settled is None:
                return
            self._loop.call_soon_threadsafe(self._done, batch.number, settled)

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
        if self._timer is not None:
            self._timer.cancel()
        self._is_writing = self._gives_up = True
        if (batch := self._broker.take_batch()) is not None:
            self._batches.put(batch)
        self._batches.put(None)

    def join(self) -> None:
        """Until it is written, or can't be: then it was not acknowledged. Blocks."""
        self._thread.join()
