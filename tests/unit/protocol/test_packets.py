"""The packets' classes, the errors' and the reason codes'."""

from __future__ import annotations

import copy

import pytest

from midge.protocol import packets as p
from midge.protocol import reasons
from midge.protocol.errors import MalformedPacket, ProtocolError
from midge.protocol.reasons import ReasonCode


def test_packets_are_equal_by_class_and_fields() -> None:
    assert p.Puback(1) == p.Puback(1, 0, None)
    assert p.Puback(1) != p.Puback(2)
    assert p.Puback(1) != p.Pubrec(1)
    assert p.Pingreq() == p.Pingreq()
    assert p.Pingreq() != p.Pingresp()


def test_how_a_publish_came_makes_no_difference() -> None:
    assert p.Publish("a", b"x") == p.Publish("a", b"x", wire=b"\x30\x04\x00\x01ax")
    assert p.Publish("a", b"x") != p.Publish("a", b"y")


def test_a_packet_says_what_it_is() -> None:
    assert repr(p.Puback(7)) == "Puback(packet_id=7, properties=None, reason_code=0)"
    assert "will=Will(payload=b'gone'" in repr(p.Connect("c", True, 60, will=p.Will("w", b"gone")))


def test_a_packet_takes_no_other_attribute() -> None:
    with pytest.raises(AttributeError):
        p.Puback(1).qos = 1


@pytest.mark.parametrize("size", [0, 1, 122, 123, 16_378, 16_379, 2_097_147])
@pytest.mark.parametrize("version", [4, 5])
def test_a_run_is_its_packets_whatever_their_size(size: int, version: int) -> None:
    from midge.protocol.encoder import encode

    packets = [p.Publish("a/b", bytes(size)), p.Publish("a/b", b"next")]
    wire = b"".join(encode(packet, version) for packet in packets)
    assert p.PublishRun("a/b", wire, 2).publishes(version) == packets


def test_every_reason_code_that_a_packet_may_carry_has_a_name() -> None:
    named = {int(code) for code in ReasonCode}
    for table in (reasons.FROM_CLIENT, reasons.FROM_SERVER):
        assert set().union(*table.values()) <= named


@pytest.mark.parametrize(
    ("code", "return_code"),
    [
        (ReasonCode.SUCCESS, 0),
        (ReasonCode.UNSUPPORTED_PROTOCOL_VERSION, 1),
        (ReasonCode.CLIENT_IDENTIFIER_NOT_VALID, 2),
        (ReasonCode.SERVER_BUSY, 3),
        (ReasonCode.BAD_USER_NAME_OR_PASSWORD, 4),
        (ReasonCode.NOT_AUTHORIZED, 5),
        (ReasonCode.BANNED, 5),
    ],
)
def test_a_refusal_has_its_return_code_in_3_1_1(code: ReasonCode, return_code: int) -> None:
    assert code.connack_311 == return_code


def test_every_reason_code_has_a_return_code_of_3_1_1() -> None:
    assert {code.connack_311 for code in ReasonCode} == reasons.CONNACK_311


@pytest.mark.parametrize("error", [MalformedPacket("why"), ProtocolError(ReasonCode.QUOTA_EXCEEDED, "why")])
def test_an_error_carries_its_reason_and_can_be_copied(error: ProtocolError) -> None:
    again = copy.copy(error)
    assert (type(again), again.reason_code, again.message) == (type(error), error.reason_code, "why")
    assert isinstance(error.reason_code, ReasonCode)
