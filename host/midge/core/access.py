"""What the core asks before it lets a client in, publish, read or subscribe; `midge.access` answers.
Knows no password file and no rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from midge.protocol.packets import Connect
from midge.protocol.reasons import ReasonCode


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a client was found to be. The core hands it back when it asks what the client may do."""

    username: str | None = None
    expires_at: float | None = None  # s since the epoch; then the client is disconnected
    basis: Any = None  # whatever who answers wants to remember with it


ANYBODY: Final = Identity()

# Called once, in the event loop's thread: with SUCCESS and who it is, or with the reason for CONNACK.
Answer = Callable[[ReasonCode, Identity], None]


@dataclass(frozen=True, slots=True)
class Step:
    """What follows from one message of an enhanced authentication: CONTINUE_AUTHENTICATION, SUCCESS (then
    *identity* is who it is), or the reason why not."""

    reason: ReasonCode
    data: bytes | None = None  # for the client
    identity: Identity = ANYBODY


class Authenticator(Protocol):
    """One exchange of an enhanced authentication (MQTT 5.0 §4.12). Answers at once."""

    def receive(self, data: bytes | None) -> Step:
        """*data*: the client's; None if it sent none."""
        ...


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
    def connect(self, connect: Connect, address: str, answer: Answer) -> None:
        """Call *answer* once, in the event loop's thread: at once, or later where passwords must be hashed."""
        ...

    def authenticator(self, method: str, address: str) -> Authenticator | None:
        """For one exchange by the authentication method *method*; None: it isn't offered."""
        ...

    def permissions(self, client_id: str, identity: Identity) -> Permissions | None:
        """Of a client that was let in; None: it may do everything, and nothing is asked."""
        ...
