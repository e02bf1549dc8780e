"""Packets to bytes. Raises ValueError for what can't be on the wire: that is our misuse, not the peer's.
Knows no stream; fields that a version doesn't have are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from midge.protocol import packets as p
from midge.protocol.packets import Packet, Properties
from midge.protocol.properties import encode_properties as encode_properties
from midge.protocol.wire import encode_binary, encode_string, encode_two_bytes, encode_variable_integer


def encode(packet: Packet, version: int) -> bytes:
    """*packet* in *version* (3, 4 or 5); a CONNECT is in its own, `level`."""
    return _ENCODERS[type(packet)](packet, version)


def publish_parts(
    topic: str, payload: bytes, properties_bytes: bytes, qos: int, retain: bool, version: int
) -> tuple[bytes, bytes]:
    """A PUBLISH, to be sent to many, as (up to the topic's end, after the packet identifier).

    *properties_bytes* are of `encode_properties` (5.0; else ignored). At QoS 0 the parts follow each other,
    at QoS 1 and 2 the packet identifier comes between them.
    """
    name = topic.encode()
    size = len(name)
    if size > 0xFFFF or "\0" in topic:
        raise ValueError(f"{topic[:100]!r} can't be a topic name [MQTT-4.7.3-2] [MQTT-4.7.3-3]")
    tail = properties_bytes + payload if version == 5 else payload
    length = size + len(tail) + (4 if qos else 2)
    first = 0x30 | qos << 1 | retain
    if length < 0x80:
        return bytes((first, length, size >> 8, size & 0xFF)) + name, tail
    return bytes((first,)) + encode_variable_integer(length) + size.to_bytes(2, "big") + name, tail


def _frame(first: int, body: bytes) -> bytes:
    return bytes((first,)) + encode_variable_integer(len(body)) + body


def _packet_id(packet_id: int) -> bytes:
    if not 1 <= packet_id <= 0xFFFF:
        raise ValueError(f"packet identifier {packet_id!r} must be 1 to 65,535")
    return packet_id.to_bytes(2, "big")


def _connect(packet: p.Connect, _version: int) -> bytes:
    version = packet.level
    if version not in (3, 4, 5) or (packet.is_bridge and version == 5):
        raise ValueError(f"there is no protocol level {version} (bridge: {packet.is_bridge})")
    will = packet.will
    flags = packet.clean_start << 1 | (packet.username is not None) << 7 | (packet.password is not None) << 6
    if flags & 0xC0 == 0x40 and version != 5:
        raise ValueError("a password needs a user name before 5.0 [MQTT-3.1.2-22]")
    if will is not None:
        flags |= 0x04 | _qos(will.qos) << 3 | will.retain << 5
    body = [
        encode_string("MQIsdp" if version == 3 else "MQTT"),
        bytes((version | packet.is_bridge << 7, flags)),
        encode_two_bytes(packet.keep_alive_s),
    ]
    if version == 5:
        body.append(encode_properties(packet.properties, "CONNECT"))
    body.append(encode_string(packet.client_id))
    if will is not None:
        if version == 5:
            body.append(encode_properties(will.properties, "WILL"))
        body.append(encode_string(will.topic))
        body.append(encode_binary(will.payload))
    if packet.username is not None:
        body.append(encode_string(packet.username))
    if packet.password is not None:
        body.append(encode_binary(packet.password))
    return _frame(0x10, b"".join(body))


def _connack(packet: p.Connack, version: int) -> bytes:
    body = bytes((packet.session_present, packet.reason_code))
    return _frame(0x20, body + _properties(packet.properties, "CONNACK", version))


def _publish(packet: p.Publish, version: int) -> bytes:
    qos = _qos(packet.qos)
    if packet.dup and not qos:
        raise ValueError("dup at QoS 0 [MQTT-3.3.1-2]")
    properties = _properties(packet.properties, "PUBLISH", version)
    head, tail = publish_parts(packet.topic, packet.payload, properties, qos, packet.retain, version)
    if packet.dup:
        head = bytes((head[0] | 0x08,)) + head[1:]
    return head + _packet_id(packet.packet_id) + tail if qos else head + tail


def _qos(qos: int) -> int:
    if qos not in (0, 1, 2):
        raise ValueError(f"QoS {qos!r} must be 0, 1 or 2")
    return qos


def _properties(properties: Properties | None, kind: str, version: int) -> bytes:
    return encode_properties(properties, kind) if version == 5 else b""


def _acknowledgement(first: int, kind: str) -> Callable[[Any, int], bytes]:
    start = bytes((first, 2))

    def encode_acknowledgement(packet: p.Puback | p.Pubrec | p.Pubrel | p.Pubcomp, version: int) -> bytes:
        if version != 5 or not (packet.reason_code or packet.properties):
            return start + _packet_id(packet.packet_id)
        body = _packet_id(packet.packet_id) + bytes((packet.reason_code,))
        if packet.properties:
            body += encode_properties(packet.properties, kind)
        return _frame(first, body)

    return encode_acknowledgement


def _subscribe(packet: p.Subscribe, version: int) -> bytes:
    if not packet.subscriptions:
        raise ValueError("SUBSCRIBE needs a topic filter [MQTT-3.8.3-2]")
    body = [_packet_id(packet.packet_id), _properties(packet.properties, "SUBSCRIBE", version)]
    for wanted in packet.subscriptions:
        options = _qos(wanted.qos)
        if version == 5:
            options |= (
                wanted.no_local << 2
                | wanted.retain_as_published << 3
                | _retain_handling(wanted.retain_handling) << 4
            )
        body.append(encode_string(wanted.filter))
        body.append(bytes((options,)))
    return _frame(0x82, b"".join(body))


def _retain_handling(retain_handling: int) -> int:
    if retain_handling not in (0, 1, 2):
        raise ValueError(f"retain handling {retain_handling!r} must be 0, 1 or 2")
    return retain_handling


def _suback(packet: p.Suback, version: int) -> bytes:
    properties = _properties(packet.properties, "SUBACK", version)
    return _frame(0x90, _packet_id(packet.packet_id) + properties + bytes(packet.reason_codes))


def _unsubscribe(packet: p.Unsubscribe, version: int) -> bytes:
    if not packet.filters:
        raise ValueError("UNSUBSCRIBE needs a topic filter [MQTT-3.10.3-2]")
    body = [_packet_id(packet.packet_id), _properties(packet.properties, "UNSUBSCRIBE", version)]
    body += map(encode_string, packet.filters)
    return _frame(0xA2, b"".join(body))


def _unsuback(packet: p.Unsuback, version: int) -> bytes:
    body = _packet_id(packet.packet_id)
    if version == 5:
        body += encode_properties(packet.properties, "UNSUBACK") + bytes(packet.reason_codes)
    return _frame(0xB0, body)


def _pingreq(_packet: p.Pingreq, _version: int) -> bytes:
    return b"\xc0\x00"


def _pingresp(_packet: p.Pingresp, _version: int) -> bytes:
    return b"\xd0\x00"


def _disconnect(packet: p.Disconnect, version: int) -> bytes:
    if version != 5 or not (packet.reason_code or packet.properties):
        return b"\xe0\x00"
    body = bytes((packet.reason_code,))
    if packet.properties:
        body += encode_properties(packet.properties, "DISCONNECT")
    return _frame(0xE0, body)


def _auth(packet: p.Auth, version: int) -> bytes:
    if version != 5:
        raise ValueError("AUTH is of 5.0 only")
    if not (packet.reason_code or packet.properties):
        return b"\xf0\x00"
    return _frame(0xF0, bytes((packet.reason_code,)) + encode_properties(packet.properties, "AUTH"))


_ENCODERS: dict[type, Callable[[Any, int], bytes]] = {
    p.Connect: _connect,
    p.Connack: _connack,
    p.Publish: _publish,
    p.Puback: _acknowledgement(0x40, "PUBACK"),
    p.Pubrec: _acknowledgement(0x50, "PUBREC"),
    p.Pubrel: _acknowledgement(0x62, "PUBREL"),
    p.Pubcomp: _acknowledgement(0x70, "PUBCOMP"),
    p.Subscribe: _subscribe,
    p.Suback: _suback,
    p.Unsubscribe: _unsubscribe,
    p.Unsuback: _unsuback,
    p.Pingreq: _pingreq,
    p.Pingresp: _pingresp,
    p.Disconnect: _disconnect,
    p.Auth: _auth,
}
