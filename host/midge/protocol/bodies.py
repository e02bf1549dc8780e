"""What follows the fixed header: one whole packet from its bytes, with every rule that they alone can break.
Knows no stream; PUBLISH is the decoder's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from midge.protocol import packets as p
from midge.protocol import reasons
from midge.protocol.errors import MalformedPacket, ProtocolError
from midge.protocol.packets import Properties
from midge.protocol.properties import read_properties
from midge.protocol.reasons import ReasonCode
from midge.protocol.topics import check_topic_filter, check_topic_name
from midge.protocol.wire import read_binary, read_string, read_two_bytes

# Every parser takes the bytes, where the body starts, where it ends, the protocol version (3, 4 or 5) and
# the reason codes that the sender may use, by kind of packet (5.0).
ReasonCodes = dict[str, frozenset[int]]
Parser = Callable[[bytes, int, int, int, ReasonCodes], p.Packet]

# (protocol name, protocol level): version. The high bit of the level is what Mosquitto's bridges set, in
# 3.1 and 3.1.1 only: 5.0 has no-local and retain-as-published for it.
_LEVELS: Final = {(b"MQIsdp", 3): 3, (b"MQTT", 4): 4, (b"MQTT", 5): 5, (b"MQIsdp", 0x83): 3, (b"MQTT", 0x84): 4}


def _error(message: str) -> ProtocolError:
    return ProtocolError(ReasonCode.PROTOCOL_ERROR, message)


def _check_end(at: int, end: int, kind: str) -> None:
    if at != end:
        raise MalformedPacket(f"{end - at} bytes after the last field of {kind}")


# -- CONNECT --


def protocol_level(data: bytes, at: int, end: int) -> int | None:
    """The level that a CONNECT asks for, without the bridge's bit; None if it ends before that."""
    try:
        _, at = read_binary(data, at, end)
    except MalformedPacket:
        return None
    return data[at] & 0x7F if at < end else None


def parse_connect(data: bytes, at: int, end: int, _version: int, _codes: ReasonCodes) -> p.Connect:
    name, at = read_binary(data, at, end)
    if at + 4 > end:
        raise MalformedPacket("CONNECT ends before the keep alive (§3.1.2)")
    level, flags = data[at], data[at + 1]
    version = _LEVELS.get((name, level))
    if version is None:
        raise ProtocolError(
            ReasonCode.UNSUPPORTED_PROTOCOL_VERSION,
            f"protocol {name!r} level {level} [MQTT-3.1.2-1] [MQTT-3.1.2-2]",
        )
    _check_connect_flags(flags, version)
    keep_alive_s, at = read_two_bytes(data, at + 2, end)
    properties: Properties = {}
    if version == 5:
        properties, at = read_properties(data, at, end, "CONNECT")
        _check_authentication(properties)
    client_id, at = read_string(data, at, end)
    will = None
    if flags & 0x04:
        will, at = _read_will(data, at, end, version, flags)
    # 3.1 §3.1: the remaining length takes precedence over the flags, the fields may be missing.
    may_lack = version == 3
    username = password = None
    if flags & 0x80 and not (may_lack and at == end):
        username, at = read_string(data, at, end)
    if flags & 0x40 and not (may_lack and at == end):
        password, at = read_binary(data, at, end)
    _check_end(at, end, "CONNECT")
    return p.Connect(
        client_id,
        bool(flags & 0x02),
        keep_alive_s,
        version,
        level > 0x7F,
        will,
        username,
        password,
        properties,
    )


def _check_connect_flags(flags: int, version: int) -> None:
    if flags & 0x01:
        raise MalformedPacket("reserved flag of CONNECT is set [MQTT-3.1.2-3]")
    if flags & 0x18 == 0x18:
        raise MalformedPacket("will QoS 3 [MQTT-3.1.2-12]")
    if not flags & 0x04 and flags & 0x38:
        raise MalformedPacket("will QoS or will retain without will flag [MQTT-3.1.2-11] [MQTT-3.1.2-13]")
    if version != 5 and flags & 0xC0 == 0x40:  # 5.0 allows it (§3.1.2.9)
        raise MalformedPacket("password without user name [MQTT-3.1.2-22]")


def _check_authentication(properties: Properties) -> None:
    if "authentication_data" in properties and "authentication_method" not in properties:
        raise _error("authentication data without authentication method (§3.1.2.11.10)")


def _read_will(data: bytes, at: int, end: int, version: int, flags: int) -> tuple[p.Will, int]:
    properties: Properties = {}
    if version == 5:
        properties, at = read_properties(data, at, end, "WILL")
    topic, at = read_string(data, at, end)
    payload, at = read_binary(data, at, end)
    check_topic_name(topic)
    return p.Will(topic, payload, flags >> 3 & 0x03, bool(flags & 0x20), properties), at


