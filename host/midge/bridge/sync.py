"""What the remote broker tells of its retained messages when we subscribe again: most of it is known.
Knows topics and payloads, no packet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from midge.bridge.bridge import Bridge

# After PINGRESP, which our own brokers send when all is told: s until a broker that answered too early has told
# the next one, and s that it can take at most. From then on what comes is new.
_NEXT_S = 0.5
_MAX_S = 10.0


class RetainedSync:
    """From SUBACK until all is told."""

    def __init__(self, bridge: Bridge, ours: set[str]) -> None:
        """*ours*: topic names here whose state has changed here and is on its way to the remote broker."""
        self._bridge = bridge
        self._ours = ours
        self._next_until: float | None = None  # s since the epoch; None: PINGRESP has not come yet
        self._until = 0.0
        self._is_over = False

    def ends_soon(self, now: float) -> None:
        """PINGRESP has come."""
        if self._next_until is None:
            self._next_until = now + _NEXT_S
            self._until = now + _MAX_S

    def is_known(self, topic: str, payload: bytes) -> bool:
        """Whether the retained message that has come, *topic* being its name here, is none for us: we have it, or
        what we have is newer and on its way."""
        if self._is_over:
            return False
        if self._next_until is not None:
            now = self._bridge.now()
            if now > self._next_until or now > self._until:
                self._is_over = True
                self._ours = set()
                return False
            self._next_until = now + _NEXT_S
        if topic in self._ours:
            return True
        kept = self._bridge.broker.retained.find(topic)
        return kept is not None and kept.payload == payload
