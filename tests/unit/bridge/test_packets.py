"""PUBLISH on its way out: another topic name, all else as it was."""

from __future__ import annotations

import pytest

from midge.bridge.packets import topic_field, with_topic
from midge.bridge.rules import Rules
from midge.config import BridgeTopic
from midge.protocol import packets as p
from midge.protocol.encoder import encode

PROPERTIES: p.Properties = {"content_type": "x", "user_property": [("a", "b")]}


@pytest.mark.parametrize("size", [0, 100, *range(117, 128), 16_375, 16_384, 70_000])
@pytest.mark.parametrize(("version", "properties"), [(4, None), (5, None), (5, PROPERTIES)])
def test_the_topic_name_is_exchanged_in_packets_of_all_sizes(
    size: int, version: int, properties: p.Properties | None
) -> None:
    rules = Rules.outward([BridgeTopic.model_validate(
        {"filter": "#", "direction": "out", "local_prefix": "kitchen/", "remote_prefix": "Küche/"}
    )])  # fmt: skip
    for qos, retain, dup in [(0, False, False), (0, True, False), (1, False, True), (2, True, False)]:
        fields = {"qos": qos, "retain": retain, "dup": dup, "packet_id": 300 if qos else 0, "properties": properties}
        packet = encode(p.Publish("kitchen/t", bytes(size), **fields), version)  # type: ignore[arg-type]
        field_at, end = topic_field(packet)
        assert packet[field_at + 2 : end] == b"kitchen/t"
        name = rules.name(packet[field_at + 2 : end])
        assert name is not None and not name.is_same
        wanted = encode(p.Publish("Küche/t", bytes(size), **fields), version)  # type: ignore[arg-type]
        assert with_topic(packet[0], name.field, packet[end:]) == wanted


def test_a_name_that_stays_the_same_is_known_as_such() -> None:
    rules = Rules.outward([BridgeTopic.model_validate({"filter": "a/#", "direction": "out"})])
    assert rules.name("a/ü".encode()) == ("a/ü", "\0\4a/ü".encode(), True)
    assert rules.name(b"b") is None and rules.name(b"b") is None
