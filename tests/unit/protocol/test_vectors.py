"""The host's codec against the vectors that all three implementations share (tests/vectors/README.md)."""

import json
from pathlib import Path

import pytest

from midge.protocol import packets as p
from midge.protocol.decoder import Decoder
from midge.protocol.encoder import encode
from midge.protocol.errors import MalformedPacket, ProtocolError
from midge.protocol.topics import check_topic_filter, check_topic_name, matches

VECTORS = Path(__file__).parents[2] / "vectors"
VERSIONS = {"packets-3.1.1.json": 4, "packets-5.0.json": 5}
CLASSES = {
    kind.__name__.upper(): kind
    for kind in (
        p.Connect,
        p.Connack,
        p.Publish,
        p.Puback,
        p.Pubrec,
        p.Pubrel,
        p.Pubcomp,
        p.Subscribe,
        p.Suback,
        p.Unsubscribe,
        p.Unsuback,
        p.Pingreq,
        p.Pingresp,
        p.Disconnect,
        p.Auth,
    )
}
RECEIVERS = {"client": ("server",), "server": ("client",), "any": ("server", "client")}


def load(file):
    return json.loads((VECTORS / file).read_text(encoding="utf-8"))


def stateless(kind):
    """(version, our role, vector) of all vectors that have *kind* ("packet" or "error") and need no memory."""
    return [
        pytest.param(version, role, vector, id=f"{file[8:-5]}-{vector['name']}-to-{role}")
        for file, version in VERSIONS.items()
        for vector in load(file)
        if kind in vector and "state" not in vector
        for role in RECEIVERS[vector["from"]]
    ]


def values(fields):
    """A vector's values as ours: "hex:..." as bytes, pairs as tuples, the will as a Will."""
    converted = {}
    for name, value in fields.items():
        if isinstance(value, str) and value.startswith("hex:"):
            value = bytes.fromhex(value[4:])
        elif name == "user_property":
            value = [tuple(pair) for pair in value]
        elif name == "properties":
            value = values(value)
        elif name == "will":
            value = p.Will(**values(value))
        elif name == "subscriptions":
            value = [p.Subscription(**wanted) for wanted in value]
        converted[name] = value
    return converted


def packet_of(vector):
    fields = values(vector["packet"])
    kind = fields.pop("type")
    if kind == "CONNECT":
        fields["level"] = fields.pop("protocol_level")
        fields["is_bridge"] = fields.pop("bridge", False)
        name = fields.pop("protocol_name")
        assert name == ("MQIsdp" if fields["level"] == 3 else "MQTT")
    return CLASSES[kind](**fields)


def decoder_for(version, role, data):
    """A server that waits for CONNECT if *data* is one, else one that has had it."""
    return Decoder(role, None if role == "server" and data[0] >> 4 == 1 else version)


def decoded(decoder, data):
    """All packets of *data*, runs expanded."""
    packets = []
    for packet in decoder.receive_data(data):
        packets += packet.publishes(decoder.version) if isinstance(packet, p.PublishRun) else [packet]
    return packets


@pytest.mark.parametrize(("version", "role", "vector"), stateless("packet"))
def test_valid_bytes_decode_to_their_packet(version, role, vector):
    data = bytes.fromhex(vector["hex"])
    decoder = decoder_for(version, role, data)
    packets = decoded(decoder, data)
    assert decoder.error is None
    assert packets == [packet_of(vector)]


@pytest.mark.parametrize(("version", "role", "vector"), stateless("packet"))
def test_a_packet_encodes_to_exactly_its_bytes(version, role, vector):
    packet = packet_of(vector)
    data = bytes.fromhex(vector["hex"])
    if vector.get("canonical", True):
        assert encode(packet, version) == data
    else:
        assert decoded(Decoder(role, version), encode(packet, version)) == [packet]


@pytest.mark.parametrize(("version", "role", "vector"), stateless("packet"))
def test_valid_bytes_cut_anywhere_give_no_packet_and_no_error(version, role, vector):
    data = bytes.fromhex(vector["hex"])
    cuts = range(len(data)) if len(data) < 1000 else [*range(64), len(data) // 2, len(data) - 1]
    for cut in cuts:
        decoder = decoder_for(version, role, data)
        assert decoder.receive_data(data[:cut]) == []
        assert decoder.error is None
        assert decoded(decoder, data[cut:]) == [packet_of(vector)]


@pytest.mark.parametrize(("version", "role", "vector"), stateless("error"))
def test_invalid_bytes_are_refused(version, role, vector):
    data = bytes.fromhex(vector["hex"])
    decoder = decoder_for(version, role, data)
    assert decoder.receive_data(data) == []
    assert isinstance(decoder.error, ProtocolError)
    if version == 5:  # 3.1.1 names no reason and distinguishes no kinds
        assert decoder.error.reason_code == vector["reason"], decoder.error
        assert isinstance(decoder.error, MalformedPacket) == (vector["error"] == "malformed")


def is_valid(check, text):
    try:
        check(text)
    except ProtocolError:
        return False
    return True


def test_topic_filters_match_as_specified():
    wrong = [row for row in load("topics.json")["matches"] if matches(row[0], row[1]) != row[2]]
    assert wrong == []


def test_topic_filters_are_valid_as_specified():
    wrong = [row for row in load("topics.json")["filters"] if is_valid(check_topic_filter, row[0]) != row[1]]
    assert wrong == []


def test_topic_names_are_valid_as_specified():
    wrong = [
        row for row in load("topics.json")["topic_names"] if is_valid(check_topic_name, row[0]) != row[1]
    ]
    assert wrong == []
