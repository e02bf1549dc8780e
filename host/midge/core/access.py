"""What the core asks before it lets a client in, publish, read or subscribe; `midge.access` answers.
Knows no password file and no rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from midge.protocol.packets import Connect
from midge.protocol.reasons import ReasonCode


class Permissions(Protocol):
    """What one client may do. Answers at once, from memory."""

    def may_publish(self, topic: str) -> bool: ...

    def may_read(self, topic: str) -> bool:
        """Asked once per topic name and subscriber, when a route is worked out, not per message."""
        ...

    def may_subscribe(self, topic_filter: str) -> bool:
        """False if no topic that matches may be read. A filter that is wider than what may be read is
        granted, and messages are sorted out by `may_read`, as Mosquitto does it."""
        ...


class Access(Protocol):
    def connect(self, connect: Connect, address: str, answer: Callable[[ReasonCode], None]) -> None:
        """Call *answer* once, in the event loop's thread: at once, or later where passwords must be hashed.

        With SUCCESS, or the reason for CONNACK.
        """
        ...

    def permissions(self, client_id: str, username: str | None) -> Permissions | None:
        """Of a client that was let in; None: it may do everything, and nothing is asked."""
        ...
