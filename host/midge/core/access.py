"""What the core asks before it lets a client in, publish or subscribe; `midge.access` answers.
Knows no password file and no rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from midge.protocol.packets import Connect
from midge.protocol.reasons import ReasonCode


class Access(Protocol):
    """`may_publish` and `may_subscribe` answer at once, from memory: they are on the path of every message."""

    def connect(self, connect: Connect, address: str, answer: Callable[[ReasonCode], None]) -> None:
        """Call *answer* once, in the event loop's thread: at once, or later where passwords must be hashed.

        With SUCCESS, or the reason for CONNACK.
        """
        ...

    def may_publish(self, client_id: str, username: str | None, topic: str) -> bool: ...

    def may_subscribe(self, client_id: str, username: str | None, topic_filter: str) -> bool: ...
