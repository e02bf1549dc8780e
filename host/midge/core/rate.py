"""How fast one connection may send: packets and bytes per second.
Knows no clock and no socket.
"""

from __future__ import annotations

from midge.core.limits import Limits

# s of what a limit allows that may come at once: a board that wakes sends its readings in one burst.
_BURST_S = 1.0

# s that a client may be ahead of its limit. Up to that it is only read from later, which costs it nothing but
# time; beyond, it doesn't heed the slow reading at all, or its next packets (a PINGREQ among them) would be
# read too late to be worth anything.
DEBT_MAX_S = 10.0


class Rate:
    """What a connection has sent, as the time at which it would have been due at the allowed rate."""

    __slots__ = ("_bytes_due", "_bytes_per_s", "_packets_due", "_packets_per_s")

    def __init__(self, limits: Limits) -> None:
        self._packets_per_s = limits.max_packets_per_second
        self._bytes_per_s = limits.max_bytes_per_second
        self._packets_due = self._bytes_due = 0.0

    def take(self, packets: int, size: int, now: float) -> tuple[float, str]:
        """Count a chunk; the s (0 or more) for which nothing more may be read, and the limit's name."""
        earliest = now - _BURST_S
        wait_s, name = 0.0, ""
        if self._packets_per_s:
            self._packets_due = max(self._packets_due, earliest) + packets / self._packets_per_s
            wait_s, name = self._packets_due - now, "max_packets_per_second"
        if self._bytes_per_s:
            self._bytes_due = max(self._bytes_due, earliest) + size / self._bytes_per_s
            if not name or self._bytes_due - now > wait_s:
                wait_s, name = self._bytes_due - now, "max_bytes_per_second"
        return max(0.0, wait_s), name


def rate_of(limits: Limits) -> Rate | None:
    """None: as fast as it can."""
    return Rate(limits) if limits.max_packets_per_second or limits.max_bytes_per_second else None
