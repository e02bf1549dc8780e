"""What must last and isn't written yet: the core notes it here, a store takes it batch by batch.
Knows no database; the last state of a thing wins, and what came and went within one batch costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from midge.core.message import Message, MessageRow

if TYPE_CHECKING:
    from midge.core.routing import Subscription
    from midge.core.session import Delivery, Session

# A message that a session is owed: the message, QoS, retain, subscription identifiers, topic filter of the
# shared subscription that it comes by ("": its own), packet identifier (0: not sent yet), PUBREC has come.
# A message on a durable queue is such a row too, of the session that stands for the queue: instead of the packet
# identifier it has how often it was lent to a consumer, instead of identifiers when it came (see `durable_queue`).
QueueRow = tuple[MessageRow, int, bool, tuple[int, ...], str, int, bool]


# A message that is kept for replay: its number, when it came (s since the epoch), the message.
KeptRow = tuple[int, float, MessageRow]


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


class WillRow(NamedTuple):
    """A will that has not been published. `due`: when it is to be, s since the epoch; None: its client is
    connected. The session may be one that doesn't last: its will does (MQTT 5.0 §3.1.2.5)."""

    session_key: int
    client_id: str
    message: MessageRow
    delay_s: int
    due: float | None


@dataclass(slots=True)
class Batch:
    """Changes that are written together or not at all. None as a value: it is gone."""

    number: int
    sessions: dict[int, SessionRow] = field(default_factory=dict)
    subscriptions: dict[tuple[int, str], SubscriptionRow | None] = field(default_factory=dict)
    # By session key and position: what is new; new states of what was there (packet identifier, PUBREC has
    # come); what is gone.
    queue: dict[int, dict[int, QueueRow]] = field(default_factory=dict)
    states: dict[int, dict[int, tuple[int, bool]]] = field(default_factory=dict)
    done: dict[int, list[int]] = field(default_factory=dict)
    received: dict[tuple[int, int], bool] = field(default_factory=dict)  # (session key, packet identifier)
    retained: dict[str, MessageRow | None] = field(default_factory=dict)
    wills: dict[int, WillRow | None] = field(default_factory=dict)
    ended: list[int] = field(default_factory=list)  # keys of sessions that are gone with all they held
    kept: dict[str, list[KeptRow]] = field(default_factory=dict)  # by the name of the history, in order
    positions: dict[tuple[int, str], int | None] = field(default_factory=dict)  # by session key and topic filter


@dataclass(slots=True)
class QueueSummary:
    """What waits in one session's queue, unsent; the store gives the messages when they are asked for."""

    count: int
    bytes: int  # of payloads and topic names
    last_position: int


@dataclass(slots=True)
class Snapshot:
    """What a broker must know at its start. Queues and retained messages stay with the store (`Reader`)."""

    sessions: list[SessionRow] = field(default_factory=list)
    subscriptions: list[SubscriptionRow] = field(default_factory=list)
    in_flight: dict[int, list[tuple[int, QueueRow]]] = field(default_factory=dict)  # by session, in order
    queues: dict[int, QueueSummary] = field(default_factory=dict)  # by session key
    received: list[tuple[int, int]] = field(default_factory=list)  # (session key, packet identifier)
    wills: list[WillRow] = field(default_factory=list)
    retained_count: int = 0
    retained_bytes: int = 0  # of topic names and payloads
    next_message_key: int = 1
    positions: dict[tuple[int, str], int] = field(default_factory=dict)  # of sessions that read what is kept
    last_kept: int = 0  # number of the last message that was kept, also if it is gone
    kept_count: int = 0
    kept_bytes: int = 0  # of topic names and payloads


class ReadError(Exception):
    """What a store should hold can't be read back; the message names the file."""


class Reader(Protocol):
    """Reads what a store has settled (see `Changes`): asked by the core, answers at once. ReadError: it can't."""

    def queue(self, session_key: int, after: int) -> list[tuple[int, QueueRow]]:
        """The next of a session's queue by position, beyond *after*: some hundreds at most, not more than
        a few megabytes; at least one if there is one."""
        ...

    def retained(self, topic_filter: str, after: bytes | None) -> tuple[list[MessageRow], bytes | None]:
        """Retained messages whose topic names match, from *after* on (None: from the start): some
        hundreds at most, and what to pass as *after* to go on; None: that was the end."""
        ...

    def retained_message(self, topic: str) -> MessageRow | None: ...

    def kept(self, topic_filter: str, after: int, end: int) -> tuple[list[KeptRow], int]:
        """Of the messages kept for replay with numbers beyond *after* and up to *end*, which are all settled, those
        that match: the first of them, as with `queue`, in order; and up to which number that is all."""
        ...

    def kept_since(self, topic_filter: str, since: float) -> int | None:
        """The number of the first that came at *since* (s since the epoch) or later, in what keeps such topics."""
        ...


