"""What becomes of a message at QoS 1 or 2 that a queue, or the store, has no room for.
Knows who would get it and who waits with it; routes nothing itself.

The choice is `queue_full` of the limits of the session whose queue it is, and it is made before anything is done
with the message. Where several queues are full, "reject" comes before "wait", and that before "drop-oldest":

- "drop-oldest": taken; the oldest of the full queue is dropped and counted.
- "reject": refused as a whole, so that nobody gets it. If those with room got it, they would get it again each time
  the publisher tries again, and the publisher could not tell who has it. So one session whose queue is full stops
  its topics for all who share them: whoever chooses "reject" would rather have that than lose a message. (RabbitMQ,
  for one, delivers to those with room and refuses all the same.) A 3.1.1 client, which learns it by being
  disconnected, first gets what it is owed itself: its message waits for that.
- "wait": the message is kept here, not acknowledged, until there is room in all queues; what its publisher sends
  at QoS 1 and 2 meanwhile queues behind it, so that the order of messages and of acknowledgements is kept
  [MQTT-4.6.0-2], [MQTT-4.6.0-6]. The publisher's own window, or Receive Maximum, slows it down.

When the store can't be written, what has to be in it is refused whatever the choice (5.0: 0x97; 3.1.1: no
acknowledgement, and the connection is closed); everything else goes on. What the failed batch holds has been done in
memory but not acknowledged: whoever waits for that is disconnected, and does as after any lost connection. It will be
written when there is space; at QoS 2 what is sent again is then known by its packet identifier.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from midge.core import incoming
from midge.core.changes import ReadError
from midge.core.connection import HELD_BY_QUEUE
from midge.core.durable_queue import DurableQueue
from midge.core.routing import Route
from midge.protocol import packets as p
from midge.protocol.errors import ProtocolError
from midge.protocol.packets import Publish
from midge.protocol.reasons import ReasonCode

if TYPE_CHECKING:
    from midge.core.broker import Broker
    from midge.core.connection import Connection
    from midge.core.session import Session

DROP_OLDEST, REJECT, WAIT = "drop-oldest", "reject", "wait"

# bytes of payload of one publisher that wait for room, before it isn't read from: a 3.1.1 client that has no
# window of its own would fill our memory. Then its keep alive runs out, unless there is room in time.
_WAITING_BYTES_MAX = 4_000_000


class _Waiting:
    """One publisher's messages, in order."""

    __slots__ = ("bytes", "publishes")

    def __init__(self) -> None:
        self.publishes: deque[tuple[Publish, str]] = deque()  # with their topic names, aliases resolved
        self.bytes = 0


