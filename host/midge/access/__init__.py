"""Who may connect, publish and subscribe.
Knows neither connections nor sessions, only what they ask.
"""

from __future__ import annotations

from collections.abc import Callable

from midge.core.access import Permissions
from midge.protocol.packets import Connect
from midge.protocol.reasons import ReasonCode


class NobodyMay:
    """`allow_anonymous = false` while no other way in is configured: every CONNECT is refused."""

    def connect(self, connect: Connect, address: str, answer: Callable[[ReasonCode], None]) -> None:
        answer(ReasonCode.NOT_AUTHORIZED)

    def permissions(self, client_id: str, username: str | None) -> Permissions | None:
        return None