# -- the server's answers --


def parse_connack(data: bytes, at: int, end: int, version: int, codes: ReasonCodes) -> p.Connack:
    if at + 2 > end:
        raise MalformedPacket("CONNACK is too short (§3.2.2)")
    flags, reason_code = data[at], data[at + 1]
    if version == 3:
        flags = 0  # 3.1 §3.2: reserved, not used
    elif flags > 1:
        raise MalformedPacket("reserved flag of CONNACK is set [MQTT-3.2.2-1]")
    at += 2
    properties: Properties | None = None
    if version == 5:
        properties, at = read_properties(data, at, end, "CONNACK")
    _check_end(at, end, "CONNACK")
    if reason_code not in (codes["CONNACK"] if version == 5 else reasons.CONNACK_311):
        raise _error(f"reason code 0x{reason_code:02x} in CONNACK [MQTT-3.2.2-8]")
    if flags and reason_code:
        raise _error("session present in a CONNACK that refuses [MQTT-3.2.2-6]")
    return p.Connack(bool(flags), reason_code, properties or None)


def parse_suback(data: bytes, at: int, end: int, version: int, codes: ReasonCodes) -> p.Suback:
    packet_id, at, properties = _read_packet_id(data, at, end, version, "SUBACK")
    return p.Suback(
        packet_id,
        _read_codes(data, at, end, codes["SUBACK"] if version == 5 else reasons.SUBACK_311, "SUBACK"),
        properties,
    )


def parse_unsuback(data: bytes, at: int, end: int, version: int, codes: ReasonCodes) -> p.Unsuback:
    packet_id, at, properties = _read_packet_id(data, at, end, version, "UNSUBACK")
    if version != 5:
        _check_end(at, end, "UNSUBACK")
        return p.Unsuback(packet_id)
    return p.Unsuback(packet_id, _read_codes(data, at, end, codes["UNSUBACK"], "UNSUBACK"), properties)


def _read_codes(data: bytes, at: int, end: int, allowed: frozenset[int], kind: str) -> list[int]:
    found = list(data[at:end])
    if not found:
        raise _error(f"{kind} without a reason code (§3.9.3, §3.11.3)")
    for reason_code in found:
        if reason_code not in allowed:
            raise _error(f"reason code 0x{reason_code:02x} in {kind} [MQTT-3.9.3-2] [MQTT-3.11.3-2]")
    return found


# -- the client's requests --


def parse_subscribe(data: bytes, at: int, end: int, version: int, _codes: ReasonCodes) -> p.Subscribe:
    packet_id, at, properties = _read_packet_id(data, at, end, version, "SUBSCRIBE")
    subscriptions = []
    while at < end:
        topic_filter, at = read_string(data, at, end)
        if at == end:
            raise MalformedPacket("topic filter without its options (§3.8.3)")
        options = data[at]
        at += 1
        check_topic_filter(topic_filter)
        _check_options(options, version, topic_filter)
        subscriptions.append(
            p.Subscription(
                topic_filter, options & 0x03, bool(options & 0x04), bool(options & 0x08), options >> 4 & 0x03
            )
        )
    if not subscriptions:
        raise _error("SUBSCRIBE without a topic filter [MQTT-3.8.3-2]")
    return p.Subscribe(packet_id, subscriptions, properties)


def _check_options(options: int, version: int, topic_filter: str) -> None:
    if version != 5:
        if options > 2:
            raise MalformedPacket(f"requested QoS 0x{options:02x} [MQTT-3-8.3-4]")
    elif options & 0xC0:
        raise MalformedPacket("reserved bits of the subscription options are set [MQTT-3.8.3-5]")
    elif options & 0x03 == 0x03 or options & 0x30 == 0x30:
        raise _error("maximum QoS 3 or retain handling 3 (§3.8.3.1)")
    elif options & 0x04 and topic_filter.startswith("$share/"):
        raise _error("no local on a shared subscription [MQTT-3.8.3-4]")


def parse_unsubscribe(data: bytes, at: int, end: int, version: int, _codes: ReasonCodes) -> p.Unsubscribe:
    packet_id, at, properties = _read_packet_id(data, at, end, version, "UNSUBSCRIBE")
    filters = []
    while at < end:
        topic_filter, at = read_string(data, at, end)
        check_topic_filter(topic_filter)
        filters.append(topic_filter)
    if not filters:
        raise _error("UNSUBSCRIBE without a topic filter [MQTT-3.10.3-2]")
    return p.Unsubscribe(packet_id, filters, properties)


