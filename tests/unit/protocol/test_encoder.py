"""The encoder: what it shares between subscribers, and our own misuse. Its bytes are in test_vectors.py."""

from __future__ import annotations

from typing import Any

import pytest

from midge.protocol import packets as p
from midge.protocol.decoder import Decoder
from midge.protocol.encoder import encode, encode_properties, publish_parts


@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("size", [0, 1, 100, 115, 120, 125, 16_380, 3_000_000])
def test_parts_with_a_packet_identifier_between_are_the_packet(version: int, qos: int, size: int) -> None:
    properties: p.Properties | None = {"content_type": "text/plain"} if version == 5 else None
    encoded = encode_properties(properties, "PUBLISH")
    head, tail = publish_parts("a/b", bytes(size), encoded, qos, True, version)
    packet = p.Publish("a/b", bytes(size), qos, True, packet_id=0x1234 if qos else 0, properties=properties)
    assert head + (b"\x12\x34" if qos else b"") + tail == encode(packet, version)


def test_before_5_0_what_only_5_0_has_is_left_out() -> None:
    subscribe = p.Subscribe(1, [p.Subscription("a", 1, True, True, 2)], {"user_property": [("a", "b")]})
    assert encode(subscribe, 4) == encode(p.Subscribe(1, [p.Subscription("a", 1)]), 4)
    assert encode(p.Puback(1, 0x10, {"reason_string": "r"}), 4) == b"\x40\x02\x00\x01"
    assert encode(p.Unsuback(1, [0, 17]), 4) == b"\xb0\x02\x00\x01"
    assert encode(p.Disconnect(0x8E), 4) == b"\xe0\x00"
    will = p.Will("w", b"", properties={"will_delay_interval": 5})
    connect = p.Connect("c", True, 0, 4, will=will, properties={"receive_maximum": 5})
    assert encode(connect, 4) == encode(p.Connect("c", True, 0, 4, will=p.Will("w", b"")), 4)


def test_properties_ascend_whatever_order_they_were_given_in() -> None:
    backwards: p.Properties = {"user_property": [("k", "v")], "topic_alias": 3, "content_type": "t"}
    forwards: p.Properties = {"content_type": "t", "topic_alias": 3, "user_property": [("k", "v")]}
    assert encode_properties(backwards, "PUBLISH") == encode_properties(forwards, "PUBLISH")


def test_a_field_may_be_65535_bytes_long() -> None:
    topic = "ü" * 32_767 + "a"
    (packet,) = Decoder("client", 4).receive_data(encode(p.Publish(topic, b""), 4))
    assert packet == p.Publish(topic, b"")


LONG = "x" * 65_536


@pytest.mark.parametrize(
    ("packet", "version"),
    [
        (p.Publish(LONG, b""), 4),
        (p.Publish("a\0", b""), 4),
        (p.Publish("a\ud800", b""), 4),
        (p.Publish("a", b"", 3, packet_id=1), 4),
        (p.Publish("a", b"", dup=True), 4),
        (p.Publish("a", b"", 1), 4),
        (p.Publish("a", b"", 1, packet_id=65_536), 4),
        (p.Publish("a", b"", properties={"content_type": LONG}), 5),
        (p.Publish("a", b"", properties={"content_type": "\0"}), 5),
        (p.Publish("a", b"", properties={"topic_alias": 65_536}), 5),
        (p.Publish("a", b"", properties={"message_expiry_interval": 1 << 32}), 5),
        (p.Publish("a", b"", properties={"message_expiry_interval": -1}), 5),
        (p.Publish("a", b"", properties={"payload_format_indicator": 2}), 5),
        (p.Publish("a", b"", properties={"subscription_identifier": [1 << 28]}), 5),
        (p.Publish("a", b"", properties={"receive_maximum": 5}), 5),
        (p.Publish("a", b"", properties={"no_such_thing": 5}), 5),
        (p.Puback(0), 4),
        (p.Subscribe(1, []), 4),
        (p.Subscribe(1, [p.Subscription("a", 3)]), 4),
        (p.Subscribe(1, [p.Subscription("a", 1, retain_handling=3)]), 5),
        (p.Unsubscribe(1, []), 4),
        (p.Connect("c", True, 65_536), 4),
        (p.Connect("c", True, 0, password=b"p"), 4),
        (p.Connect("c", True, 0, 6), 6),
        (p.Connect("c", True, 0, 5, is_bridge=True), 5),
        (p.Connect("c", True, 0, will=p.Will("w", bytes(65_536))), 4),
        (p.Auth(0x18), 4),
        (p.Disconnect(256), 5),
    ],
)
def test_what_cannot_be_on_the_wire_is_a_value_error(packet: Any, version: int) -> None:
    with pytest.raises(ValueError):
        encode(packet, version)


def test_properties_of_a_packet_that_has_none_are_a_value_error() -> None:
    with pytest.raises(ValueError):
        encode_properties({}, "PINGREQ")


def test_a_password_without_a_user_name_is_for_5_0() -> None:
    packet = p.Connect("c", True, 0, 5, password=b"p")
    assert Decoder("server").receive_data(encode(packet, 5)) == [packet]


def test_auth_may_be_empty_from_a_server() -> None:
    assert encode(p.Auth(), 5) == b"\xf0\x00"
    assert Decoder("client", 5).receive_data(b"\xf0\x00") == [p.Auth()]
