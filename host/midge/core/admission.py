"""From CONNECT to a session or to a refusal: who is asked, and what is answered (MQTT 5.0 §3.1.4, §4.12).
Knows no password and no token; what to do with a session is the broker's.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from midge.core.access import ANYBODY, Authenticator, Identity, Step
from midge.core.aliases import ReceivedAliases, SentAliases
from midge.core.passage import BRIDGE, OWN_BRIDGES
from midge.protocol import packets as p
from midge.protocol.errors import ProtocolError
from midge.protocol.reasons import ReasonCode

if TYPE_CHECKING:
    from midge.core.broker import Broker
    from midge.core.connection import Connection
    from midge.core.session import Session


# CONNACK of 3.1.1 and 3.1 (§3.2), session present or not.
_LET_IN: Final = b"\x20\x02\x00\x00"
_LET_IN_AGAIN: Final = b"\x20\x02\x01\x00"


class Exchange:
    """A connection's enhanced authentication: of its CONNECT, later of each re-authentication (5.0 §4.12)."""

    __slots__ = ("authenticator", "client_id", "connect", "method")

    def __init__(self, method: str, authenticator: Authenticator, connect: p.Connect, client_id: str) -> None:
        self.method = method
        self.authenticator: Authenticator | None = authenticator  # None while no exchange is under way
        self.connect: p.Connect | None = connect  # cleared when the client is let in
        self.client_id = client_id

    def properties(self, data: bytes | None) -> p.Properties:
        """[MQTT-4.12.0-5]: the method of CONNECT, in every AUTH and in CONNACK."""
        found: p.Properties = {"authentication_method": self.method}
        if data is not None:
            found["authentication_data"] = data
        return found


def count_in(broker: Broker, connection: Connection) -> None:
    """A new connection is counted, and refused if there are too many."""
    limits = broker.limits
    bound(connection, "max_connections", len(broker.connections), limits.max_connections, ReasonCode.SERVER_BUSY)
    count = broker.by_address.add(connection.address)
    limit = limits.max_connections_per_address
    bound(connection, "max_connections_per_address", count, limit, ReasonCode.QUOTA_EXCEEDED)


def bound(connection: Connection, name: str, count: int, limit: int, reason: ReasonCode) -> None:
    """If with a new connection there are more than *limit*, its CONNECT is answered with that. Past twice the
    limit it is closed unread: those that send no CONNECT must not take all file descriptors until it is due."""
    if count <= limit:
        return
    if connection.refusal is None:
        connection.broker.counters.meet(name)
        connection.refusal = reason, f"{name} ({limit}) is reached"
    if count > 2 * limit:
        connection.broker.counters.refused += 1
        connection.abort(f"refused: twice {name} ({limit}) is reached")


def connect(broker: Broker, connection: Connection, packet: p.Connect, now: float) -> None:
    """CONNECT: the connection gets its session, or is refused; both possibly later."""
    version = connection.version = 5 if packet.level == 5 else 4
    properties = packet.properties or {}
    method: str | None = None
    if properties:
        connection.max_packet_size = properties.get("maximum_packet_size", connection.max_packet_size)
        method = properties.get("authentication_method")
    if connection.refusal is not None:
        connection.refuse(*connection.refusal)
        return
    client_id = packet.client_id
    if not client_id:
        if version != 5 and not packet.clean_start:
            connection.refuse(
                ReasonCode.CLIENT_IDENTIFIER_NOT_VALID,
                "no client identifier, but a session to keep [MQTT-3.1.3-8]",
            )
            return
        client_id = "midge-" + secrets.token_hex(8)  # [MQTT-3.1.3-6]
    if packet.will is not None and packet.will.topic.count("/") >= broker.limits.max_topic_levels:
        broker.counters.meet("max_topic_levels")
        connection.refuse(ReasonCode.TOPIC_NAME_INVALID, "its will's topic has more than max_topic_levels")
        return
    if client_id.startswith(OWN_BRIDGES) and not connection.is_trusted:
        connection.refuse(ReasonCode.CLIENT_IDENTIFIER_NOT_VALID, f"{client_id!a} is the name of a bridge of ours")
        return
    access = connection.access
    if method is not None:
        authenticator = None if access is None else access.authenticator(method, connection.address)
        if authenticator is None:
            reason = f"the authentication method {method!a}, which we don't offer [MQTT-4.12.0-1]"
            connection.refuse(ReasonCode.BAD_AUTHENTICATION_METHOD, reason)
            return
        connection.exchange = Exchange(method, authenticator, packet, client_id)
        _step(broker, connection, connection.exchange, properties.get("authentication_data"), now)
    elif access is None or connection.is_trusted:
        admit(broker, connection, packet, client_id, Identity(packet.username) if packet.username else ANYBODY, now)
    else:
        _ask(broker, connection, packet, client_id)


