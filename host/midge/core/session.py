"""What the broker keeps for one client identifier: subscriptions, what it is owed, what it sent (MQTT 5.0 §4.1).
Knows how messages are queued and acknowledged, not how they are routed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from midge.core.backlog import Backlog, Queue, restored_delivery
from midge.core.changes import Changes, QueueRow
from midge.core.limits import Counters, Limits
from midge.core.message import Message
from midge.core.outgoing import send_publish
from midge.protocol.errors import ProtocolError
from midge.protocol.reasons import ReasonCode

if TYPE_CHECKING:
    from midge.core.access import Permissions
    from midge.core.connection import Connection
    from midge.core.durable_queue import Consumer
    from midge.core.replay import Reading
    from midge.core.routing import Subscription
    from midge.core.timers import Timer

# Messages that a queue may exceed twice its limit by, when what comes was acknowledged to nobody.
_EXCESS = 100

# Identifiers of QoS 2 messages taken back that a session avoids (see `Session.take_back`). Past it the oldest is used
# again: by then the client has had a thousand connections that broke, and most likely a fresh session.
_AVOIDED_MAX = 1000
# In the store's `received`, such identifiers, which the broker gave, stand apart from those that the client gave.
_LENT_MARK = 0x1_0000

NEVER_EXPIRES = 0xFFFF_FFFF  # Session Expiry Interval (MQTT 5.0 §3.1.2.11.2); clean session 0 of 3.1.1


class Delivery:
    """A message at QoS 1 or 2 that one session is owed.

    `packet_id` is 0 until it is sent. `is_released` is set by PUBREC: from then on PUBREL is what is
    sent again. `position` orders a session's deliveries; `batch` is the number of the batch in which
    it came into the store, 0 when it isn't there (set and cleared by `Changes`). `shared` is the topic
    filter of the shared subscription that it comes by, "" if it comes by the session's own.
    """

    __slots__ = (
        "batch",
        "identifiers",
        "is_released",
        "message",
        "packet_id",
        "position",
        "qos",
        "retain",
        "shared",
    )

    def __init__(
        self,
        message: Message,
        qos: int,
        retain: bool,
        identifiers: tuple[int, ...],
        position: int,
        shared: str = "",
    ) -> None:
        self.message = message
        self.qos = qos
        self.retain = retain
        self.identifiers = identifiers
        self.position = position
        self.shared = shared
        self.packet_id = 0
        self.is_released = False
        self.batch = 0


class Lent(Delivery):
    """What a durable queue lends to one of its consumers: the queue keeps its `entry` until it is acknowledged (QoS 1)
    or PUBREC has come (QoS 2). Only from then on is it in the store as the session's, in place of the queue's."""

    __slots__ = ("consumer", "entry", "since")

    def __init__(self, message: Message, consumer: Consumer, entry: Delivery, position: int, since: float) -> None:
        subscription = consumer.subscription
        identifiers = (subscription.identifier,) if subscription.identifier else ()
        # A message on a queue is the queue's to send, at the QoS that its consumer asks for: not [MQTT-3.8.4-8],
        # knowingly, or a consumer's exactly-once would depend on each producer.
        super().__init__(message, subscription.qos, False, identifiers, position, subscription.topic_filter)
        self.consumer = consumer
        self.entry = entry
        self.since = since  # s since the epoch: when it was lent


class Session:
    """One session. `connection` is None while the client is away; `changes` is None if nothing of it lasts."""

    __slots__ = (
        "avoided",
        "changes",
        "client_id",
        "connection",
        "consuming",
        "counters",
        "ended_at",
        "expiry_s",
        "expiry_timer",
        "in_flight",
        "is_bridge",
        "key",
        "last_packet_id",
        "last_position",
        "limits",
        "permissions",
        "queue",
        "readings",
        "receive_maximum",
        "received",
        "subscriptions",
        "will_timer",
    )

    def __init__(
        self, client_id: str, key: int, limits: Limits, counters: Counters, backlog: Backlog | None = None
    ) -> None:
        self.client_id = client_id
        self.key = key
        self.limits = limits
        self.counters = counters
        self.expiry_s = 0  # 0: it ends with its connection
        self.changes: Changes | None = None
        self.connection: Connection | None = None  # set by CONNECT, cleared when the connection ends
        self.ended_at: float | None = None  # s since the epoch; None while connected
        # What its client may do: set by CONNECT and when the rules change, kept while the client is away;
        # None: everything, or not yet known after a restart (then sorted out at CONNECT).
        self.permissions: Permissions | None = None
        self.is_bridge = False  # set by CONNECT, or by subscriptions that only a bridge makes
        self.subscriptions: dict[str, Subscription] = {}
        self.in_flight: dict[int, Delivery] = {}  # by packet identifier, in the order sent
        self.queue = Queue(key, backlog or Backlog(0))  # what waits for room in the window
        self.received: set[int] = set()  # QoS 2: PUBREC sent, PUBREL not yet received
        self.readings: dict[str, Reading] | None = None  # what it has replayed, by topic filter; set by `Replay`
        self.last_packet_id = 0
        self.last_position = 0
        self.receive_maximum = 0  # that its client named at CONNECT; 0: none
        # By topic filter: the durable queues that it consumes, or still holds something of.
        self.consuming: dict[str, Consumer] = {}
        self.avoided: dict[int, None] = {}  # packet identifiers, the oldest first; see `take_back`
        self.expiry_timer: Timer | None = None
        self.will_timer: Timer | None = None  # a will whose delay runs (MQTT 5.0 §3.1.3.2.2)

    # -- from the broker to the client --

    def deliver(
        self,
        message: Message,
        qos: int,
        retain: bool,
        identifiers: tuple[int, ...],
        now: float,
        shared: str = "",
    ) -> None:
        """Send *message* at QoS 1 or 2 if the window has room, else queue it."""
        self.last_position = position = self.last_position + 1
        delivery = Delivery(message, qos, retain, identifiers, position, shared)
        connection = self.connection
        if (
            connection is not None
            and not self.queue.count
            and len(self.in_flight) < connection.window
            and not (qos == 2 and self._is_stuck())
        ):
            self._send(delivery, connection, now)
        else:
            self._enqueue(delivery)

    def _is_stuck(self) -> bool:
        """The store can't be written: QoS 2, whose packet identifier must be kept before it leaves, has to wait."""
        return self.changes is not None and self.changes.is_stuck

    def _enqueue(self, delivery: Delivery) -> None:
        queue, limits = self.queue, self.limits
        if limits.queue_full != "drop-oldest" and queue.count >= 2 * limits.max_queued_messages + _EXCESS:
            # Publishers were asked to wait, or refused, long before (see `Pressure`): this is a will, or what
            # a member of a shared subscription has left, and nobody is told that it was kept.
            self.counters.dropped_queue_full += 1
            return
        if self.changes is not None:
            self.changes.delivery(self, delivery)
        queue.append(delivery)
        if limits.queue_full != "drop-oldest":
            return
        while queue.count > limits.max_queued_messages or queue.bytes > limits.max_queued_bytes:
            # Mosquitto drops the newest; a reading that is hours old is worth less than today's.
            self._forget(queue.popleft())
            self.counters.dropped_queue_full += 1

    def _forget(self, delivery: Delivery) -> None:
        if delivery.batch and self.changes is not None:
            self.changes.delivery_removed(self, delivery)

    def take_shared(self) -> Iterator[Delivery]:
        """The session ends: what another member of its shared subscription should get (MQTT 5.0 §4.8.2), that is
        what was not sent, and QoS 1 without its PUBACK; never QoS 2 once it was sent [MQTT-4.8.2-5]."""
        if not any(topic_filter.startswith("$share/") for topic_filter in self.subscriptions):
            return
        yield from [d for d in self.in_flight.values() if d.qos == 1 and d.shared]
        while self.queue.count:
            delivery = self.queue.popleft()
            self._forget(delivery)
            if delivery.shared:
                yield delivery

    def drop_unreadable(self, permissions: Permissions) -> None:
        """What was queued while its client was away, and may no longer be read, is not sent. What is only on
        disk is sorted out when it is read back."""
        if self.queue.stored:
            return
        kept: list[Delivery] = []
        for delivery in self.queue.in_memory():
            if permissions.may_read(delivery.message.topic):
                kept.append(delivery)
            else:
                self._forget(delivery)
        self.queue.keep_only(kept)

    def has_room(self, qos: int) -> bool:
        """Whether what is delivered at *qos*, 1 or 2, is sent at once."""
        connection = self.connection
        return (
            connection is not None
            and not self.queue.count
            and len(self.in_flight) < connection.window
            and not (qos == 2 and self._is_stuck())
        )

    @property
    def is_reading(self) -> bool:
        """Something that is replayed is still to come."""
        return self.readings is not None and not all(reading.is_idle for reading in self.readings.values())

    def wake_readings(self, now: float) -> None:
        for reading in (self.readings or {}).values():
            reading.wake(now)

    def fill_window(self, now: float) -> None:
        """Send from the queue while the client may be sent more [MQTT-3.3.4-9]."""
        connection = self.connection
        if connection is None:
            return
        queue, in_flight, window = self.queue, self.in_flight, connection.window
        while queue.count and len(in_flight) < window:
            if self._is_stuck() and queue.next_qos() == 2:
                break
            delivery = queue.popleft()
            if delivery.message.is_expired(now):
                self._forget(delivery)
                self.counters.dropped_expired += 1
            elif delivery.batch == -1 and not self._may_read(delivery.message.topic):
                self._forget(delivery)  # it was read back from the disk; see `drop_unreadable`
            else:
                self._send(delivery, connection, now)
        if self.readings is not None and not queue.count:
            self.wake_readings(now)
        if connection.is_ping_waiting and (
            not (queue.count or self.is_reading)
            or (queue.count and queue.first_position() > connection.ping_position)
        ):
            connection.send_pingresp()

    def _may_read(self, topic: str) -> bool:
        return self.permissions is None or self.permissions.may_read(topic)

    def _send(self, delivery: Delivery, connection: Connection, now: float) -> None:
        # Counts 1, 2, 3, ...; one still in use is passed over [MQTT-2.2.1-3]. The window is far smaller than
        # 65,535, so a free one is always near.
        packet_id = self.last_packet_id % 65_535 + 1
        while packet_id in self.in_flight or (self.avoided and packet_id in self.avoided):
            packet_id = packet_id % 65_535 + 1
        delivery.packet_id = self.last_packet_id = packet_id
        if not send_publish(connection, delivery, now, dup=False):
            # Larger than the client takes: as if it had been sent [MQTT-3.1.2-25].
            self._forget(delivery)
            return
        self.in_flight[packet_id] = delivery
        if self.changes is not None:
            self.changes.delivery(self, delivery)
            if delivery.qos == 2:
                # Once it left under this identifier, a restart must not send it under another.
                connection.rest_on_commit()

    def resume(self, now: float) -> None:
        """Send again what the last connection left unacknowledged, in order [MQTT-4.4.0-1], then the queue."""
        connection = self.connection
        assert connection is not None
        is_stuck = self._is_stuck()
        for delivery in list(self.in_flight.values()):
            if is_stuck and delivery.qos == 2:
                connection.has_postponed_qos2 = True
            else:
                self._resend(delivery, connection, now)
        self.fill_window(now)

    def resend_qos2(self, now: float) -> None:
        """What `resume` left out because the store couldn't be written."""
        connection = self.connection
        assert connection is not None
        for delivery in [delivery for delivery in self.in_flight.values() if delivery.qos == 2]:
            self._resend(delivery, connection, now)

    def _resend(self, delivery: Delivery, connection: Connection, now: float) -> None:
        if delivery.is_released:
            connection.send_pubrel(delivery.packet_id)
        elif not send_publish(connection, delivery, now, dup=True):
            self._remove_in_flight(delivery.packet_id)

    def puback(self, packet_id: int, now: float, reason_code: int = 0) -> None:
        """PUBACK: the message is the client's now. Only a durable queue listens to the reason."""
        delivery = self.in_flight.pop(packet_id, None)
        if delivery is None:
            return  # a late answer to what was sent on an earlier connection; nothing to do
        if delivery.qos != 1:
            self.in_flight[packet_id] = delivery
            raise ProtocolError(ReasonCode.PROTOCOL_ERROR, f"PUBACK for a QoS 2 message ({packet_id})")
        if delivery.batch and self.changes is not None:
            self.changes.delivery_removed(self, delivery)
        if self.queue.count or self.readings is not None:
            self.fill_window(now)
        if self.consuming:
            self._answered(delivery, reason_code, now)

    def pubrec(self, packet_id: int, reason_code: int, now: float) -> bool:
        """PUBREC; False if the packet identifier isn't known (5.0 answers PUBREL with 0x92)."""
        delivery = self.in_flight.get(packet_id)
        if delivery is None:
            return False
        if delivery.qos != 2:
            raise ProtocolError(ReasonCode.PROTOCOL_ERROR, f"PUBREC for a QoS 1 message ({packet_id})")
        if reason_code >= 0x80:  # 5.0: the exchange ends here (§4.3.3)
            self._remove_in_flight(packet_id)
            self.fill_window(now)
            if self.consuming:
                self._answered(delivery, reason_code, now)
            return True
        if not delivery.is_released:
            delivery.is_released = True
            if self.changes is not None:
                self.changes.delivery(self, delivery)
            if self.consuming and isinstance(delivery, Lent):
                delivery.consumer.queue.handed_over(delivery)
                self._unmark(packet_id)
        if self.connection is not None and (self.changes is not None or self.consuming):
            # PUBREL lets the client forget the identifier: a restart must not send PUBLISH again.
            self.connection.rest_on_commit()
        return True

    def pubcomp(self, packet_id: int, now: float) -> None:
        delivery = self.in_flight.get(packet_id)
        if delivery is None:
            return
        if not delivery.is_released:
            raise ProtocolError(ReasonCode.PROTOCOL_ERROR, f"PUBCOMP before PUBREC ({packet_id})")
        self._remove_in_flight(packet_id)
        self.fill_window(now)
        if self.consuming:
            self._answered(delivery, 0, now)

    def _remove_in_flight(self, packet_id: int) -> None:
        delivery = self.in_flight.pop(packet_id)
        if delivery.batch and self.changes is not None:
            self.changes.delivery_removed(self, delivery)

    # -- from durable queues to the client --

    def lend(self, lent: Lent, is_again: bool, now: float) -> bool:
        """Send what a durable queue lends; False if the client takes no packet of that size."""
        connection = self.connection
        assert connection is not None
        packet_id = self.last_packet_id % 65_535 + 1
        while packet_id in self.in_flight or (self.avoided and packet_id in self.avoided):
            packet_id = packet_id % 65_535 + 1
        lent.packet_id = self.last_packet_id = packet_id
        if not send_publish(connection, lent, now, dup=is_again):
            return False
        self.in_flight[packet_id] = lent
        if lent.qos == 2 and self.changes is not None:
            # It may be taken back while the client remembers the identifier: a restart must not use it for another.
            self.changes.received(self, _LENT_MARK | packet_id)
            connection.rest_on_commit()
        return True

    def _answered(self, delivery: Delivery, reason_code: int, now: float) -> None:
        """The client has acknowledged *delivery*, or refused it: it may have room for what waits in durable queues."""
        if isinstance(delivery, Lent):
            if delivery.qos == 2 and not delivery.is_released:
                self._unmark(delivery.packet_id)
            delivery.consumer.queue.answered(delivery, reason_code, now)
        for consumer in list(self.consuming.values()):
            consumer.queue.serve_also(consumer, now)

    def _unmark(self, packet_id: int) -> None:
        if self.changes is not None:
            self.changes.received_done(self, _LENT_MARK | packet_id)

    def take_back(self) -> list[Lent]:
        """The client is gone: what durable queues lent it goes to others, but for QoS 2 messages that it has sent
        PUBREC for: those are its own. A client that was sent a QoS 2 message remembers its identifier as long as
        the session lasts, and takes another message under it for a duplicate [MQTT-4.3.3-10]: it is avoided."""
        taken: list[Lent] = []
        for delivery in list(self.in_flight.values()):
            if isinstance(delivery, Lent) and not delivery.is_released:
                del self.in_flight[delivery.packet_id]
                taken.append(delivery)
                if delivery.qos == 2:
                    self.avoided[delivery.packet_id] = None
        while len(self.avoided) > _AVOIDED_MAX:
            packet_id = next(iter(self.avoided))
            del self.avoided[packet_id]
            self._unmark(packet_id)
        return taken

    def restore_received(self, packet_id: int) -> None:
        """At the start: an identifier of a QoS 2 message from the client without PUBREL, or one to avoid."""
        if packet_id & _LENT_MARK:
            self.avoided[packet_id & 0xFFFF] = None
        else:
            self.received.add(packet_id)

    # -- from the client to the broker: QoS 2 identifiers --

    def receive(self, packet_id: int) -> None:
        """A QoS 2 message was taken over; until its PUBREL the same identifier is a duplicate."""
        self.received.add(packet_id)
        if self.changes is not None:
            self.changes.received(self, packet_id)

    def release(self, packet_id: int) -> bool:
        """PUBREL; False if the packet identifier isn't known."""
        if packet_id not in self.received:
            return False
        self.received.discard(packet_id)
        if self.changes is not None:
            self.changes.received_done(self, packet_id)
        return True

    # -- what lasts --

    def keep_in(self, changes: Changes | None) -> None:
        """From now on the session lasts in *changes*, or (None) ends with its connection."""
        if self.changes is not None and changes is None:
            self.changes.session_removed(self)
            kept = self.queue.in_memory()
            self.queue.clear()
            self.queue.lasts = False
            self.queue.keep_only(kept)
        self.changes = changes
        if changes is not None:
            self.queue.lasts = True
            changes.session(self)

    def restore_in_flight(self, rows: list[tuple[int, QueueRow]]) -> None:
        """At the start: take over what had been sent and not acknowledged, in order of position."""
        for position, row in rows:
            delivery = restored_delivery(position, row)
            self.in_flight[delivery.packet_id] = delivery
            self.last_packet_id = delivery.packet_id
            self.last_position = position
