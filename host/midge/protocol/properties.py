"""The properties of MQTT 5.0 (§2.2.2): bytes to a dictionary and back, with every rule on their values.
Knows of packets only which properties each may have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from midge.protocol.errors import MalformedPacket, ProtocolError
from midge.protocol.packets import Properties
from midge.protocol.reasons import ReasonCode
from midge.protocol.topics import check_topic_name
from midge.protocol.wire import (
    decode_string,
    encode_binary,
    encode_string,
    encode_two_bytes,
    encode_variable_integer,
    read_binary,
    read_string,
    read_two_bytes,
    read_variable_integer,
)

# A reader takes the bytes, where the value starts, and where the properties end; it gives the value and
# where it ends. It may read past the end of the properties: who calls it looks afterwards.
_Reader = Callable[[bytes, int, int], tuple[Any, int]]


def _read_byte(data: bytes, at: int, end: int) -> tuple[int, int]:
    if at >= end:
        raise MalformedPacket("property ends too early")
    return data[at], at + 1


def _read_flag(data: bytes, at: int, end: int) -> tuple[int, int]:
    value, at = _read_byte(data, at, end)
    if value > 1:
        raise ProtocolError(
            ReasonCode.PROTOCOL_ERROR, f"property must be 0 or 1, not {value} (§3.1.2.11, §3.2.2.3)"
        )
    return value, at


def _read_four_bytes(data: bytes, at: int, end: int) -> tuple[int, int]:
    if at + 4 > end:
        raise MalformedPacket("property ends too early")
    return int.from_bytes(data[at : at + 4], "big"), at + 4


def _read_pair(data: bytes, at: int, end: int) -> tuple[tuple[str, str], int]:
    name, at = read_string(data, at, end)
    value, at = read_string(data, at, end)
    return (name, value), at


def _read_topic(data: bytes, at: int, end: int) -> tuple[str, int]:
    topic, at = read_string(data, at, end)
    check_topic_name(topic)  # [MQTT-3.3.2-14]
    return topic, at


def _not_zero(read: _Reader, reason_code: ReasonCode) -> _Reader:
    def read_not_zero(data: bytes, at: int, end: int) -> tuple[int, int]:
        value, at = read(data, at, end)
        if value == 0:
            raise ProtocolError(reason_code, "property must not be 0 (§3.1.2.11, §3.3.2.3, §3.8.2.1)")
        return value, at

    return read_not_zero


def _encode_flag(value: int) -> bytes:
    if value not in (0, 1):
        raise ValueError(f"{value!r} must be 0 or 1")
    return bytes((value,))


def _encode_four_bytes(value: int) -> bytes:
    if not 0 <= value <= 0xFFFF_FFFF:
        raise ValueError(f"{value!r} must be 0 to 4,294,967,295")
    return value.to_bytes(4, "big")


def _encode_pair(pair: tuple[str, str]) -> bytes:
    name, value = pair
    return encode_string(name) + encode_string(value)


class _Property:
    __slots__ = ("encode", "identifier", "is_list", "kinds", "name", "read")

    def __init__(
        self,
        identifier: int,
        name: str,
        read: _Reader,
        encode: Callable[[Any], bytes],
        kinds: str,
        is_list: bool = False,
    ) -> None:
        self.identifier = identifier
        self.name = name
        self.read = read
        self.encode = encode
        self.kinds = frozenset(kinds.split())
        self.is_list = is_list


_FLAG = (_read_flag, _encode_flag)
_TWO_BYTES = (read_two_bytes, encode_two_bytes)
_FOUR_BYTES = (_read_four_bytes, _encode_four_bytes)
_STRING = (read_string, encode_string)
_BINARY = (read_binary, encode_binary)

_MESSAGE = "PUBLISH WILL"
_ANSWERS = "CONNACK PUBACK PUBREC PUBREL PUBCOMP SUBACK UNSUBACK DISCONNECT AUTH"
_ALL = f"{_ANSWERS} {_MESSAGE} CONNECT SUBSCRIBE UNSUBSCRIBE"

# §2.2.2.2, table 2-4, in ascending order, which is the order they are encoded in.
_PROPERTIES = (
    _Property(1, "payload_format_indicator", *_FLAG, _MESSAGE),
    _Property(2, "message_expiry_interval", *_FOUR_BYTES, _MESSAGE),
    _Property(3, "content_type", *_STRING, _MESSAGE),
    _Property(8, "response_topic", _read_topic, encode_string, _MESSAGE),
    _Property(9, "correlation_data", *_BINARY, _MESSAGE),
    _Property(
        11,
        "subscription_identifier",
        _not_zero(read_variable_integer, ReasonCode.PROTOCOL_ERROR),
        encode_variable_integer,
        "PUBLISH SUBSCRIBE",
        is_list=True,
    ),
    _Property(17, "session_expiry_interval", *_FOUR_BYTES, "CONNECT CONNACK DISCONNECT"),
    _Property(18, "assigned_client_identifier", *_STRING, "CONNACK"),
    _Property(19, "server_keep_alive", *_TWO_BYTES, "CONNACK"),
    _Property(21, "authentication_method", *_STRING, "CONNECT CONNACK AUTH"),
    _Property(22, "authentication_data", *_BINARY, "CONNECT CONNACK AUTH"),
    _Property(23, "request_problem_information", *_FLAG, "CONNECT"),
    _Property(24, "will_delay_interval", *_FOUR_BYTES, "WILL"),
    _Property(25, "request_response_information", *_FLAG, "CONNECT"),
    _Property(26, "response_information", *_STRING, "CONNACK"),
    _Property(28, "server_reference", *_STRING, "CONNACK DISCONNECT"),
    _Property(31, "reason_string", *_STRING, _ANSWERS),
    _Property(
        33,
        "receive_maximum",
        _not_zero(read_two_bytes, ReasonCode.PROTOCOL_ERROR),
        encode_two_bytes,
        "CONNECT CONNACK",
    ),
    _Property(34, "topic_alias_maximum", *_TWO_BYTES, "CONNECT CONNACK"),
    _Property(
        35,
        "topic_alias",
        _not_zero(read_two_bytes, ReasonCode.TOPIC_ALIAS_INVALID),  # [MQTT-3.3.2-8]
        encode_two_bytes,
        "PUBLISH",
    ),
    _Property(36, "maximum_qos", *_FLAG, "CONNACK"),
    _Property(37, "retain_available", *_FLAG, "CONNACK"),
    _Property(38, "user_property", _read_pair, _encode_pair, _ALL, is_list=True),
    _Property(
        39,
        "maximum_packet_size",
        _not_zero(_read_four_bytes, ReasonCode.PROTOCOL_ERROR),
        _encode_four_bytes,
        "CONNECT CONNACK",
    ),
    _Property(40, "wildcard_subscription_available", *_FLAG, "CONNACK"),
    _Property(41, "subscription_identifier_available", *_FLAG, "CONNACK"),
    _Property(42, "shared_subscription_available", *_FLAG, "CONNACK"),
)
_BY_KIND = {kind: {p.identifier: p for p in _PROPERTIES if kind in p.kinds} for kind in _ALL.split()}
_BY_NAME = {p.name: p for p in _PROPERTIES}
_RANK = {p.name: p.identifier for p in _PROPERTIES}


_USER_PROPERTY = _BY_NAME["user_property"].identifier  # which every kind may have


def read_properties(data: bytes, at: int, end: int, kind: str) -> tuple[Properties, int]:
    """The properties with their length at *at* of a packet that ends at *end*; and where they end."""
    length, at = read_variable_integer(data, at, end)
    if at + length > end:
        raise MalformedPacket("properties are longer than their packet (§2.2.2.1)")
    end = at + length
    if length and data[at] == _USER_PROPERTY:
        sole = _sole_user_property(data, at + 1, end)
        if sole is not None:
            return {"user_property": [sole]}, end
    allowed = _BY_KIND[kind]
    found: dict[str, Any] = {}
    while at < end:
        identifier = data[at]  # a variable byte integer, but there is none of two bytes
        prop = allowed.get(identifier)
        if prop is None:
            raise MalformedPacket(f"property 0x{identifier:02x} is not one of {kind} [MQTT-2.2.2-2]")
        value, at = prop.read(data, at + 1, end)
        name = prop.name
        if prop.is_list and (kind == "PUBLISH" or name == "user_property"):
            found.setdefault(name, []).append(value)
        elif name in found:
            raise ProtocolError(ReasonCode.PROTOCOL_ERROR, f"property {name} twice in {kind}")
        else:
            found[name] = [value] if prop.is_list else value
    return found, at  # type: ignore[return-value]


def _sole_user_property(data: bytes, at: int, end: int) -> tuple[str, str] | None:
    """The user property at *at*, if it is whole and the last one before *end*; else None, and nothing is decided.
    It is what each message has that crosses a bridge."""
    if at + 4 > end:
        return None
    name_at = at + 2
    value_at = name_at + (data[at] << 8 | data[at + 1]) + 2
    if value_at > end or value_at + (data[value_at - 2] << 8 | data[value_at - 1]) != end:
        return None
    return decode_string(data[name_at : value_at - 2]), decode_string(data[value_at:end])


def decode_properties(data: bytes, kind: str) -> Properties:
    """What `encode_properties` made, back; raises ProtocolError."""
    properties, at = read_properties(data, 0, len(data), kind)
    if at != len(data):
        raise MalformedPacket("bytes after the properties")
    return properties


def encode_properties(properties: Properties | None, kind: str) -> bytes:
    """*properties* with their length before them, for a packet of *kind* ("CONNECT", "WILL", "PUBLISH" ...).

    Raises ValueError for a property that *kind* can't have and for a value that can't be on the wire.
    """
    if kind not in _BY_KIND:
        raise ValueError(f"{kind} has no properties")
    if not properties:
        return b"\x00"
    if len(properties) == 1 and (pairs := properties.get("user_property")) is not None:
        # As below, in a third of the time: each message that crosses a bridge has its mark encoded.
        encoded = b"".join([b"\x26" + _encode_pair(pair) for pair in pairs])
        return encode_variable_integer(len(encoded)) + encoded
    parts: list[bytes] = []
    try:
        for name in sorted(properties, key=_RANK.__getitem__):
            prop = _BY_NAME[name]
            if kind not in prop.kinds:
                raise ValueError(f"{kind} has no property {name}")
            value = properties[name]  # type: ignore[literal-required]
            prefix = bytes((prop.identifier,))
            for one in value if prop.is_list else (value,):
                parts.append(prefix)
                parts.append(prop.encode(one))
    except KeyError as error:
        raise ValueError(f"there is no property {error}") from None
    encoded = b"".join(parts)
    return encode_variable_integer(len(encoded)) + encoded