def _ask(broker: Broker, connection: Connection, packet: p.Connect, client_id: str) -> None:
    """Ask whether the client may connect; the answer may come later."""

    def answer(reason: ReasonCode, identity: Identity) -> None:
        if connection.is_closing:
            return
        # What matters of the time is when CONNECT came.
        now = connection.last_received
        if reason == ReasonCode.SUCCESS:
            admit(broker, connection, packet, client_id, identity, now)
        else:
            _count_refusal(broker, reason)
            connection.refuse(reason, f"client {client_id!a} not let in: {_name(reason)}")
        connection.decided(now)

    assert connection.access is not None
    connection.wait_for_decision()
    connection.access.connect(packet, connection.address, answer)


def _count_refusal(broker: Broker, reason: ReasonCode) -> None:
    if reason == ReasonCode.CONNECTION_RATE_EXCEEDED:
        broker.counters.meet("max_failed_logins")


def _name(reason: ReasonCode) -> str:
    return reason.name.lower().replace("_", " ")


# -- enhanced authentication --


def receive_auth(broker: Broker, connection: Connection, packet: p.Auth, now: float) -> None:
    """AUTH: the next message of an exchange, or the first of a re-authentication (5.0 §4.12.1)."""
    exchange = connection.exchange
    properties = packet.properties or {}
    if exchange is None:
        raise ProtocolError(
            ReasonCode.PROTOCOL_ERROR, "AUTH, but no authentication method in CONNECT [MQTT-4.12.0-7]"
        )
    if properties.get("authentication_method") != exchange.method:
        raise ProtocolError(
            ReasonCode.PROTOCOL_ERROR, "AUTH with another authentication method than CONNECT [MQTT-4.12.0-5]"
        )
    is_first = packet.reason_code == ReasonCode.RE_AUTHENTICATE
    if is_first is (exchange.authenticator is not None):  # [MQTT-4.12.0-3]; §4.12.1
        raise ProtocolError(ReasonCode.PROTOCOL_ERROR, f"AUTH with reason 0x{packet.reason_code:02x} at this point")
    if is_first:
        access = connection.access
        authenticator = None if access is None else access.authenticator(exchange.method, connection.address)
        if authenticator is None:
            connection.close(ReasonCode.NOT_AUTHORIZED, "its authentication method is no longer offered")
            return
        exchange.authenticator = authenticator
    _step(broker, connection, exchange, properties.get("authentication_data"), now)


def _step(broker: Broker, connection: Connection, exchange: Exchange, data: bytes | None, now: float) -> None:
    assert exchange.authenticator is not None
    step = exchange.authenticator.receive(data)
    if step.reason == ReasonCode.CONTINUE_AUTHENTICATION:  # [MQTT-4.12.0-2]
        connection.send(p.Auth(step.reason, exchange.properties(step.data)))
        return
    exchange.authenticator = None
    packet, exchange.connect = exchange.connect, None
    if step.reason == ReasonCode.SUCCESS:
        if packet is not None:
            answer = exchange.properties(step.data)
            admit(broker, connection, packet, exchange.client_id, step.identity, now, answer)
        else:
            _re_authenticated(connection, exchange, step)
    elif packet is not None:  # [MQTT-4.12.0-4]
        _count_refusal(broker, step.reason)
        connection.refuse(step.reason, f"client {exchange.client_id!a} not let in: {_name(step.reason)}")
    else:  # [MQTT-4.12.1-2]
        connection.close(ReasonCode.NOT_AUTHORIZED, f"re-authentication failed: {_name(step.reason)}")


