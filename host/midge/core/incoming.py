"""What each packet of a client leads to, once it is let in (MQTT 5.0 §3.3 to §3.15): decisions asked of the broker,
answers left with the connection. Knows neither bytes in nor turns; CONNECT's own decisions are `admission`'s.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from midge.core import admission
from midge.core.message import Message
from midge.core.routing import Subscription
from midge.protocol import packets as p
from midge.protocol.errors import ProtocolError
from midge.protocol.reasons import ReasonCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from midge.core.connection import Connection
    from midge.core.session import Session

_PACKET_ID = struct.Struct("!H")
_PINGRESP: Final = b"\xd0\x00"
_WITH_WILL: Final = int(ReasonCode.DISCONNECT_WITH_WILL_MESSAGE)


def on_connect(connection: Connection, packet: p.Connect, now: float) -> None:
    if connection.session is not None or connection.is_being_decided:
        raise ProtocolError(ReasonCode.PROTOCOL_ERROR, "second CONNECT [MQTT-3.1.0-2]")
    admission.connect(connection.broker, connection, packet, now)


def on_publish(connection: Connection, packet: p.Publish, now: float) -> None:
    session = connection.session
    assert session is not None
    broker = connection.broker
    topic = packet.topic if connection.version != 5 else connection.aliases.resolve(packet)
    qos = packet.qos
    if qos == 0:
        if broker.may_publish(connection, topic):
            broker.counters.publish_received += 1
            broker.counters.publish_bytes_received += len(packet.payload)
            message = Message.published(packet, topic, now, connection.version)
            if message.retain and not broker.retaining.has_room(message):
                message.retain = False  # QoS 0 can't be refused: passed on, not kept
            broker.publish(message, session, now)
            if message.key and broker.changes is not None and broker.changes.is_overdue:
                broker.hold_by_store(connection)  # nothing else slows it down: it waits for no acknowledgement
        return
    packet_id = packet.packet_id
    if qos == 2 and packet_id in session.received:
        # A duplicate: answered, not routed [MQTT-4.3.3-10].
        if not connection.postpone(b"\x50\x02" + _PACKET_ID.pack(packet_id)):
            connection.acknowledge(b"\x50", packet_id)
            connection.rests = connection.rests or session.changes is not None
        return
    under_way = connection.unacknowledged + connection.unreleased
    if broker.pressure.is_on:
        under_way += broker.pressure.waiting(connection)
    if under_way >= connection.receive_maximum and connection.version == 5:
        raise ProtocolError(ReasonCode.RECEIVE_MAXIMUM_EXCEEDED, "more than Receive Maximum under way")
    kind = b"\x40" if qos == 1 else b"\x50"
    if not broker.may_publish(connection, topic):
        # 3.1.1 knows no refusal: acknowledged, as [MQTT-3.3.5-2] leaves it, and not routed.
        connection.acknowledge(kind, packet_id, ReasonCode.NOT_AUTHORIZED)
        return
    broker.counters.publish_received += 1
    broker.counters.publish_bytes_received += len(packet.payload)
    message = Message.published(packet, topic, now, connection.version)
    if message.retain and not (broker.retaining.has_room(message) or connection.is_trusted):
        _refuse_publish(connection, kind, packet_id, ReasonCode.QUOTA_EXCEEDED, "no room for another retained message")
        return
    if broker.pressure.is_on and not broker.pressure.admits(connection, packet, topic):
        return
    _route(connection, message, session, packet, now)


def take_publish(connection: Connection, packet: p.Publish, topic: str, now: float) -> None:
    """There is room at last for a message that has waited (see `Pressure`)."""
    session = connection.session
    assert session is not None
    if connection.broker.session_may_publish(session, topic):
        _route(connection, Message.published(packet, topic, now, connection.version), session, packet, now)
    else:
        connection.acknowledge(b"\x40" if packet.qos == 1 else b"\x50", packet.packet_id, ReasonCode.NOT_AUTHORIZED)


def _route(connection: Connection, message: Message, session: Session, packet: p.Publish, now: float) -> None:
    """QoS 1 and 2: take *message* over, and acknowledge it."""
    matched = connection.broker.publish(message, session, now)
    qos = packet.qos
    if not matched and message.topic.startswith("$queue/"):
        refuse_publish(connection, packet, "there are max_queues durable queues")
        return
    if qos == 2:
        session.receive(packet.packet_id)
        connection.unreleased += 1
    else:
        connection.unacknowledged += 1
    # Retained without payload it has no key, but what it took away must not come back.
    if message.key or message.retain or (qos == 2 and session.changes is not None):
        connection.rests = True
    changes = connection.broker.changes
    if message.key and changes is not None and changes.is_overdue:
        connection.broker.hold_by_store(connection)
    reason_code = 0 if matched else ReasonCode.NO_MATCHING_SUBSCRIBERS
    connection.acknowledge(b"\x40" if qos == 1 else b"\x50", packet.packet_id, reason_code)


def refuse_publish(connection: Connection, packet: p.Publish, reason: str) -> None:
    """There is no room for it."""
    kind = b"\x40" if packet.qos == 1 else b"\x50"
    _refuse_publish(connection, kind, packet.packet_id, ReasonCode.QUOTA_EXCEEDED, reason)


def _refuse_publish(connection: Connection, kind: bytes, packet_id: int, reason_code: ReasonCode, reason: str) -> None:
    """QoS 1 and 2. 3.1.1 has no answer but success: the connection is closed, and nothing acknowledged."""
    if connection.version == 5:
        connection.acknowledge(kind, packet_id, reason_code)
    else:
        connection.close(reason_code, reason)


def on_puback(connection: Connection, packet: p.Puback, now: float) -> None:
    session = connection.session
    assert session is not None
    session.puback(packet.packet_id, now, packet.reason_code)


def on_pubrec(connection: Connection, packet: p.Pubrec, now: float) -> None:
    session = connection.its_session()
    is_refused = packet.reason_code >= 0x80
    if session.pubrec(packet.packet_id, packet.reason_code, now):
        if not (is_refused or connection.postpone(b"\x62\x02" + _PACKET_ID.pack(packet.packet_id))):
            connection.send_pubrel(packet.packet_id)
    elif not (is_refused or packet.packet_id in session.avoided):  # else it would act on what another has got
        connection.send(p.Pubrel(packet.packet_id, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND))


def on_pubrel(connection: Connection, packet: p.Pubrel, now: float) -> None:
    session = connection.its_session()
    if session.release(packet.packet_id):
        if connection.unreleased:
            connection.unreleased -= 1
        # A restart that forgot this PUBREL would take the next message with this identifier for a
        # duplicate.
        if connection.postpone(b"\x70\x02" + _PACKET_ID.pack(packet.packet_id)):
            return
        connection.rests = connection.rests or session.changes is not None
        connection.acknowledge(b"\x70", packet.packet_id)
    else:
        connection.acknowledge(b"\x70", packet.packet_id, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND)


def on_pubcomp(connection: Connection, packet: p.Pubcomp, now: float) -> None:
    connection.its_session().pubcomp(packet.packet_id, now)


def on_subscribe(connection: Connection, packet: p.Subscribe, now: float) -> None:
    session = connection.its_session()
    identifiers = (packet.properties or {}).get("subscription_identifier")
    codes: list[int] = []
    to_tell: dict[str, Subscription] = {}  # of what is retained; by topic filter, each of which may stand here twice
    for wanted in packet.subscriptions:
        refusal = connection.broker.check_subscription(
            connection, wanted.filter, wanted.qos, wanted.no_local, now
        )
        if refusal is None:
            subscription = Subscription(
                session,
                wanted.filter,
                wanted.qos,
                # A bridge is never sent what it sent, and is told what is retained, whatever its version.
                wanted.no_local or connection.is_bridge,
                wanted.retain_as_published or connection.is_bridge,
                identifiers[0] if identifiers else 0,
            )
            if subscription.is_bridges:
                connection.broker.set_bridge(session, True)
            is_new = connection.broker.subscribe(subscription, now)
            is_told = wanted.retain_handling == 0 or (wanted.retain_handling == 1 and is_new)
            if is_told or to_tell.pop(wanted.filter, None) is not None:
                to_tell[wanted.filter] = subscription
            codes.append(wanted.qos)
        else:
            codes.append(refusal if connection.version == 5 else 0x80)  # [MQTT-3.9.3-2]
    if session.changes is not None:
        connection.rest_on_commit()
    connection.send(p.Suback(packet.packet_id, codes, None))
    if session.consuming:
        connection.broker.queues.arrived(session, now)
    for subscription in () if connection.is_closing else to_tell.values():
        connection.broker.send_retained(subscription, now)


def on_unsubscribe(connection: Connection, packet: p.Unsubscribe, now: float) -> None:
    session = connection.its_session()
    codes = [
        ReasonCode.SUCCESS
        if connection.broker.unsubscribe(session, topic_filter)
        else ReasonCode.NO_SUBSCRIPTION_EXISTED
        for topic_filter in packet.filters
    ]
    if session.changes is not None:
        connection.rest_on_commit()
    connection.send(p.Unsuback(packet.packet_id, [int(code) for code in codes], None))


def on_pingreq(connection: Connection, packet: p.Pingreq, now: float) -> None:
    session = connection.its_session()
    if not (session.queue.count or session.is_reading):
        connection.send_bytes(_PINGRESP)
        return
    # The drained marker: PINGRESP follows what is queued for the session, so that a board that
    # sees it can sleep; at the latest after half the keep alive, so that the link isn't thought dead.
    connection.is_ping_waiting = True
    connection.ping_position = session.last_position
    if connection.ping_timer is None:
        wait_s = connection.keep_alive_s / 2 if connection.keep_alive_s else 30.0
        connection.ping_timer = connection.broker.timers.at(now + wait_s, connection.ping_waited)


def on_disconnect(connection: Connection, packet: p.Disconnect, now: float) -> None:
    if connection.session is None:  # while its enhanced authentication is under way
        connection.abort("disconnected by the client before it was let in")
        return
    session = connection.its_session()
    expiry_s = (packet.properties or {}).get("session_expiry_interval")
    if expiry_s is not None:
        if expiry_s and not session.expiry_s:
            raise ProtocolError(
                ReasonCode.PROTOCOL_ERROR,
                "DISCONNECT lengthens a session that was to end [MQTT-3.14.2-2]",
            )
        connection.broker.set_expiry(session, expiry_s)
    if packet.reason_code != _WITH_WILL:
        connection.will = None  # [MQTT-3.14.4-3]
    connection.abort("disconnected by the client")


def on_auth(connection: Connection, packet: p.Auth, now: float) -> None:
    admission.receive_auth(connection.broker, connection, packet, now)


HANDLERS: Final[dict[type, Callable[..., None]]] = {  # by the packet's class
    p.Connect: on_connect,
    p.Puback: on_puback,
    p.Pubrec: on_pubrec,
    p.Pubrel: on_pubrel,
    p.Pubcomp: on_pubcomp,
    p.Subscribe: on_subscribe,
    p.Unsubscribe: on_unsubscribe,
    p.Pingreq: on_pingreq,
    p.Disconnect: on_disconnect,
    p.Auth: on_auth,
}
