"""What holds for every packet, every stream and every way to cut it (hypothesis)."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midge.protocol import packets as p
from midge.protocol.decoder import Decoder
from midge.protocol.encoder import encode
from midge.protocol.errors import ProtocolError

from .strategies import VERSIONS, connects, from_client, from_server

PEERS = {"server": from_client, "client": from_server}
every_version = pytest.mark.parametrize("version", VERSIONS)
both_roles = pytest.mark.parametrize("role", PEERS)
# The same few examples each time; `EXAMPLES=5000 pytest ...` is the long search, of new ones.
EXAMPLES = int(os.environ.get("EXAMPLES", "0"))
searched = settings(max_examples=EXAMPLES or 120, deadline=None, derandomize=not EXAMPLES)
thorough = settings(max_examples=EXAMPLES or 40, deadline=None, derandomize=not EXAMPLES)


def expanded(packets: list[Any], version: int) -> list[Any]:
    """*packets* with every run as its packets one by one."""
    found: list[Any] = []
    for packet in packets:
        found += packet.publishes(version) if isinstance(packet, p.PublishRun) else [packet]
    return found


def receive(decoder: Decoder, chunks: list[bytes]) -> list[Any]:
    found: list[Any] = []
    for chunk in chunks:
        packets = decoder.receive_data(bytes(chunk))
        found += expanded(packets, decoder.version or 0)
    return found


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(bounds)]


@every_version
@both_roles
@thorough
@given(st.data())
def test_what_is_encoded_decodes_to_the_same_packet(version: int, role: Any, data: st.DataObject) -> None:
    packet = data.draw(PEERS[role](version))
    decoder = Decoder(role, version)
    assert receive(decoder, [encode(packet, version)]) == [packet]
    assert decoder.error is None


@every_version
@thorough
@given(st.data())
def test_connect_decodes_to_itself_and_sets_the_version(version: int, data: st.DataObject) -> None:
    packet = data.draw(connects(version))
    decoder = Decoder("server")
    assert decoder.receive_data(encode(packet, version)) == [packet]
    assert (decoder.error, decoder.version) == (None, version)


@every_version
@both_roles
@thorough
@given(st.data())
def test_however_a_stream_is_cut_its_packets_are_the_same(
    version: int, role: Any, data: st.DataObject
) -> None:
    packets = data.draw(st.lists(PEERS[role](version), max_size=6))
    stream = b"".join(encode(packet, version) for packet in packets)
    if role == "server":
        connect = data.draw(connects(version))
        packets = [connect, *packets]
        stream = encode(connect, version) + stream
    decoder = Decoder(role, None if role == "server" else version)
    assert receive(decoder, cut(stream, data.draw(st.lists(st.integers(0, 10_000), max_size=12)))) == packets
    assert decoder.error is None


@every_version
@both_roles
@thorough
@given(st.data())
def test_a_received_publish_keeps_its_bytes_and_where_its_packet_identifier_is(
    version: int, role: Any, data: st.DataObject
) -> None:
    packets = data.draw(st.lists(PEERS[role](version), max_size=4))
    stream = b"".join(encode(packet, version) for packet in packets)
    for received, sent in zip(receive(Decoder(role, version), [stream]), packets, strict=True):
        if isinstance(sent, p.Publish):
            assert received.wire == encode(sent, version)
            at = received.packet_id_at
            assert (at > 0) == (sent.qos > 0)
            assert sent.qos == 0 or received.wire[at : at + 2] == sent.packet_id.to_bytes(2, "big")


@both_roles
@searched
@given(st.sampled_from((None, *VERSIONS)), st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
def test_no_bytes_whatever_raise(role: Any, version: int | None, data: bytes, places: list[int]) -> None:
    decoder = Decoder(role, version if role == "server" else version or 4)
    for chunk in cut(data, places):
        decoder.receive_data(chunk)
    assert decoder.error is None or isinstance(decoder.error, ProtocolError)


@every_version
@both_roles
@searched
@given(st.data())
def test_no_changed_packet_raises_and_where_it_is_cut_makes_no_difference(
    version: int, role: Any, data: st.DataObject
) -> None:
    packets = data.draw(st.lists(PEERS[role](version), min_size=1, max_size=3))
    stream = bytearray(b"".join(encode(packet, version) for packet in packets))
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=3)):
        stream[place % len(stream)] = value
    whole, bytewise = Decoder(role, version), Decoder(role, version)
    found = receive(whole, [bytes(stream)])
    assert receive(bytewise, [stream[at : at + 1] for at in range(len(stream))]) == found
    assert str(whole.error) == str(bytewise.error)


@every_version
@both_roles
@thorough
@given(st.data())
def test_what_was_accepted_from_changed_bytes_encodes_and_decodes_to_itself(
    version: int, role: Any, data: st.DataObject
) -> None:
    stream = bytearray(encode(data.draw(PEERS[role](version)), version))
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=3)):
        stream[place % len(stream)] = value
    for packet in receive(Decoder(role, version), [bytes(stream)]):
        assert receive(Decoder(role, version), [encode(packet, version)]) == [packet]
