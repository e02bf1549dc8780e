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
# A broker whose PINGRESP overtakes messages that wait for its window (Mosquitto: 20) has sent at least so many.
_WINDOW = 10


class RetainedSync:
    """From SUBACK until all is told."""

    def __init__(self, bridge: Bridge, ours: set[str]) -> None:
        """*ours*: topic names here whose state has changed here and is on its way to the remote broker."""
        self._bridge = bridge
        self._ours = ours
        self._acknowledged: set[str] = set()  # of these, what the remote broker has by now
        self._count = 0
        self._is_all_told = False  # what comes from now on is newer than what the remote broker has acknowledged
        self._next_until: float | None = None  # s since the epoch; None: PINGRESP has not come yet
        self._until = 0.0
        self._is_over = False

    def ends_soon(self, now: float) -> None:
        """PINGRESP has come."""
        if self._next_until is None:
            self._next_until = now + _NEXT_S
            self._until = now + _MAX_S
            self._is_all_told = self._count < _WINDOW

    def acknowledged(self, topic: str | None) -> None:
        """The remote broker has our message on *topic*, its name here."""
        if topic is not None and topic in self._ours:
            self._acknowledged.add(topic)

    def is_known(self, topic: str, payload: bytes) -> bool:
        """Whether the retained message that has come, *topic* being its name here, is none for us: we have it, or
        what we have is newer and on its way."""
        if self._is_over:
            return False
        self._count += 1
        if self._next_until is not None:
            now = self._bridge.now()
            if now > self._next_until or now > self._until:
                self._is_over = True
                return False
            self._next_until = now + _NEXT_S
        if topic in self._ours:
            self._ours.discard(topic)  # it is told once
            return not (self._is_all_told and topic in self._acknowledged)
        kept = self._bridge.broker.retained.find(topic)
        return kept is not None and kept.payload == payload
