"""How often a login from one address may fail.
Knows addresses and times, no user.
"""

from __future__ import annotations

from midge.core.addresses import network_of

# s after which an address' failures are forgotten, counted from the first of them.
WINDOW_S = 60.0

# Addresses that are remembered; past it the oldest is forgotten. About 200 bytes each.
_ADDRESSES_MAX = 10_000


class FailedLogins:
    """Failures per address. Past *limit* in a window (0: no limit), logins from there are refused
    unchecked, also right ones: whoever guesses must not learn that a guess was right. Of IPv6 the /64 counts;
    this machine's own programs count as one."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._by_address: dict[str, tuple[float, int]] = {}  # start of the window, failures

    def is_refused(self, address: str, now: float) -> bool:
        if not self.limit:
            return False
        since, count = self._by_address.get(_key(address), (now, 0))
        return count >= self.limit and now < since + WINDOW_S

    def add(self, address: str, now: float) -> None:
        key = _key(address)
        since, count = self._by_address.get(key, (now, 0))
        if now >= since + WINDOW_S:
            del self._by_address[key]
            since, count = now, 0
        if key not in self._by_address and len(self._by_address) >= _ADDRESSES_MAX:
            del self._by_address[next(iter(self._by_address))]
        self._by_address[key] = (since, count + 1)


def _key(address: str) -> str:
    return network_of(address) or (address if address.startswith("unix:") else "this machine")
