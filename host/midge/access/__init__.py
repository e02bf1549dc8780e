"""Who may connect, publish and subscribe.
Knows neither connections nor sessions, only what they ask.
"""

from __future__ import annotations

from collections.abc import Callable

from midge.protocol.packets import Connect
from midge.protocol.reasons import ReasonCode


class NobodyMay:
    """`allow_anonymous = false` while no other way in is configured: every CONNECT is refused."""

    def connect(self, connect: Connect, address: str, answer: Callable[[ReasonCode], None]) -> None:
        answer(ReasonCode.NOT_AUTHORIZED)

    def may_publish(self, client_id: str, username: str | None, topic: str) -> bool:
        return False

    def may_subscribe(self, client_id: str, username: str | None, topic_filter: str) -> bool:
        return False