def _read_packet_id(
    data: bytes, at: int, end: int, version: int, kind: str
) -> tuple[int, int, Properties | None]:
    packet_id, at = read_two_bytes(data, at, end)
    properties: Properties | None = None
    if version == 5:
        properties, at = read_properties(data, at, end, kind)
    if packet_id == 0:
        raise _error(f"packet identifier 0 in {kind} [MQTT-2.2.1-3]")
    return packet_id, at, properties or None


# -- acknowledgements of PUBLISH --


def _read_acknowledgement(
    data: bytes, at: int, end: int, version: int, codes: ReasonCodes, kind: str
) -> tuple[int, int, Properties | None]:
    packet_id, at = read_two_bytes(data, at, end)
    reason_code = 0
    properties: Properties | None = None
    # §3.4.2.1, §3.4.2.2.1: the reason code and the properties may be left out from the end.
    if version == 5 and at < end:
        reason_code = data[at]
        at += 1
        if at < end:
            properties, at = read_properties(data, at, end, kind)
        if reason_code not in codes[kind]:
            raise _error(f"reason code 0x{reason_code:02x} in {kind} [MQTT-3.4.2-1]")
    _check_end(at, end, kind)
    if packet_id == 0:
        raise _error(f"packet identifier 0 in {kind} [MQTT-2.2.1-3]")
    return packet_id, reason_code, properties or None


def parse_puback(data: bytes, at: int, end: int, version: int, codes: ReasonCodes) -> p.Puback:
    return p.Puback(*_read_acknowledgement(data, at, end, version, codes, "PUBACK"))


def parse_pubrec(data: bytes, at: int, end: int, version: int, codes: ReasonCodes) -> p.Pubrec:
    return p.Pubrec(*_read_acknowledgement(data, at, end, version, codes, "PUBREC"))


def parse_pubrel(data: bytes, at: int, end: int, version: int, codes: ReasonCodes) -> p.Pubrel:
    return p.Pubrel(*_read_acknowledgement(data, at, end, version, codes, "PUBREL"))


def parse_pubcomp(data: bytes, at: int, end: int, version: int, codes: ReasonCodes) -> p.Pubcomp:
    return p.Pubcomp(*_read_acknowledgement(data, at, end, version, codes, "PUBCOMP"))


# -- PINGREQ, PINGRESP, DISCONNECT, AUTH --


def parse_pingreq(data: bytes, at: int, end: int, _version: int, _codes: ReasonCodes) -> p.Pingreq:
    _check_end(at, end, "PINGREQ")
    return p.Pingreq()


def parse_pingresp(data: bytes, at: int, end: int, _version: int, _codes: ReasonCodes) -> p.Pingresp:
    _check_end(at, end, "PINGRESP")
    return p.Pingresp()


def parse_disconnect(data: bytes, at: int, end: int, version: int, codes: ReasonCodes) -> p.Disconnect:
    reason_code = 0
    properties: Properties | None = None
    if version == 5 and at < end:
        reason_code = data[at]
        at += 1
        if at < end:  # §3.14.2.2.1
            properties, at = read_properties(data, at, end, "DISCONNECT")
        if reason_code not in codes["DISCONNECT"]:
            raise _error(f"reason code 0x{reason_code:02x} in this side's DISCONNECT [MQTT-3.14.2-1]")
    _check_end(at, end, "DISCONNECT")
    if properties and codes is reasons.FROM_SERVER and "session_expiry_interval" in properties:
        raise _error("session expiry interval in the server's DISCONNECT [MQTT-3.14.2-2]")
    return p.Disconnect(reason_code, properties or None)


def parse_auth(data: bytes, at: int, end: int, _version: int, codes: ReasonCodes) -> p.Auth:
    reason_code = 0
    properties: Properties | None = None
    if at < end:
        reason_code = data[at]
        properties, at = read_properties(data, at + 1, end, "AUTH")
        _check_end(at, end, "AUTH")
        if "authentication_method" not in properties:
            raise _error("AUTH without authentication method (§3.15.2.2.2)")
    # Else §3.15.2.1 allows the server's empty AUTH, though §3.15.2.2.2 asks for the method.
    if reason_code not in codes["AUTH"]:
        raise _error(f"reason code 0x{reason_code:02x} in this side's AUTH [MQTT-3.15.2-1]")
    return p.Auth(reason_code, properties)


# By the type of the packet (§2.1.2).
PARSERS: Final[dict[int, Parser]] = {
    1: parse_connect,
    2: parse_connack,
    4: parse_puback,
    5: parse_pubrec,
    6: parse_pubrel,
    7: parse_pubcomp,
    8: parse_subscribe,
    9: parse_suback,
    10: parse_unsubscribe,
    11: parse_unsuback,
    12: parse_pingreq,
    13: parse_pingresp,
    14: parse_disconnect,
    15: parse_auth,
}
