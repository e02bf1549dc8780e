"""The decoder: streams, runs, limits, and which side may send what. Single packets are in test_vectors.py."""

from __future__ import annotations

import time
from typing import Any

import pytest

from midge.protocol import packets as p
from midge.protocol.decoder import Decoder, decode_properties
from midge.protocol.encoder import encode, encode_properties
from midge.protocol.errors import MalformedPacket, ProtocolError
from midge.protocol.reasons import ReasonCode

CONNECT = encode(p.Connect("c", True, 60, 4), 4)
CONNECT_5 = encode(p.Connect("c", True, 60, 5), 5)


def publish(payload: bytes = b"x", topic: str = "a/b", version: int = 4, **fields: Any) -> bytes:
    return encode(p.Publish(topic, payload, **fields), version)


def error_of(decoder: Decoder, data: bytes) -> ProtocolError:
    decoder.receive_data(data)
    assert decoder.error is not None
    return decoder.error


# -- the first packet --


@pytest.mark.parametrize("level", [3, 4, 5])
def test_a_server_learns_the_version_from_connect(level: int) -> None:
    decoder = Decoder("server")
    assert decoder.version is None
    decoder.receive_data(encode(p.Connect("c", True, 60, level), level))
    assert decoder.version == level


def test_what_follows_connect_in_its_chunk_is_decoded_in_its_version() -> None:
    decoder = Decoder("server")
    subscribe = p.Subscribe(1, [p.Subscription("a", 1, retain_handling=2)], {"subscription_identifier": [9]})
    packets = decoder.receive_data(CONNECT_5 + encode(subscribe, 5) + publish(version=5))
    assert packets[1:] == [subscribe, p.PublishRun("a/b", publish(version=5), 1)]


@pytest.mark.parametrize("data", [publish(), b"\xc0\x00", b"GET / HTTP/1.1\r\n\r\n"])
def test_a_server_refuses_a_first_packet_that_is_not_connect(data: bytes) -> None:
    assert error_of(Decoder("server"), data).reason_code == ReasonCode.PROTOCOL_ERROR


def test_a_wrong_first_packet_is_refused_by_its_header_alone() -> None:
    assert error_of(Decoder("server"), publish(bytes(1000))[:2])


@pytest.mark.parametrize(
    ("level", "version"), [(0, 4), (2, 4), (6, 5), (0x7F, 5), (0x83, 4), (0x85, 5), (0xFF, 5)]
)
def test_an_unsupported_level_is_answered_in_the_nearest_version(level: int, version: int) -> None:
    decoder = Decoder("server")
    error = error_of(decoder, CONNECT[:8] + bytes((level,)) + CONNECT[9:])
    assert (error.reason_code, decoder.version) == (ReasonCode.UNSUPPORTED_PROTOCOL_VERSION, version)


def test_a_malformed_connect_still_tells_its_version() -> None:
    decoder = Decoder("server")
    error_of(decoder, CONNECT_5[:9] + b"\x03" + CONNECT_5[10:])  # the reserved flag
    assert decoder.version == 5


def test_3_1_takes_a_connect_that_lacks_the_user_name_its_flags_announce() -> None:
    data = bytes.fromhex("100f 0006 4d5149736470 03 c2 003c 0001 63")
    (packet,) = Decoder("server").receive_data(data)
    assert packet == p.Connect("c", True, 60, 3)


@pytest.mark.parametrize("first", [0x6A, 0x8A, 0xAA])
def test_3_1_takes_dup_in_a_resent_pubrel_subscribe_and_unsubscribe(first: int) -> None:
    body = {0x6A: b"\x00\x07", 0x8A: b"\x00\x07\x00\x01a\x00", 0xAA: b"\x00\x07\x00\x01a"}[first]
    data = bytes((first, len(body))) + body
    assert len(Decoder("server", 3).receive_data(data)) == 1
    assert isinstance(error_of(Decoder("server", 4), data), MalformedPacket)


def test_a_second_connect_is_handed_over() -> None:
    packets = Decoder("server").receive_data(CONNECT + CONNECT)
    assert [type(packet) for packet in packets] == [p.Connect, p.Connect]


def test_a_client_must_name_the_version() -> None:
    with pytest.raises(ValueError):
        Decoder("client")


def test_an_overlong_remaining_length_of_connect_is_an_error_in_5_0_only() -> None:
    def overlong(data: bytes) -> bytes:
        return data[:1] + bytes((data[1] | 0x80, 0)) + data[2:]

    assert len(Decoder("server").receive_data(overlong(CONNECT))) == 1
    assert isinstance(error_of(Decoder("server"), overlong(CONNECT_5)), MalformedPacket)
    assert len(Decoder("server", 4).receive_data(overlong(publish()))) == 1


# -- errors --