def _re_authenticated(connection: Connection, exchange: Exchange, step: Step) -> None:
    if step.identity.username != connection.identity.username:
        # Its subscriptions and queue are those of who it was.
        connection.close(ReasonCode.NOT_AUTHORIZED, "re-authentication as somebody else")
        return
    connection.identity = step.identity
    connection.send(p.Auth(ReasonCode.SUCCESS, exchange.properties(step.data)))


# -- let in --


def admit(
    broker: Broker,
    connection: Connection,
    packet: p.Connect,
    client_id: str,
    identity: Identity,
    now: float,
    answer: p.Properties | None = None,
) -> None:
    """The client may connect, as *identity*: give the connection its session. *answer* goes into CONNACK."""
    connection.identity = identity
    expires_at = identity.expires_at
    if expires_at is not None:
        connection.expiry_timer = broker.timers.at(
            expires_at, lambda _: connection.close(ReasonCode.MAXIMUM_CONNECT_TIME, "what let it in has expired")
        )
    broker.take_in(connection, packet, client_id, answer or {}, now)


def greet(connection: Connection, session: Session, packet: p.Connect, is_present: bool, answer: p.Properties) -> None:
    """Take over what CONNECT says of the connection, and answer with CONNACK."""
    limits = connection.limits
    connection.is_bridge = packet.is_bridge
    if packet.properties:
        connection.is_bridge |= any(name == BRIDGE for name, _ in packet.properties.get("user_property", ()))
    connection.keep_alive_s = packet.keep_alive_s
    if connection.version == 5:
        connection.aliases = ReceivedAliases(limits.topic_alias_maximum)
        asked = packet.properties or {}
        # [MQTT-3.3.4-9]; a client that names none gets our window, as a 3.1.1 client does.
        window_max = limits.max_inflight_messages
        if connection.is_bridge:
            # Another broker, with a disk: what it takes together shares a commit there. Four commits, two on each side,
            # lie between a QoS 2 message and its PUBCOMP; with 20 under way that was 1,250 a second at 4 ms each.
            window_max = max(window_max, limits.receive_maximum)
        connection.window = min(asked.get("receive_maximum", limits.max_inflight_messages), window_max)
        if not packet.client_id:
            answer["assigned_client_identifier"] = session.client_id
        # A keep alive of 0 is none at all: more than any limit [MQTT-3.2.2-21].
        if limits.max_keep_alive < (packet.keep_alive_s or 65_536) and limits.max_keep_alive < 65_535:
            answer["server_keep_alive"] = connection.keep_alive_s = limits.max_keep_alive
        if asked.get("session_expiry_interval", 0) > limits.max_session_expiry:
            answer["session_expiry_interval"] = limits.max_session_expiry
        answer["receive_maximum"] = connection.receive_maximum
        answer["maximum_packet_size"] = limits.max_packet_size
        answer["topic_alias_maximum"] = limits.topic_alias_maximum
        if asked.get("request_response_information") == 1:  # [MQTT-3.1.2-28]
            _add_response_information(answer, session.client_id)
        aliases = min(asked.get("topic_alias_maximum", 0), limits.topic_alias_maximum)
        if aliases:  # [MQTT-3.1.2-27]
            connection.sent_aliases = SentAliases(aliases)
    if connection.sent_aliases is None and "maximum_packet_size" not in (packet.properties or {}):
        connection.plain_version = connection.version
    if connection.version == 5:
        connection.send(p.Connack(is_present, 0, answer))
    else:
        connection.send_bytes(_LET_IN_AGAIN if is_present else _LET_IN)
    connection.will = None if connection.is_closing else packet.will


def _add_response_information(answer: p.Properties, client_id: str) -> None:
    """Where the client may have its responses sent (MQTT 5.0 §3.2.2.3.15): a topic name that is its own."""
    topic = f"response/{client_id}"
    if not ("+" in topic or "#" in topic):
        answer["response_information"] = topic
