"""The short way through the broker, for what most traffic is: plain messages that are passed on as they came.
Whatever needs more than a look at a topic name's route is left to `incoming`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from midge.core.changes import ReadError
from midge.core.message import Message
from midge.core.outgoing import send_qos0
from midge.core.passage import MARK_BYTES_MAX
from midge.protocol import packets as p
from midge.protocol.errors import ProtocolError
from midge.protocol.reasons import ReasonCode

if TYPE_CHECKING:
    from midge.core.connection import Connection
    from midge.core.routing import Route
    from midge.core.session import Session


def receive_sole(connection: Connection, session: Session, data: bytes, now: float) -> bool:
    """Whether *data* was a single small packet of the most frequent kinds, handled without any detour; else nothing
    was done."""
    first = data[0]
    try:
        if first == 0x40:
            packet_id = connection.decoder.sole_puback(data)
            if not packet_id:
                return False
            connection.broker.counters.messages_received += 1
            session.puback(packet_id, now)
            return True
        if first == 0x30:
            topic = connection.decoder.sole_publish(data)
            if not topic:
                return False
            connection.broker.counters.messages_received += 1
            _forward(connection, session, topic, data, 1, now)
            return True
        if first == 0x32:
            topic = connection.decoder.sole_publish_qos1(data)
            return bool(topic) and _take_over(connection, session, topic, data, now)
    except ProtocolError as error:
        connection.fail(error)
        return True
    except ReadError as failure:  # not "error": compiled, a name has one type in a function
        connection.close(ReasonCode.UNSPECIFIED_ERROR, str(failure))
        return True
    return False


def forward_run(connection: Connection, run: p.PublishRun, now: float) -> None:
    """Messages at QoS 0 that came together on one topic name."""
    session = connection.session
    if session is not None:
        connection.broker.counters.messages_received += run.count - 1  # the run itself was counted as one
        _forward(connection, session, run.topic, run.wire, run.count, now)


def _forward(connection: Connection, publisher: Session, topic: str, wire: bytes, count: int, now: float) -> None:
    """QoS 0, no retain, no properties, one topic name: the *count* packets are passed on as they came."""
    broker = connection.broker
    version = connection.version
    if (publisher.permissions is not None or topic[0] == "$") and not broker.session_may_publish(publisher, topic):
        return
    counters = broker.counters
    # Short packets have 4 bytes beside topic and payload (5.0: an empty property length more); those of
    # more than 127 bytes a byte or two more, which isn't worth looking at each.
    payload_bytes = len(wire) - count * (len(topic) + version)
    counters.publish_received += count
    counters.publish_bytes_received += payload_bytes
    copies = 0
    route = broker.routing.known.get(topic) or broker.routing.route(topic)
    if route.is_special or publisher.is_bridge:
        if not publisher.is_bridge and _forward_marked(connection, publisher, route, topic, wire, count):
            return
        for packet in p.PublishRun(topic, wire, count).publishes(version):
            broker.publish(Message(topic, packet.payload, 0), publisher, now)
        if route.history and broker.changes is not None and broker.changes.is_overdue:
            broker.hold_by_store(connection)
        return
    for target in route.targets:
        session = target.session
        if session is publisher:
            own = target.own
            if own is None:
                continue
            target = own
        peer = session.connection
        if peer is None:
            continue
        if peer.plain_version == version and not peer.is_paused and not target.identifiers:
            if not peer.out:
                broker.ready.append(peer)
            peer.out.append(wire)
            copies += 1
        else:
            for packet in p.PublishRun(topic, wire, count).publishes(version):
                message = Message(topic, packet.payload, 0)
                send_qos0(peer, message, False, target.identifiers, now)
    counters.publish_sent += count * copies
    counters.publish_bytes_sent += payload_bytes * copies
    counters.messages_sent += (count - 1) * copies  # whoever writes it counts one
    if route.groups:
        for packet in p.PublishRun(topic, wire, count).publishes(version):
            broker.publish_shared(Message(topic, packet.payload, 0), route.groups, now)
        if broker.changes is not None and broker.changes.is_overdue:
            broker.hold_by_store(connection)  # a durable queue keeps QoS 0 too


def _forward_marked(
    connection: Connection, publisher: Session, route: Route, topic: str, wire: bytes, count: int
) -> bool:
    """As `_forward`, on a topic that leaves over bridges: each packet has its mark spliced in for those who speak 5.0.
    False, and nothing done, if somebody needs more than that."""
    broker = connection.broker
    version = connection.version
    if route.history or route.groups or not broker.passage.has_room_for_mark(route.bridges):
        return False
    size_max = len(wire) + MARK_BYTES_MAX
    plain: list[Connection] = []
    marked: list[Connection] = []
    for target in route.targets:
        if target.session is publisher:
            own = target.own
            if own is None:
                continue
            target = own
        peer = target.session.connection
        if peer is None:
            continue
        if peer.is_paused or target.identifiers or peer.sent_aliases is not None or peer.max_packet_size < size_max:
            return False
        if peer.version != 5 and peer.plain_version != version:
            return False
        (marked if peer.version == 5 else plain).append(peer)
    if marked:
        packets = broker.passage.marked(topic, wire, version)
        for peer in marked:
            if not peer.out:
                broker.ready.append(peer)
            peer.out += packets
    for peer in plain:
        if not peer.out:
            broker.ready.append(peer)
        peer.out.append(wire)
    counters = broker.counters
    copies = len(marked) + len(plain)
    counters.publish_sent += count * copies
    counters.publish_bytes_sent += (len(wire) - count * (len(topic) + version)) * copies
    counters.messages_sent += (count - 1) * len(plain)  # whoever writes it counts one
    return True


def _take_over(connection: Connection, publisher: Session, topic: str, data: bytes, now: float) -> bool:
    """*data*: one PUBLISH at QoS 1, not retained, not a duplicate, without properties. False, and nothing done, if
    there is more to decide than its route says: rights, limits, bridges, histories, shared subscriptions."""
    broker = connection.broker
    route = broker.routing.known.get(topic)
    if route is None or route.is_special or route.groups or publisher.is_bridge or broker.pressure.is_on:
        return False
    if publisher.permissions is not None or topic[0] == "$":
        return False
    version = connection.version
    packet_id_at = 4 + (data[2] << 8 | data[3])
    tail = payload = data[packet_id_at + 2 :]
    if version == 5:
        if connection.unacknowledged + connection.unreleased >= connection.receive_maximum:
            return False
        payload = tail[1:]  # behind the empty properties
    counters = broker.counters
    counters.messages_received += 1
    counters.publish_received += 1
    counters.publish_bytes_received += len(payload)
    message = Message(topic, payload, 1)
    message.came_as(1, version, data[:packet_id_at], tail)
    is_matched = False
    for target in route.targets:
        if target.session is publisher:
            own = target.own
            if own is None:
                continue
            target = own
        is_matched = True
        if target.qos:
            target.session.deliver(message, 1, False, target.identifiers, now)
        elif target.session.connection is not None:
            send_qos0(target.session.connection, message, False, target.identifiers, now)
    connection.unacknowledged += 1
    if message.key:  # some session that lasts has it
        connection.rests = True
        if connection.is_paused:
            connection.rest_on_commit()
        if broker.changes is not None and broker.changes.is_overdue:
            broker.hold_by_store(connection)
    if is_matched or version != 5:
        connection.send_acknowledgement(b"\x40\x02" + data[packet_id_at : packet_id_at + 2])
    else:
        packet_id = data[packet_id_at] << 8 | data[packet_id_at + 1]
        connection.acknowledge(b"\x40", packet_id, ReasonCode.NO_MATCHING_SUBSCRIBERS)
    return True