def test_packets_before_the_bad_one_are_handed_over_and_nothing_after_it() -> None:
    decoder = Decoder("server", 4)
    assert decoder.receive_data(b"\xc0\x00" + b"\xc1\x00" + b"\xc0\x00") == [p.Pingreq()]
    error = decoder.error
    assert isinstance(error, MalformedPacket)
    assert decoder.receive_data(b"\xc0\x00") == []
    assert decoder.error is error


def test_an_error_says_what_is_wrong_with_the_statements_id() -> None:
    error = error_of(Decoder("server", 4), b"\x36\x00")
    assert "[MQTT-3.3.1-4]" in str(error)
    assert error.message == str(error)


@pytest.mark.parametrize("data", [b"\x41\x7f", b"\x00\x7f", b"\x90\x7f", b"\xf0\x7f", b"\x36\x7f"])
def test_a_bad_header_is_refused_before_its_body_comes(data: bytes) -> None:
    assert error_of(Decoder("server", 4), data)


# -- sizes --


@pytest.mark.parametrize("payload_size", [0, 100, 20_000])
def test_a_packet_may_be_just_as_large_as_the_limit(payload_size: int) -> None:
    data = publish(bytes(payload_size))
    assert len(Decoder("server", 4, len(data)).receive_data(data)) == 1
    error = error_of(Decoder("server", 4, len(data) - 1), data)
    assert error.reason_code == ReasonCode.PACKET_TOO_LARGE


def test_a_packet_that_is_too_large_is_refused_by_its_header_alone() -> None:
    error = error_of(Decoder("server", 5, 1000), b"\x30\xff\xff\x03")
    assert error.reason_code == ReasonCode.PACKET_TOO_LARGE


def test_a_connect_that_is_too_large_is_refused_by_its_header_alone() -> None:
    error = error_of(Decoder("server", max_packet_size=1000), b"\x10\xff\xff\x03")
    assert error.reason_code == ReasonCode.PACKET_TOO_LARGE


def test_a_larger_packet_within_a_run_is_refused_after_the_run() -> None:
    decoder = Decoder("server", 4, 100)
    assert decoder.receive_data(publish() * 3 + publish(bytes(200))) == [
        p.PublishRun("a/b", publish() * 3, 3)
    ]
    assert decoder.error is not None
    assert decoder.error.reason_code == ReasonCode.PACKET_TOO_LARGE


def test_a_large_packet_in_many_chunks_costs_time_in_proportion_to_its_size() -> None:
    def seconds(size: int) -> float:
        data = publish(bytes(size))
        decoder = Decoder("server", 4)
        start = time.process_time()
        packets = [decoder.receive_data(data[at : at + 64]) for at in range(0, len(data), 64)]
        assert packets[-1]
        return time.process_time() - start

    # Ten times the size: 10 times the time if linear, 100 times if every chunk copies what came before. What
    # runs beside it on the machine takes its share of the caches.
    assert min(seconds(4_000_000) for _ in range(4)) < 60 * min(seconds(400_000) for _ in range(4))


# -- runs --


def test_a_burst_on_one_topic_is_one_run_over_one_slice_of_the_chunk() -> None:
    data = publish(b"1") + publish(b"22") + publish(bytes(200)) + publish(b"")
    (run,) = Decoder("server", 4).receive_data(data)
    assert isinstance(run, p.PublishRun)
    assert (run.topic, run.wire, run.count) == ("a/b", data, 4)
    assert [packet.payload for packet in run.publishes(4)] == [b"1", b"22", bytes(200), b""]
    assert [packet.wire for packet in run.publishes(4)] == [
        publish(b"1"), publish(b"22"), publish(bytes(200)), publish(b"")
    ]  # fmt: skip


@pytest.mark.parametrize(
    "other",
    [
        publish(topic="a/c"),
        publish(topic="a/bb"),
        publish(topic="a/"),
        publish(retain=True),
        publish(qos=1, packet_id=1),
        b"\xc0\x00",
    ],
)
def test_a_run_ends_where_another_topic_or_kind_begins(other: bytes) -> None:
    packets = Decoder("server", 4).receive_data(publish() * 2 + other + publish() * 3)
    assert next(packet.count for packet in packets if isinstance(packet, p.PublishRun)) == 2
    assert packets[-1] == p.PublishRun("a/b", publish() * 3, 3)
    assert len(packets) == 3


def test_in_5_0_a_publish_with_properties_is_in_no_run() -> None:
    plain = publish(version=5)
    rich = publish(version=5, properties={"content_type": "t"})
    packets = Decoder("server", 5).receive_data(plain + rich + plain)
    assert [type(packet) for packet in packets] == [p.PublishRun, p.Publish, p.PublishRun]


def test_a_run_ends_before_an_incomplete_packet_and_goes_on_in_the_next_chunk() -> None:
    data = publish() * 5
    size = len(publish())
    decoder = Decoder("server", 4)
    first = decoder.receive_data(data[: 2 * size + 4])
    assert first == [p.PublishRun("a/b", data[: 2 * size], 2)]
    assert decoder.receive_data(data[2 * size + 4 :]) == [p.PublishRun("a/b", data[2 * size :], 3)]


