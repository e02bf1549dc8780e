"""Deadlines of the core: keep alive, delayed wills, session expiry.
Knows no clock: the caller passes the time and asks when to come back.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Timer:
    """One deadline. `cancel()` is cheap: the entry stays in the heap and is skipped when it is due."""

    __slots__ = ("action", "when")

    def __init__(self, when: float, action: Callable[[float], None]) -> None:
        self.when = when
        self.action: Callable[[float], None] | None = action  # None once cancelled or run

    def cancel(self) -> None:
        self.action = None

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when


class Timers:
    """A heap of deadlines, in s since the epoch."""

    def __init__(self) -> None:
        self._heap: list[Timer] = []

    def at(self, when: float, action: Callable[[float], None]) -> Timer:
        """Call *action(now)* once *when* (s since the epoch) has come."""
        timer = Timer(when, action)
        heapq.heappush(self._heap, timer)
        return timer

    def next_deadline(self) -> float | None:
        """When `run` should be called next (s since the epoch); None: nothing waits."""
        heap = self._heap
        while heap and heap[0].action is None:
            heapq.heappop(heap)
        return heap[0].when if heap else None

    def run(self, now: float) -> None:
        """Run everything that is due at *now*; what a run schedules for *now* or earlier runs too."""
        heap = self._heap
        while heap and heap[0].when <= now:
            timer = heapq.heappop(heap)
            action, timer.action = timer.action, None
            if action is not None:
                action(now)
