"""The table of properties against the specification's table 2-4."""

from __future__ import annotations

import pytest

from midge.protocol import packets as p
from midge.protocol.errors import MalformedPacket, ProtocolError
from midge.protocol.properties import decode_properties, encode_properties

# Table 2-4, typed in from the specification: identifier, type, packets.
TABLE_2_4 = """
01 byte    PUBLISH WILL
02 four    PUBLISH WILL
03 string  PUBLISH WILL
08 string  PUBLISH WILL
09 binary  PUBLISH WILL
0b varint  PUBLISH SUBSCRIBE
11 four    CONNECT CONNACK DISCONNECT
12 string  CONNACK
13 two     CONNACK
15 string  CONNECT CONNACK AUTH
16 binary  CONNECT CONNACK AUTH
17 byte    CONNECT
18 four    WILL
19 byte    CONNECT
1a string  CONNACK
1c string  CONNACK DISCONNECT
1f string  CONNACK PUBACK PUBREC PUBREL PUBCOMP SUBACK UNSUBACK DISCONNECT AUTH
21 two     CONNECT CONNACK
22 two     CONNECT CONNACK
23 two     PUBLISH
24 byte    CONNACK
25 byte    CONNACK
26 pair    CONNECT CONNACK PUBLISH WILL PUBACK PUBREC PUBREL PUBCOMP SUBSCRIBE SUBACK UNSUBSCRIBE UNSUBACK DISCONNECT AUTH
27 four    CONNECT CONNACK
28 byte    CONNACK
29 byte    CONNACK
2a byte    CONNACK
"""  # noqa: E501
ROWS = {
    int(row.split()[0], 16): (row.split()[1], set(row.split()[2:])) for row in TABLE_2_4.strip().split("\n")
}
VALUES = {
    "byte": b"\x01",
    "two": b"\x00\x01",
    "four": b"\x00\x00\x00\x01",
    "varint": b"\x01",
    "string": b"\x00\x01a",
    "binary": b"\x00\x01a",
    "pair": b"\x00\x01a\x00\x01b",
}
KINDS = sorted(ROWS[0x26][1])


def encoded(identifier: int) -> bytes:
    data = bytes((identifier,)) + VALUES[ROWS[identifier][0]]
    return bytes((len(data),)) + data


@pytest.mark.parametrize("kind", KINDS)
def test_a_packet_takes_exactly_the_properties_of_table_2_4(kind: str) -> None:
    for identifier in range(128):
        if identifier in ROWS and kind in ROWS[identifier][1]:
            properties = decode_properties(encoded(identifier), kind)
            assert len(properties) == 1
            assert encode_properties(properties, kind) == encoded(identifier)
        else:
            data = encoded(identifier) if identifier in ROWS else bytes((2, identifier, 0))
            with pytest.raises(MalformedPacket):
                decode_properties(data, kind)


def test_the_names_are_those_of_the_typed_dictionary_in_its_order() -> None:
    names: list[str] = []
    for identifier, (_, kinds) in ROWS.items():
        names += decode_properties(encoded(identifier), min(kinds))
    assert names == list(p.Properties.__annotations__)


@pytest.mark.parametrize("kind", KINDS)
def test_every_property_but_the_repeatable_ones_may_come_once(kind: str) -> None:
    for identifier, (_, kinds) in ROWS.items():
        if kind not in kinds:
            continue
        one = encoded(identifier)[1:]
        twice = bytes((2 * len(one),)) + one + one
        if identifier == 0x26 or (identifier == 0x0B and kind == "PUBLISH"):
            (values,) = decode_properties(twice, kind).values()
            assert isinstance(values, list)
            assert len(values) == 2
        else:
            with pytest.raises(ProtocolError):
                decode_properties(twice, kind)