def test_a_packet_too_short_for_the_runs_topic_is_not_taken_into_the_run() -> None:
    # Its remaining length is 2, the bytes that follow it look like the rest of the topic.
    decoder = Decoder("server", 4)
    packets = decoder.receive_data(publish() + b"\x30\x02\x00\x03a/b")
    assert packets == [p.PublishRun("a/b", publish(), 1)]
    assert isinstance(decoder.error, MalformedPacket)


def test_a_client_is_handed_every_publish_by_itself() -> None:
    packets = Decoder("client", 4).receive_data(publish() * 3)
    assert packets == [p.Publish("a/b", b"x")] * 3


def test_one_topic_is_one_object_on_all_connections() -> None:
    (first,) = Decoder("server", 4).receive_data(publish(topic="the/same"))
    (second,) = Decoder("server", 4).receive_data(publish(topic="the/same"))
    assert isinstance(first, p.PublishRun)
    assert isinstance(second, p.PublishRun)
    assert first.topic is second.topic


def test_the_cache_of_topics_is_bounded() -> None:
    from midge.protocol import decoder

    receiver = Decoder("server", 4)
    filler = "x" * (decoder._TOPIC_CACHED_BYTES_MAX - 20)
    for number in range(decoder._TOPICS_BYTES_MAX // len(filler) + 100):
        receiver.receive_data(publish(topic=f"t/{number}/{filler}"))
    receiver.receive_data(publish(topic="long" * 1000))
    assert 0 < sum(map(len, decoder._topics)) <= decoder._TOPICS_BYTES_MAX
    assert max(map(len, decoder._topics)) <= decoder._TOPIC_CACHED_BYTES_MAX


def test_a_sole_plain_publish_is_told_from_everything_else() -> None:
    whole = publish(topic="sole/t", payload=b"x")
    for version, packet in ((4, whole), (5, publish(topic="sole/t", payload=b"\0x"))):  # 5.0: no properties
        receiver = Decoder("server", version)
        assert receiver.sole_publish(packet) in ("", "sole/t")
        receiver.receive_data(packet)  # from here on the topic name is known
        assert receiver.sole_publish(packet) == "sole/t"
        for other in (
            packet + b"\xc0\0",  # something follows
            packet[:-1],  # not complete
            b"\x31" + packet[1:],  # retain
            packet[:3] + b"\xff" + packet[4:],  # a topic name longer than the packet
            packet.replace(b"sole/t", b"never!"),
            b"",
            b"0",
        ):
            assert receiver.sole_publish(other) == ""
        receiver.receive_data(b"\x30")  # the beginning of another packet
        assert receiver.sole_publish(packet) == ""
    assert Decoder("server", 5).sole_publish(publish(topic="sole/t", payload=b"\x05xxxxx")) == ""  # properties
    assert Decoder("server", 5).sole_publish(publish(topic="sole/t")) == ""  # their length is missing
    assert Decoder("server", 4, max_packet_size=5).sole_publish(whole) == ""


def test_a_sole_puback_is_told_from_everything_else() -> None:
    receiver = Decoder("server", 4)
    assert receiver.sole_puback(b"\x40\x02\x01\x02") == 0x102
    for other in (b"\x40\x02\0\0", b"\x40\x03\0\1\0", b"\x40\x02\0", b"\x50\x02\0\1", b"\x40\x03\0\1", b""):
        assert receiver.sole_puback(other) == 0
    receiver.receive_data(b"\x30")
    assert receiver.sole_puback(b"\x40\x02\0\1") == 0


# -- what the store keeps --


def test_encoded_properties_decode_to_the_same() -> None:
    properties: p.Properties = {"content_type": "t", "user_property": [("a", "b"), ("a", "c")]}
    assert decode_properties(encode_properties(properties, "PUBLISH"), "PUBLISH") == properties
    assert decode_properties(encode_properties(None, "PUBLISH"), "PUBLISH") == {}


@pytest.mark.parametrize("data", [b"", b"\x05", b"\x00\x00", b"\x02\x7f\x00", b"\x01\x01"])
def test_broken_properties_are_an_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_properties(data, "PUBLISH")


# -- what no properties are --


def test_no_properties_are_none_but_in_connect_and_will_an_empty_dictionary() -> None:
    connect = p.Connect("c", True, 0, 5, will=p.Will("w", b""))
    (decoded,) = Decoder("server").receive_data(encode(connect, 5))
    assert isinstance(decoded, p.Connect)
    assert decoded.will is not None
    assert (decoded.properties, decoded.will.properties) == ({}, {})
    (suback,) = Decoder("client", 5).receive_data(b"\x90\x04\x00\x01\x00\x00")
    (publication,) = Decoder("client", 5).receive_data(publish(version=5))
    assert isinstance(suback, p.Suback)
    assert isinstance(publication, p.Publish)
    assert suback.properties is None
    assert publication.properties is None