class Pressure:
    """`admits` is asked about each message at QoS 1 and 2 while `is_on`."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._waiting: dict[Connection, _Waiting] = {}  # longest wait first
        self._owed: dict[Connection, None] = {}  # of these: to be refused once they have what they are owed themselves
        self.is_store_failing = False  # set by `store_failed`, cleared by `store_recovered`
        self.is_on = False
        self.update()

    def update(self) -> None:
        """The limits have changed."""
        self._switch()
        self._go_on_soon()

    def _switch(self) -> None:
        self.is_on = bool(
            self.is_store_failing
            or self._broker.session_limits.may_refuse
            or self._broker.queues.full
            or self._waiting  # what its client sends must queue behind it
        )

    def waiting(self, connection: Connection) -> int:
        """How many messages of its client wait for room."""
        waiting = self._waiting.get(connection)
        return 0 if waiting is None else len(waiting.publishes)

    @property
    def publishers_waiting(self) -> int:
        return len(self._waiting)

    def admits(self, connection: Connection, packet: Publish, topic: str) -> bool:
        """True: go on with it. False: it was refused, or waits."""
        waiting = self._waiting.get(connection)
        if waiting is None:
            verdict = self._verdict(connection, packet, topic)
            if verdict == "":
                return True
            if verdict == REJECT:
                return False
            waiting = self._waiting[connection] = _Waiting()
            self.is_on = True
        waiting.publishes.append((packet, topic))
        waiting.bytes += len(packet.payload)
        if waiting.bytes > _WAITING_BYTES_MAX or len(waiting.publishes) > connection.receive_maximum:
            connection.hold(HELD_BY_QUEUE, True)
        return False

    def _verdict(self, connection: Connection, packet: Publish, topic: str) -> str:
        """"" if there is room; REJECT: it was refused; WAIT: it has to wait."""
        broker = self._broker
        session = connection.session
        assert session is not None
        route = broker.routing.route(topic)
        targets = [target if target.session is not session else target.own for target in route.targets]
        targets += [group.best(topic, True) for group in route.groups]
        must_last = packet.retain or bool(route.history) or (packet.qos == 2 and session.changes is not None)
        must_last = must_last or any(isinstance(group, DurableQueue) for group in route.groups)
        must_wait = must_refuse = False
        size = len(topic) + len(packet.payload)
        for target in targets:
            if target is None or not target.qos:
                continue
            must_last = must_last or target.session.changes is not None
            policy = target.session.limits.queue_full
            if policy != DROP_OLDEST and not _has_room(target.session, size):
                if policy == REJECT or size > target.session.limits.max_queued_bytes:
                    must_refuse = True
                else:
                    must_wait = True
        counters = broker.counters
        if self.is_store_failing and must_last and broker.changes is not None:
            counters.refused_store_failing += 1
            incoming.refuse_publish(connection, packet, "the store can't be written")
            return REJECT
        queue = _full_queue(route)
        if queue is not None:
            if queue.refuses(connection.version, connection.is_trusted):
                must_refuse = True
            else:
                must_wait = True
        if must_refuse and connection.version != 5 and _is_owed(connection):
            # Closed now, and each time that it comes back and sends this first, it would never get what it is owed
            # itself; two that publish to each other would thus keep each other's queues full for ever.
            self._owed[connection] = None
            return WAIT
        if must_refuse:
            counters.refused_queue_full += 1
            incoming.refuse_publish(connection, packet, "the queue of a subscriber is full")
            return REJECT
        return WAIT if must_wait else ""

    # -- those who wait --

    def turn_ends(self) -> None:
        """If something has left a queue: those who wait try again."""
        drained = [connection for connection in self._owed if not _is_owed(connection)]
        for connection in drained:
            del self._owed[connection]
        if drained or (self._waiting and self._broker.backlog.has_made_room):
            self._go_on_soon()
        self._broker.backlog.has_made_room = False

    def _go_on_soon(self) -> None:
        if self._waiting or self.is_store_failing:
            self._broker.timers.at(0.0, self._go_on)

    def _go_on(self, now: float) -> None:
        for connection, waiting in list(self._waiting.items()):
            try:
                self._go_on_with(connection, waiting, now)
            except ProtocolError as error:  # a topic with too many levels is only found out now
                connection.fail(error)
            if connection.rests and connection.is_paused:
                connection.rest_on_commit()  # what it was sent before is still there, so that it isn't named as ready
            if not waiting.publishes or connection.is_closing:
                self.forget(connection)

    def _go_on_with(self, connection: Connection, waiting: _Waiting, now: float) -> None:
        publishes = waiting.publishes
        while publishes and not connection.is_closing:
            packet, topic = publishes[0]
            verdict = self._verdict(connection, packet, topic)
            if verdict == WAIT:
                return
            publishes.popleft()
            waiting.bytes -= len(packet.payload)
            if verdict == "":
                incoming.take_publish(connection, packet, topic, now)

    def forget(self, connection: Connection) -> None:
        """It has nothing that waits any more. What a lost connection had is not acknowledged, and will be sent
        again [MQTT-4.4.0-1]."""
        if self._owed:
            self._owed.pop(connection, None)
        if self._waiting and self._waiting.pop(connection, None) is not None:
            connection.hold(HELD_BY_QUEUE, False)
            self._switch()

    # -- the store --

    def store_failed(self) -> None:
        """The batch that is being written can't be, for now."""
        broker = self._broker
        self.is_store_failing = self.is_on = True
        if broker.changes is not None:
            broker.changes.is_stuck = True
        for connection in list(broker.connections):
            if connection.held or connection.rests:
                _drop_held(connection)

    def store_recovered(self) -> None:
        """It can be, and is."""
        broker = self._broker
        self.is_store_failing = False
        if broker.changes is not None:
            broker.changes.is_stuck = False
        self.update()
        broker.timers.at(0.0, self._catch_up)

    def _catch_up(self, now: float) -> None:
        """Send what had to rest on a commit meanwhile."""
        for connection in list(self._broker.connections):
            if connection.session is not None and not connection.is_closing:
                try:
                    _store_recovered(connection, now)
                except ReadError as error:
                    connection.close(ReasonCode.UNSPECIFIED_ERROR, str(error))
        self._broker.queues.serve_all(now)


def _full_queue(route: Route) -> DurableQueue | None:
    """The durable queue that gets it and has no room, if there is one."""
    for group in route.groups:
        if isinstance(group, DurableQueue) and group.settings.full != DROP_OLDEST and not group.has_room():
            return group
    return None


def _is_owed(connection: Connection) -> bool:
    session = connection.session
    return session is not None and bool(session.in_flight or session.queue.count)


def _has_room(session: Session, size: int) -> bool:
    queue, connection, limits = session.queue, session.connection, session.limits
    if connection is not None and not queue.count and len(session.in_flight) < connection.window:
        return True  # it isn't queued at all
    return queue.count < limits.max_queued_messages and queue.bytes + size <= limits.max_queued_bytes


def _drop_held(connection: Connection) -> None:
    """The store can't be written, so what rests on it can't be sent: whoever waits for it is disconnected, and
    sends again what it has no acknowledgement of."""
    was_greeting = bool(connection.held) and connection.held[0][1][0][0] == 0x20
    connection.held.clear()
    connection.out.clear()
    connection.rests = False
    if was_greeting:
        connection.send(p.Connack(False, connection.connack_code(ReasonCode.QUOTA_EXCEEDED), None))
        connection.abort("the store can't be written")
    else:
        connection.close(ReasonCode.QUOTA_EXCEEDED, "the store can't be written")


def _store_recovered(connection: Connection, now: float) -> None:
    """Send what was postponed; it rests on the commit of what led to it."""
    session = connection.session
    assert session is not None
    if connection.postponed:
        connection.rest_on_commit()
        for data in connection.postponed:
            connection.send_bytes(data)
        connection.postponed = []
    if connection.has_postponed_qos2:
        connection.has_postponed_qos2 = False
        connection.rest_on_commit()
        session.resend_qos2(now)
    session.fill_window(now)
