"""What must last and isn't written yet: the core writes into it, a store takes it at the end of a turn.
Knows no database; the last state of a key wins, and what came and went within one batch costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from midge.core.message import Message
from midge.protocol.packets import Properties

if TYPE_CHECKING:
    from midge.core.routing import Subscription
    from midge.core.session import Delivery, Session


class SessionRow(NamedTuple):
    """`ended_at`: when its connection ended, s since the epoch; None while it is connected."""

    key: int
    client_id: str
    expiry_s: int
    ended_at: float | None


class SubscriptionRow(NamedTuple):
    session_key: int
    topic_filter: str
    qos: int
    no_local: bool
    retain_as_published: bool
    identifier: int


class MessageRow(NamedTuple):
    key: int
    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: Properties | None
    expires_at: float | None


class QueueRow(NamedTuple):
    """A message that a session is owed; `packet_id` 0: not sent yet; `is_released`: PUBREC has come."""

    session_key: int
    position: int
    message_key: int
    qos: int
    retain: bool
    identifiers: tuple[int, ...]
    packet_id: int
    is_released: bool


@dataclass(slots=True)
class Batch:
    """Changes that are written together or not at all. None as a value: the row is deleted."""

    number: int
    sessions: dict[int, SessionRow | None] = field(default_factory=dict)
    subscriptions: dict[tuple[int, str], SubscriptionRow | None] = field(default_factory=dict)
    messages: dict[int, MessageRow | None] = field(default_factory=dict)
    queue: dict[tuple[int, int], QueueRow | None] = field(default_factory=dict)
    received: dict[tuple[int, int], tuple[int, int] | None] = field(default_factory=dict)
    retained: dict[str, tuple[str, int] | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(
            self.queue
            or self.messages
            or self.received
            or self.retained
            or self.sessions
            or self.subscriptions
        )


@dataclass(slots=True)
class Snapshot:
    """All that a store holds, as it is read at the start. The queue is in order of position."""

    sessions: list[SessionRow] = field(default_factory=list)
    subscriptions: list[SubscriptionRow] = field(default_factory=list)
    messages: list[MessageRow] = field(default_factory=list)
    queue: list[QueueRow] = field(default_factory=list)
    received: list[tuple[int, int]] = field(default_factory=list)  # (session key, packet identifier)
    retained: list[tuple[str, int]] = field(default_factory=list)  # (topic name, message key)


class Changes:
    """The batch that is being filled. Batches are numbered 1, 2, 3, ... and written in that order."""

    def __init__(self, next_message_key: int = 1) -> None:
        self.batch = Batch(1)
        self._next_message_key = next_message_key
        self.pending_bytes = 0  # of payloads in the batch; reset by `take`
        self._is_rested_on = False  # set by `rest`, reset by `take`

    def rest(self) -> int:
        """The number of the batch that output of this turn has to wait for."""
        if self.batch:
            self._is_rested_on = True
            return self.batch.number
        return self.batch.number - 1  # nothing new is to be written: the last one that was taken

    def take(self) -> Batch | None:
        """The batch to write, and the next one begins; None if there is nothing to write or to wait for.

        It may be empty: what output rests on can go again before it is written, and the output still
        has to be released.
        """
        batch = self.batch
        if not batch and not self._is_rested_on:
            return None
        self.batch = Batch(batch.number + 1)
        self.pending_bytes = 0
        self._is_rested_on = False
        return batch

    # -- messages: stored once, deleted with the last reference --

    def _hold(self, message: Message) -> None:
        message.references += 1
        if message.key:
            return
        message.key = key = self._next_message_key
        self._next_message_key = key + 1
        self.pending_bytes += len(message.payload)
        self.batch.messages[key] = MessageRow(
            key,
            message.topic,
            message.payload,
            message.qos,
            message.retain,
            message.properties,
            message.expires_at,
        )

    def _release(self, message: Message) -> None:
        message.references -= 1
        if message.references:
            return
        messages = self.batch.messages
        if message.key in messages:
            del messages[message.key]  # it came and went within this batch
        else:
            messages[message.key] = None
        message.key = 0

    def forget_unreferenced(self, messages: Iterable[Message]) -> None:
        """At the start: delete from the store what nothing refers to any more."""
        for message in messages:
            if not message.references:
                self.batch.messages[message.key] = None

    # -- sessions --

    def session(self, session: Session) -> None:
        self.batch.sessions[session.key] = SessionRow(
            session.key, session.client_id, session.expiry_s, session.ended_at
        )

    def session_removed(self, session: Session) -> None:
        """The session with its subscriptions, queue and packet identifiers is gone."""
        key = session.key
        for subscription in session.subscriptions.values():
            self.subscription_removed(session, subscription.topic_filter)
        for delivery in (*session.in_flight.values(), *session.queue):
            self.delivery_removed(session, delivery)
        for packet_id in session.received:
            self.batch.received[key, packet_id] = None
        self.batch.sessions[key] = None

    def subscription(self, subscription: Subscription) -> None:
        key = subscription.session.key
        self.batch.subscriptions[key, subscription.topic_filter] = SubscriptionRow(
            key,
            subscription.topic_filter,
            subscription.qos,
            subscription.no_local,
            subscription.retain_as_published,
            subscription.identifier,
        )

    def subscription_removed(self, session: Session, topic_filter: str) -> None:
        self.batch.subscriptions[session.key, topic_filter] = None

    # -- deliveries --

    def delivery(self, session: Session, delivery: Delivery) -> None:
        """A new delivery, or the new state of one."""
        if not delivery.batch:
            self._hold(delivery.message)
            delivery.batch = self.batch.number
        self.batch.queue[session.key, delivery.position] = QueueRow(
            session.key,
            delivery.position,
            delivery.message.key,
            delivery.qos,
            delivery.retain,
            delivery.identifiers,
            delivery.packet_id,
            delivery.is_released,
        )

    def delivery_removed(self, session: Session, delivery: Delivery) -> None:
        key = (session.key, delivery.position)
        if delivery.batch == self.batch.number:
            del self.batch.queue[key]  # it came and went within this batch
        else:
            self.batch.queue[key] = None
        delivery.batch = 0
        self._release(delivery.message)

    def received(self, session: Session, packet_id: int) -> None:
        """The session took over a QoS 2 message with this identifier."""
        self.batch.received[session.key, packet_id] = (session.key, packet_id)

    def received_done(self, session: Session, packet_id: int) -> None:
        """Its PUBREL has come."""
        self.batch.received[session.key, packet_id] = None

    # -- retained messages --

    def retained(self, message: Message, replaced: Message | None) -> None:
        self._hold(message)
        self.batch.retained[message.topic] = (message.topic, message.key)
        if replaced is not None:
            self._release(replaced)

    def retained_removed(self, removed: Message) -> None:
        self.batch.retained[removed.topic] = None
        self._release(removed)
