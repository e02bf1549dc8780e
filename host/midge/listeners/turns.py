"""The event loop's turns: what one wakes us up for is handled, then each connection with output is written once.
Knows neither packets nor sockets; what a turn leaves for the store is the caller's.
"""

from __future__ import annotations

import time
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable

from midge.core.broker import Broker
from midge.core.connection import Connection


class Turns:
    """`start`, then `begin` by whoever brings something for the core: the turn ends by itself."""

    def __init__(
        self, broker: Broker, wait_for_commit: Callable[[Connection], None], ended: Callable[[], None] | None
    ) -> None:
        """*wait_for_commit* is told of each connection whose output may not leave yet; *ended* of each turn."""
        self._broker = broker
        self._timers = broker.timers
        self._wait_for_commit = wait_for_commit
        self._ended = ended
        self._is_begun = False
        self._now = 0.0  # of the turn that is begun
        self._timer: TimerHandle | None = None

    def start(self, loop: AbstractEventLoop) -> None:
        self._call_soon = loop.call_soon
        self._call_at = loop.call_at
        self._time = loop.time
        # Seconds since the epoch that never jump back: wall clock at the start, monotonic from there.
        self._epoch = time.time() - loop.time()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def now(self) -> float:
        """s since the epoch."""
        return self._time() + self._epoch

    def begin(self) -> float:
        """Something happened: the turn ends once all that is ready now is handled. Its time, s since the epoch."""
        if not self._is_begun:
            self._is_begun = True
            self._now = self._time() + self._epoch
            self._call_soon(self.end)
        return self._now

    def open(self) -> None:
        """As `begin`, by who knows when it has brought all that is ready, and then calls `end` itself."""
        if not self._is_begun:
            self._is_begun = True
            self._now = self._time() + self._epoch

    def end(self) -> None:
        self._is_begun = False
        for connection in self._broker.end_turn():
            connection.owner.flush()
            if connection.held or connection.out:
                self._wait_for_commit(connection)
        if self._ended is not None:
            self._ended()
        if self._timers.is_first_new:
            self._set_timer()

    def _set_timer(self) -> None:
        due = self._broker.next_deadline()
        if due is None:
            return
        at = due - self._epoch
        if self._timer is not None:
            if self._timer.when() <= at:
                return  # too early is no harm: what was due then has been cancelled, and the next one is looked up
            self._timer.cancel()
        self._timer = self._call_at(at, self._run_timers)

    def _run_timers(self) -> None:
        self._timer = None
        self._timers.is_first_new = True  # whatever runs: one timer stands for all deadlines
        self._broker.run_timers(self.now())
        self.end()
