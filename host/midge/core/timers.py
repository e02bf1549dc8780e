"""Deadlines of the core: keep alive, delayed wills, session expiry.
Knows no clock: the caller passes the time and asks when to come back.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final

_push: Final = heapq.heappush
_pop: Final = heapq.heappop

# Cancelled entries that are not worth clearing away: what is left is sorted anew then, and a fleet that connects and
# goes leaves one per connection.
_CANCELLED_MIN: Final = 1000


class Timer:
    """One deadline. `cancel()` is cheap: the entry stays in the heap until it is due, or in the way."""

    __slots__ = ("_timers", "action", "when")

    def __init__(self, timers: Timers, when: float, action: Callable[[float], None]) -> None:
        self._timers = timers
        self.when = when
        self.action: Callable[[float], None] | None = action  # None once cancelled or run

    def cancel(self) -> None:
        if self.action is not None:
            self.action = None
            self._timers.cancelled()

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when


class Timers:
    """A heap of deadlines, in s since the epoch."""

    def __init__(self) -> None:
        self._heap: list[Timer] = []
        self._cancelled = 0  # entries of the heap that are cancelled
        # A deadline came before all others: set here, cleared by `next_deadline`, so that who waits for the
        # next one needn't ask each time.
        self.is_first_new = False

    def at(self, when: float, action: Callable[[float], None]) -> Timer:
        """Call *action(now)* once *when* (s since the epoch) has come."""
        timer = Timer(self, when, action)
        _push(self._heap, timer)
        if self._heap[0] is timer:
            self.is_first_new = True
        return timer

    def cancelled(self) -> None:
        """An entry was cancelled. Clients that come and go leave one each, due up to 27 hours later (the
        longest keep alive): once they are more than half of the heap they are cleared away."""
        self._cancelled += 1
        if self._cancelled > max(_CANCELLED_MIN, len(self._heap) // 2):
            # In place: `run` may be going through it.
            self._heap[:] = [timer for timer in self._heap if timer.action is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def next_deadline(self) -> float | None:
        """When `run` should be called next (s since the epoch); None: nothing waits."""
        self.is_first_new = False
        heap = self._heap
        while heap and heap[0].action is None:
            _pop(heap)
            self._cancelled -= 1
        return heap[0].when if heap else None

    def run(self, now: float) -> None:
        """Run everything that is due at *now*; what a run schedules for *now* or earlier runs too."""
        heap = self._heap
        while heap and heap[0].when <= now:
            timer = _pop(heap)
            action, timer.action = timer.action, None
            if action is None:
                self._cancelled -= 1
            else:
                action(now)
