"""A durable queue: each message goes to one consumer, in order of arrival, and is kept until that one has it.
Knows messages and consumers' sessions, not how messages get here nor which queues there are.

A message is in one of three places: *waiting* for its first consumer (`store.queue`, whose middle may be on disk
only), *lent* to one (`Session.in_flight`), or *returned* by one that left or refused it (`returned`, in memory; what
was lent before goes first). In the store it is a row of the queue's all the time; the row's packet identifier says how
often it was lent, so that a restart knows too.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from midge.core.backlog import restored_delivery
from midge.core.changes import QueueRow, ReadError
from midge.core.message import Message
from midge.core.routing import SharedGroup, Subscription, Target
from midge.core.session import Delivery, Lent, Session
from midge.protocol.packets import Properties
from midge.protocol.reasons import ReasonCode

if TYPE_CHECKING:
    from midge.core.queues import Queues

PREFIX = "$queue/"
# A queue of this ending keeps what another queue gave up: there it waits until somebody takes it.
DEAD = ".dead"

# User properties, for 5.0: of what is delivered again, how often it was delivered; of dead letters, why and whence.
DELIVERIES = "midge-deliveries"
DEAD_QUEUE = "midge-dead-letter-queue"
_DEAD_REASON = "midge-dead-letter-reason"
_DEAD_TOPIC = "midge-dead-letter-topic"

# s between two looks for messages that are too old, at most; and the part of `max_age`, or of `ack_timeout`, between.
_AGE_CHECK_S = 60.0
_AGE_CHECK_PART = 0.1


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """What a queue is told; the defaults are those of one that nobody has configured."""

    name: str
    filters: tuple[str, ...] = ()  # ordinary topics that feed it
    max_messages: int = 100_000  # that wait or are lent. RabbitMQ: no limit; NATS: no limit
    max_bytes: int = 100_000_000  # of their topics and payloads
    max_age: int = 0  # s; 0: no limit
    full: Literal["push-back", "wait", "reject", "drop-oldest"] = "push-back"
    dead_letter: str | None = None  # topic; None: the queue NAME.dead; "": nowhere
    max_deliveries: int = 20  # as RabbitMQ's quorum queues since 4.0; 0: no limit
    # Messages that one consumer holds, if it names no Receive Maximum. More hides the time between an acknowledgement
    # and the next message, but what a slow consumer has, no other can do. RabbitMQ: no limit, and its tutorial says 1.
    prefetch: int = 1
    # s that a consumer may take to acknowledge; 0: no limit. RabbitMQ: 30 minutes; NATS: 30 s. How long a job takes we
    # can't know, and a consumer that has died is noticed without.
    ack_timeout: int = 0


class Consumer:
    """One session's subscription to one queue."""

    __slots__ = ("held", "is_subscribed", "queue", "session", "subscription")

    def __init__(self, queue: DurableQueue, subscription: Subscription) -> None:
        self.queue = queue
        self.session = subscription.session
        self.subscription = subscription
        self.is_subscribed = True  # cleared by UNSUBSCRIBE: what it holds it may still acknowledge
        self.held = 0  # messages that it was lent and has not acknowledged, at QoS 2 by PUBCOMP

    @property
    def is_connected(self) -> bool:
        return self.is_subscribed and self.session.connection is not None

    def room(self) -> int:
        """How many messages it may be lent."""
        session = self.session
        connection = session.connection
        if connection is None or session.queue.count or not self.is_subscribed:
            return 0
        changes = session.changes
        if self.subscription.qos == 2 and changes is not None and changes.is_stuck:
            return 0  # its identifier must be kept before it leaves
        permissions = session.permissions
        if permissions is not None and not permissions.may_read(self.subscription.topic_filter):
            return 0
        limit = session.receive_maximum or self.queue.settings.prefetch
        return min(limit - self.held, connection.window - len(session.in_flight))


