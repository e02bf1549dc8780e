"""What the remote broker sends back of what we sent it: other people's brokers (amqtt, aedes, some clouds) don't know
bridges' marks, and 3.1.1 has no other word for "not to me". Knows topics and payloads, no packet.
"""

from __future__ import annotations

import secrets
from collections import deque

# A topic that only this connection subscribes to: whoever sends us this sends us everything.
_PROBE_PREFIX = "midge/echo/"
# s that it has to come back, after PINGRESP.
PROBE_TIMEOUT_S = 2.0
# What was sent and may come back. An echo that hasn't come after this long (s) won't.
_SENT_MAX = 20_000
_SENT_S = 600.0


class Echo:
    """Of one bridge, over all its connections: what was sent on one can come back on the next."""

    def __init__(self) -> None:
        self.comes_back: bool | None = None  # None: not known yet; until then what comes back is dropped, too
        self.dropped = 0
        self._sent: dict[tuple[str, bytes], deque[int]] = {}  # numbers of those that have yet to come back
        self._order: deque[tuple[float, int, tuple[str, bytes]]] = deque()  # when, number, what
        self._last = 0
        self._probe_topic = _PROBE_PREFIX + secrets.token_hex(8)

    def probe_topic(self, is_marked: bool) -> str:
        """$ keeps it from subscribers to "#". But amqtt, which doesn't take a connection that *is_marked* as a
        bridge's, doesn't take such topics either."""
        return f"${self._probe_topic}" if is_marked else self._probe_topic

    def sent(self, topic: str, payload: bytes, now: float) -> None:
        """We send *payload* on *topic*, which we are subscribed to there."""
        if self.comes_back is False:
            return
        key = (topic, payload)
        self._last += 1
        self._sent.setdefault(key, deque()).append(self._last)
        self._order.append((now, self._last, key))
        while len(self._order) > _SENT_MAX or self._order[0][0] < now - _SENT_S:
            _, number, old = self._order.popleft()
            numbers = self._sent.get(old)
            if numbers is not None and numbers[0] == number:
                self._take(old, numbers)

    def is_ours(self, topic: str, payload: bytes) -> bool:
        """Whether what has come is what we sent."""
        key = (topic, payload)
        numbers = self._sent.get(key)
        if numbers is None:
            return False
        self._take(key, numbers)
        self.dropped += 1
        return True

    def _take(self, key: tuple[str, bytes], numbers: deque[int]) -> None:
        numbers.popleft()
        if not numbers:
            del self._sent[key]

    def found(self, comes_back: bool) -> None:
        """What the probe has shown."""
        self.comes_back = comes_back
        if not comes_back:
            self._sent.clear()
            self._order.clear()
