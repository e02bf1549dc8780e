"""The data types on the wire (MQTT 5.0 §1.5): integers, strings, binary data.
Knows no packet.
"""

from __future__ import annotations

from midge.protocol.errors import MalformedPacket

VARIABLE_INTEGER_MAX = 268_435_455  # four bytes of seven bits (§1.5.5)


def read_variable_integer(data: bytes, at: int, end: int) -> tuple[int, int]:
    """The variable byte integer at *at*, in as few bytes as it needs [MQTT-1.5.5-1]; and where it ends."""
    if at < end and data[at] < 0x80:
        return data[at], at + 1
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and shift:
                raise MalformedPacket("variable byte integer in more bytes than it needs [MQTT-1.5.5-1]")
            return value, at
        shift += 7
        if shift == 28:
            raise MalformedPacket("variable byte integer of more than four bytes (§1.5.5)")
    raise MalformedPacket("variable byte integer ends too early")


def read_two_bytes(data: bytes, at: int, end: int) -> tuple[int, int]:
    if at + 2 > end:
        raise MalformedPacket("packet ends too early")
    return data[at] << 8 | data[at + 1], at + 2


def read_binary(data: bytes, at: int, end: int) -> tuple[bytes, int]:
    """The binary data at *at* with its length before it; and where it ends."""
    if at + 2 > end:
        raise MalformedPacket("packet ends too early")
    start = at + 2
    at = start + (data[at] << 8 | data[at + 1])
    if at > end:
        raise MalformedPacket("length of a field goes beyond its packet")
    return data[start:at], at


def read_string(data: bytes, at: int, end: int) -> tuple[str, int]:
    """The UTF-8 string at *at* with its length before it; and where it ends."""
    # As `read_binary`, without the call: most of the time that 5.0's properties take is spent here.
    start = at + 2
    if start > end:
        raise MalformedPacket("packet ends too early")
    at = start + (data[at] << 8 | data[at + 1])
    if at > end:
        raise MalformedPacket("length of a field goes beyond its packet")
    return decode_string(data[start:at]), at


def decode_string(value: bytes) -> str:
    # Python's codec refuses surrogates and overlong forms [MQTT-1.5.4-1] and keeps U+FEFF [MQTT-1.5.4-3].
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise MalformedPacket(f"{value!r} is not UTF-8 [MQTT-1.5.4-1]") from None
    if "\0" in text:
        raise MalformedPacket(f"null character in {text!r} [MQTT-1.5.4-2]")
    return text


def encode_variable_integer(value: int) -> bytes:
    """Raises ValueError for what four bytes can't hold."""
    if 0 <= value < 0x80:
        return bytes((value,))
    if not 0 <= value <= VARIABLE_INTEGER_MAX:
        raise ValueError(f"{value!r} must be 0 to {VARIABLE_INTEGER_MAX:,}")
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def encode_two_bytes(value: int) -> bytes:
    """Raises ValueError for what two bytes can't hold."""
    if not 0 <= value <= 0xFFFF:
        raise ValueError(f"{value!r} must be 0 to 65,535")
    return value.to_bytes(2, "big")


def encode_binary(value: bytes) -> bytes:
    """*value* with its length before it. Raises ValueError for more than 65,535 bytes."""
    size = len(value)
    if size > 0xFFFF:
        raise ValueError(f"{size:,} bytes are more than the 65,535 that a field can have (§1.5.6)")
    return size.to_bytes(2, "big") + value


def encode_string(value: str) -> bytes:
    """*value* in UTF-8 with its length before it. Raises ValueError for what the wire doesn't allow."""
    if "\0" in value:
        raise ValueError(f"null character in {value!r} [MQTT-1.5.4-2]")
    return encode_binary(value.encode())  # UnicodeEncodeError is a ValueError