class DurableQueue(SharedGroup):
    """One queue. `store` is the session in whose name its messages wait and last; no client can have it."""

    __slots__ = (
        "_ack_timer",
        "_age_timer",
        "_is_serving",
        "_lent",
        "_queues",
        "_ready",
        "_widest",
        "bytes",
        "consumers",
        "count",
        "dead_lettered",
        "dropped",
        "is_configured",
        "is_full",
        "name",
        "redelivered",
        "returned",
        "settings",
        "store",
    )

    def __init__(self, queues: Queues, name: str, store: Session) -> None:
        super().__init__(PREFIX + name)
        self.name = name
        self.settings = QueueSettings(name)
        self.is_configured = False  # set and cleared by `Queues.configure`
        self.store = store
        self.returned: list[tuple[int, Delivery]] = []  # a heap by position
        self.consumers: dict[Session, Consumer] = {}
        self.count = 0  # messages, wherever they are
        self.bytes = 0  # of their topics and payloads
        self.is_full = False
        self.redelivered = self.dead_lettered = self.dropped = 0  # messages, since the start
        self._queues = queues
        self._ready: dict[Consumer, None] = {}  # those that may have room, in turn
        self._widest = self.settings.prefetch  # no consumer has more room
        self._is_serving = False  # set and cleared by `serve`
        self._age_timer = False  # `_check_age` will be called
        self._ack_timer = False  # `_check_acknowledged` will be called
        self._lent: dict[Lent, None] = {}  # what consumers have not acknowledged, the oldest first

    def set_settings(self, settings: QueueSettings, now: float) -> None:
        self.settings = settings
        self._widest = max(self._widest, settings.prefetch)
        self._note_fullness()
        self._watch_age(now)
        self._watch_acknowledged(now)
        for consumer in self.consumers.values():
            self._ready[consumer] = None
        self.serve(now)

    # -- in --

    def put(self, message: Message, now: float) -> bool:
        """Keep *message*, and lend it if a consumer has room. False: it has no place here."""
        if self.is_full and not self._make_room(now):
            self.dropped += 1
            return False
        store = self.store
        store.last_position = position = store.last_position + 1
        # In place of subscription identifiers, which are the consumers': when it came, if that will be asked.
        arrived = (int(now),) if self.settings.max_age else ()
        entry = Delivery(message, 1, False, arrived, position)
        if store.changes is not None:
            store.changes.delivery(store, entry)
        store.queue.append(entry)
        self.count += 1
        self.bytes += message.size()
        self._note_fullness()
        if self._ready:
            self.serve(now)
        if arrived:
            self._watch_age(now)
        return True

    def has_room(self) -> bool:
        """Whether `put` would take a message and drop none."""
        return not self.is_full

    def refuses(self, version: int, is_trusted: bool) -> bool:
        """What becomes of a message at QoS 1 or 2 that there is no room for: True if it is refused, False if it
        waits. 3.1.1 knows no refusal, and a bridge (*is_trusted*) can't do better than wait either."""
        full = self.settings.full
        return full == "reject" or (full == "push-back" and version == 5 and not is_trusted)

    def best(self, topic: str, is_kept: bool) -> Target | None:
        return None  # no session is owed the message: the queue is

    def _make_room(self, now: float) -> bool:
        """The queue is full: drop the oldest, if that is what it is told to do."""
        if self.settings.full != "drop-oldest":
            return False
        while self.is_full and (self.returned or self.store.queue.count):
            entry = heapq.heappop(self.returned)[1] if self.returned else self.store.queue.popleft()
            if not (self.settings.dead_letter and self._bury(entry, "the queue was full", now)):
                self._forget(entry)
                self.dropped += 1
        return not self.is_full

    def _forget(self, entry: Delivery) -> None:
        """It is no longer the queue's."""
        if entry.batch and self.store.changes is not None:
            self.store.changes.delivery_removed(self.store, entry)
        self.count -= 1
        self.bytes -= entry.message.size()
        if self.is_full:
            self._note_fullness()

    def _note_fullness(self) -> None:
        settings = self.settings
        is_full = self.count >= settings.max_messages or self.bytes >= settings.max_bytes
        if is_full is not self.is_full:
            self.is_full = is_full
            self._queues.fullness_changed(self)

    # -- out --

    def serve(self, now: float) -> None:
        """Lend what waits while a consumer has room."""
        if self._is_serving:
            return
        self._is_serving = True
        try:
            while self.returned or self.store.queue.count:
                consumer = self._choose()
                if consumer is None:
                    break
                entry = self._next(now)
                if entry is not None:
                    self._lend(entry, consumer, now)
        except ReadError as error:
            # The next consumer would hear the same: one at a time is closed, each time that it is tried again.
            if consumer is not None and consumer.session.connection is not None:
                consumer.session.connection.close(ReasonCode.UNSPECIFIED_ERROR, str(error))
        finally:
            self._is_serving = False

    def serve_also(self, consumer: Consumer, now: float) -> None:
        """*consumer* may have more room than it had."""
        if consumer.is_subscribed:
            self._ready[consumer] = None
            self._widest = max(self._widest, consumer.session.receive_maximum)
            self.serve(now)

    def _choose(self) -> Consumer | None:
        """The consumer with the most room; of equals whoever has waited longest."""
        best: Consumer | None = None
        most = 0
        for consumer in list(self._ready) if len(self._ready) > 1 else self._ready:
            room = consumer.room()
            if room > most:
                best, most = consumer, room
                if room >= self._widest:
                    break
            elif room <= 0:
                del self._ready[consumer]
                if not self._ready:
                    break
        if best is not None:
            del self._ready[best]
            self._ready[best] = None
        return best

    def _next(self, now: float) -> Delivery | None:
        """Take out what is to be lent next; None if there is nothing, after all."""
        returned, waiting = self.returned, self.store.queue
        while returned or waiting.count:
            entry = heapq.heappop(returned)[1] if returned else waiting.popleft()
            if self._is_too_old(entry, now):
                self._expire(entry, now)
                continue
            limit = self.settings.max_deliveries
            if limit and entry.packet_id >= limit and self._bury(
                entry, f"delivered {entry.packet_id} times, lastly before a restart", now
            ):
                continue
            return entry
        return None

    def _lend(self, entry: Delivery, consumer: Consumer, now: float) -> None:
        session, store = consumer.session, self.store
        entry.packet_id = count = entry.packet_id + 1
        if store.changes is not None:
            store.changes.delivery(store, entry)
        message = entry.message
        if count > 1:
            self.redelivered += 1
            assert session.connection is not None
            if session.connection.version == 5:
                message = _with_user_properties(message, message.topic, [(DELIVERIES, str(count))])
        session.last_position = position = session.last_position + 1
        lent = Lent(message, consumer, entry, position, now)
        if session.lend(lent, count > 1, now):
            consumer.held += 1
            self._lent[lent] = None
            if self.settings.ack_timeout and not self._ack_timer:
                self._watch_acknowledged(now)
        else:
            self._give_back(entry, "larger than the consumer takes", now)

    def answered(self, lent: Lent, reason_code: int, now: float) -> None:
        """Its consumer has acknowledged what it was lent, or refused it with a reason."""
        consumer = lent.consumer
        consumer.held -= 1
        self._lent.pop(lent, None)
        if reason_code >= 0x80:
            if len(self._ready) > 1:  # if others have room, one of them gets it
                self._ready.pop(consumer, None)
            self._give_back(lent.entry, f"refused with reason 0x{reason_code:02x}", now)
            self.serve(now)
        elif not lent.is_released:
            self._forget(lent.entry)

    def handed_over(self, lent: Lent) -> None:
        """PUBREC: it is the consumer's from now on, in the same batch of the store in which it leaves the queue."""
        self._lent.pop(lent, None)
        self._forget(lent.entry)
        if self.store.changes is not None:
            self.store.changes.is_done_needed = True  # PUBREL rests on it: a restart must not give it to another

    def withdrawn(self, lent: Lent, reason: str, now: float) -> None:
        """The consumer that had it is gone. `serve` is the caller's."""
        lent.consumer.held -= 1
        self._lent.pop(lent, None)
        self._give_back(lent.entry, reason, now)

    def _give_back(self, entry: Delivery, reason: str, now: float) -> None:
        limit = self.settings.max_deliveries
        reason = f"delivered {entry.packet_id} times; lastly: {reason}"
        if limit and entry.packet_id >= limit and self._bury(entry, reason, now):
            return
        heapq.heappush(self.returned, (entry.position, entry))

    # -- what is given up --

    def _bury(self, entry: Delivery, reason: str, now: float) -> bool:
        """Publish *entry* as a dead letter, and forget it. False: there is nowhere to, so it stays."""
        settings, message = self.settings, entry.message
        topic = settings.dead_letter
        if topic is None:
            if self.name.endswith(DEAD):
                return False
            topic = self.topic_filter + DEAD
        came_round = (DEAD_QUEUE, self.name) in (message.properties or {}).get("user_property", ())
        if topic and not came_round:
            added = [
                (DEAD_QUEUE, self.name),
                (_DEAD_REASON, reason),
                (_DEAD_TOPIC, message.topic),
                (DELIVERIES, str(entry.packet_id)),
            ]
            letter = _with_user_properties(message, topic, added)
            letter.expires_at = None
            letter.qos = max(1, message.qos)
            if not self._queues.publish_dead_letter(letter, now):
                return False
            self.dead_lettered += 1
        else:
            self.dropped += 1
        self._forget(entry)
        return True

    # -- age --

    def _is_too_old(self, entry: Delivery, now: float) -> bool:
        if entry.message.is_expired(now):
            return True
        max_age = self.settings.max_age
        return bool(max_age and entry.identifiers and entry.identifiers[0] + max_age <= now)

    def _expire(self, entry: Delivery, now: float) -> None:
        if not (self.settings.dead_letter and self._bury(entry, "it has waited too long", now)):
            self._forget(entry)
            self.dropped += 1

    def _watch_age(self, now: float) -> None:
        if self.settings.max_age and self.count and not self._age_timer:
            self._age_timer = True
            wait_s = min(_AGE_CHECK_S, max(1.0, self.settings.max_age * _AGE_CHECK_PART))
            self._queues.timers.at(now + wait_s, self._check_age)

    def _check_age(self, now: float) -> None:
        """Let go of the oldest that nobody has taken in time: they must not keep the queue full."""
        self._age_timer = False
        waiting = self.store.queue
        try:
            while self.returned and self._is_too_old(self.returned[0][1], now):
                self._expire(heapq.heappop(self.returned)[1], now)
            while waiting.count and self._is_too_old(waiting.first(), now):
                self._expire(waiting.popleft(), now)
        except ReadError:
            pass  # whoever is to get one of them hears of it
        self._watch_age(now)

    # -- acknowledged in time --

    def _watch_acknowledged(self, now: float) -> None:
        timeout_s = self.settings.ack_timeout
        if timeout_s and self._lent and not self._ack_timer:
            self._ack_timer = True
            due = next(iter(self._lent)).since + timeout_s
            self._queues.timers.at(max(due, now + timeout_s * _AGE_CHECK_PART), self._check_acknowledged)

    def _check_acknowledged(self, now: float) -> None:
        """Take back what consumers sit on."""
        self._ack_timer = False
        timeout_s = self.settings.ack_timeout
        while timeout_s and self._lent:
            lent = next(iter(self._lent))
            if lent.since + timeout_s > now:
                break
            del self._lent[lent]
            if not self._queues.sits_on_it(lent, now):
                lent.since = now
                self._lent[lent] = None
        self._watch_acknowledged(now)

    # -- consumers --

    def join(self, subscription: Subscription) -> None:
        """A session subscribes, or subscribes anew."""
        session = subscription.session
        consumer = session.consuming.get(self.topic_filter)
        if consumer is None:
            consumer = session.consuming[self.topic_filter] = Consumer(self, subscription)
        consumer.subscription = subscription
        consumer.is_subscribed = True
        self.consumers[session] = consumer
        self._ready[consumer] = None

    def leave(self, session: Session) -> None:
        """A session unsubscribes: what it was sent it may still acknowledge [MQTT-3.10.4-2]. Or it has ended."""
        consumer = self.consumers.pop(session)
        consumer.is_subscribed = False
        self._ready.pop(consumer, None)

    @property
    def is_idle(self) -> bool:
        """Nothing would be lost with it."""
        return not (self.count or self.consumers or self.is_configured)

    @property
    def connected_consumers(self) -> int:
        return sum(consumer.is_connected for consumer in self.consumers.values())

    @property
    def waiting(self) -> int:
        """Messages that no consumer has at the moment."""
        return len(self.returned) + self.store.queue.count

    # -- at the start --

    def restore_lent(self, rows: list[tuple[int, QueueRow]]) -> None:
        """*rows*, in order, had been lent to somebody: they go first, before what is restored to `store.queue`."""
        self.returned = [(position, restored_delivery(position, row)) for position, row in rows]
        if rows:
            self.store.last_position = rows[-1][0]

    def count_restored(self) -> None:
        """All of it is there."""
        self.count = self.waiting
        self.bytes = self.store.queue.bytes + sum(entry.message.size() for _, entry in self.returned)
        self._note_fullness()


def _with_user_properties(message: Message, topic: str, added: list[tuple[str, str]]) -> Message:
    """A copy of *message* with *topic*, and with *added* in place of properties of the same names."""
    properties: Properties = {}
    if message.properties:
        properties.update(message.properties)
    names = [name for name, _ in added]
    kept = [pair for pair in properties.get("user_property", []) if pair[0] not in names]
    properties["user_property"] = kept + added
    copy = Message(topic, message.payload, message.qos, False, properties, message.expires_at)
    if topic == message.topic:
        copy.key = message.key  # for the store it is the same message
    return copy