def message_row(message: Message) -> MessageRow:
    """Its `MessageRow`."""
    return (
        message.key,
        message.topic,
        message.payload,
        message.qos,
        message.retain,
        message.encoded_properties() if message.properties else None,
        message.expires_at,
    )


# A batch of so many bytes of payload, or new messages, is written though nobody waits for it.
_LARGE_BYTES = 1_000_000
_LARGE_COUNT = 2000
# And with so much no more is read from those who bring it: as much again is being written, and being settled. On a
# slow disk it is a part of it (`portion`).
_OVERDUE_BYTES = 4_000_000
_OVERDUE_COUNT = 20_000


class Changes:
    """The batch that is being filled. Batches are numbered 1, 2, 3, ... and written in that order.

    A batch is first *committed*: it lasts, and what rests on it may be acknowledged. Some time later it is
    *settled*: its contents can be read back one by one, and may be forgotten here (`Reader`).
    """

    def __init__(self, next_message_key: int = 1) -> None:
        self.number = 1  # of the batch that is being filled
        self.portion = 1.0  # of _OVERDUE_BYTES and _OVERDUE_COUNT; set by whoever writes
        self.is_stuck = False  # the store can't be written for now; set and cleared by `Pressure`
        self.pending_bytes = 0  # of payloads in the batch; reset by `take`
        self.is_rested_on = False  # output waits for this batch; set by `rest`, reset by `take`
        self._next_message_key = next_message_key
        self._new: dict[Delivery, int] = {}  # their session keys
        self._states: dict[Delivery, int] = {}
        self._done: dict[int, list[int]] = {}
        self.is_done_needed = False  # output rests on `_done` too; set by durable queues, reset by `take`
        self._retained: dict[str, Message | None] = {}
        self._kept: dict[str, list[tuple[int, float, Message]]] = {}
        self._kept_count = 0
        self._batch = Batch(1)  # the rest of it

    def __bool__(self) -> bool:
        return bool(self._done) or self.is_needed

    @property
    def is_needed(self) -> bool:
        """There is something in the batch that output may rest on. What receivers have acknowledged is so only if it
        was a durable queue's: forgotten in a crash, QoS 1 comes again as a duplicate (5.0 §4.3.2), and of QoS 2 only
        PUBREL."""
        return bool(self._new) or self._has_more_than_messages

    @property
    def may_be_done_soon(self) -> bool:
        """Output rests on nothing but messages, and the first of them is under way to its receiver: it may be
        acknowledged before a disk could have kept it."""
        if self._has_more_than_messages:
            return False
        first = next(iter(self._new), None)
        return first is not None and first.packet_id > 0 and first.qos == 1

    @property
    def _has_more_than_messages(self) -> bool:
        """Of what output may rest on."""
        batch = self._batch
        return bool(
            self.is_done_needed
            or self._states
            or self._retained
            or batch.received
            or batch.sessions
            or batch.subscriptions
            or batch.wills
            or batch.ended
            or self._kept
            or batch.positions
        )

    @property
    def is_overdue(self) -> bool:
        """More has come than the store takes: whoever brings it should not be read from."""
        count = len(self._new) + len(self._retained) + self._kept_count
        return self.pending_bytes > _OVERDUE_BYTES * self.portion or count > _OVERDUE_COUNT * self.portion

    @property
    def is_large(self) -> bool:
        """It should be written even if nobody waits for it."""
        count = len(self._new) + len(self._retained) + self._kept_count
        return self.pending_bytes > _LARGE_BYTES or count > _LARGE_COUNT

    def rest(self) -> int:
        """The number of the batch that output of this turn has to wait for."""
        if self.is_needed:
            self.is_rested_on = True
            return self.number
        return self.number - 1  # nothing new is to be written: the last one that was taken

    def take(self) -> Batch | None:
        """The batch to write, and the next one begins; None if there is nothing to write or to wait for.

        It may be empty: what output rests on can go again before it is written, and the output still
        has to be released.
        """
        if not self.is_rested_on and not self:
            return None
        batch, self._batch = self._batch, Batch(self.number + 1)
        self._fill(batch)
        self.number += 1
        self.pending_bytes = 0
        self.is_rested_on = False
        return batch

    def pass_over(self) -> int:
        """All that output rested on has gone again before it was written (not `is_needed`): the number of the batch,
        which is as good as kept. What receivers have acknowledged stays for the next one."""
        number = self.number
        self.number = self._batch.number = number + 1
        self.pending_bytes = 0
        self.is_rested_on = False
        return number

    def _fill(self, batch: Batch) -> None:
        rows: dict[int, MessageRow] = {}  # by message key: one row, however many sessions wait for it
        queue = batch.queue
        for delivery, session_key in self._new.items():
            message = delivery.message
            row = rows.get(message.key)
            if row is None:
                row = rows[message.key] = message_row(message)
            positions = queue.get(session_key)
            if positions is None:
                positions = queue[session_key] = {}
            positions[delivery.position] = (
                row,
                delivery.qos,
                delivery.retain,
                delivery.identifiers,
                delivery.shared,
                delivery.packet_id,
                delivery.is_released,
            )
        for delivery, session_key in self._states.items():
            states = batch.states.setdefault(session_key, {})
            states[delivery.position] = (delivery.packet_id, delivery.is_released)
        batch.done = self._done
        for topic, retained in self._retained.items():
            batch.retained[topic] = None if retained is None else message_row(retained)
        if self._kept:
            self._fill_kept(batch, rows)
        self._new = {}
        self._states = {}
        self._done = {}
        self.is_done_needed = False
        self._retained = {}

    def _fill_kept(self, batch: Batch, rows: dict[int, MessageRow]) -> None:
        for name, kept in self._kept.items():
            of_history = batch.kept[name] = []
            for sequence, at, message in kept:
                of_history.append((sequence, at, rows.get(message.key) or message_row(message)))
        self._kept = {}
        self._kept_count = 0

    # -- sessions --

    def session(self, session: Session) -> None:
        self._batch.sessions[session.key] = SessionRow(
            session.key, session.client_id, session.expiry_s, session.ended_at
        )

    def session_removed(self, session: Session) -> None:
        """The session with its subscriptions, queue and packet identifiers is gone."""
        key = session.key
        for delivery in (*session.in_flight.values(), *session.queue.in_memory()):
            if delivery.batch == self.number:
                del self._new[delivery]
            self._states.pop(delivery, None)
            delivery.batch = 0
        self._done.pop(key, None)
        self._batch.sessions.pop(key, None)
        for topic_filter in session.subscriptions:
            self._batch.subscriptions.pop((key, topic_filter), None)
            self._batch.positions.pop((key, topic_filter), None)
        self._batch.ended.append(key)

    def subscription(self, subscription: Subscription) -> None:
        key = subscription.session.key
        self._batch.subscriptions[key, subscription.topic_filter] = SubscriptionRow(
            key,
            subscription.topic_filter,
            subscription.qos,
            subscription.no_local,
            subscription.retain_as_published,
            subscription.identifier,
        )

    def subscription_removed(self, session: Session, topic_filter: str) -> None:
        self._batch.subscriptions[session.key, topic_filter] = None

    # -- deliveries --

    def _number(self, message: Message) -> None:
        if not message.key:
            message.key = self._next_message_key
            self._next_message_key += 1
        self.pending_bytes += len(message.payload)

    def delivery(self, session: Session, delivery: Delivery) -> None:
        """A new delivery, or the new state of one."""
        if not delivery.batch:
            delivery.batch = self.number
            self._new[delivery] = session.key
            self._number(delivery.message)
        elif delivery.batch != self.number:
            self._states[delivery] = session.key

    def delivery_removed(self, session: Session, delivery: Delivery) -> None:
        if delivery.batch == self.number:
            del self._new[delivery]  # it came and went within this batch
        else:
            if self._states:
                self._states.pop(delivery, None)
            done = self._done.get(session.key)
            if done is None:
                self._done[session.key] = [delivery.position]
            else:
                done.append(delivery.position)
        delivery.batch = 0

    def received(self, session: Session, packet_id: int) -> None:
        """The session took over a QoS 2 message with this identifier. Beyond 16 bits: see `Session.take_back`."""
        self._batch.received[session.key, packet_id] = True

    def received_done(self, session: Session, packet_id: int) -> None:
        """Its PUBREL has come."""
        self._batch.received[session.key, packet_id] = False

    # -- what is kept for replay --

    def keep(self, name: str, sequence: int, at: float, message: Message) -> None:
        """The history *name* keeps *message*, which came at *at* (s since the epoch)."""
        self._number(message)
        self._kept_count += 1
        kept = self._kept.get(name)
        if kept is None:
            kept = self._kept[name] = []
        kept.append((sequence, at, message))

    def position(self, session: Session, topic_filter: str, after: int | None) -> None:
        """How far the session has read by that filter; None: it reads no more."""
        self._batch.positions[session.key, topic_filter] = after

    # -- retained messages and wills --

    def retained(self, message: Message) -> None:
        self._number(message)
        self._retained[message.topic] = message

    def retained_removed(self, topic: str) -> None:
        self._retained[topic] = None

    def will(self, session: Session, message: Message, delay_s: int, due: float | None) -> None:
        """The session has a will, or (due) it is known when it will be published."""
        self._batch.wills[session.key] = WillRow(
            session.key, session.client_id, message_row(message), delay_s, due
        )

    def will_removed(self, session: Session) -> None:
        """It was published, or isn't to be."""
        self._batch.wills[session.key] = None
