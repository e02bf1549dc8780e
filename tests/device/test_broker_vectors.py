"""The board's broker against tests/vectors, over a socket, on both interpreters."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from mqtt_wire import (
    INTERPRETERS,
    PINGREQ,
    PINGRESP,
    Wire,
    client,
    connect,
    publish,
    run_on_board,
    start,
    subscriber,
)

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "packets-3.1.1.json").read_text(encoding="utf-8"))
FROM_CLIENT = [vector for vector in VECTORS if vector["from"] != "server"]
VALID = [vector for vector in FROM_CLIENT if "packet" in vector and not vector.get("state")]
# What is right from a server only is wrong from a client.
WRONG = [vector for vector in VECTORS
         if not vector.get("state") and ("packet" if vector["from"] == "server" else "error") in vector]
STATE = [vector for vector in FROM_CLIENT if vector.get("state")]


@pytest.fixture(params=INTERPRETERS, scope="module")
def port(request: pytest.FixtureRequest):
    with start(request.param, max_clients=12) as broker:
        yield broker.port
        assert broker.is_running(), broker.output()


class Others:
    """Two clients that must not notice anything."""

    def __init__(self, port: int):
        self.subscriber = subscriber(port, "other-subscriber", ("others", 0))
        self.publisher = client(port, "other-publisher")

    def are_well(self, number: int) -> None:
        data = publish("others", b"%d" % number)
        self.publisher.send(data)
        self.subscriber.expect(data)


def is_connect(data: bytes) -> bool:
    return data[0] == 0x10


def test_every_valid_packet_of_a_client_is_accepted(port: int):
    for vector in VALID:
        data = bytes.fromhex(vector["hex"])
        with Wire(port, b"" if is_connect(data) else connect("valid")) as wire:
            wire.send(data)
            if data == b"\xe0\x00":
                assert wire.expect_close() == b"\x20\x02\x00\x00"
                continue
            wire.send(PINGREQ)
            while (received := wire.receive()) != PINGRESP:
                assert received[:1] != b"\x20" or received[3] == 0, vector["name"]


def test_every_wrong_packet_ends_its_connection_and_no_other(port: int):
    others = Others(port)
    for number, vector in enumerate(WRONG):
        data = bytes.fromhex(vector["hex"])
        with Wire(port, (b"" if is_connect(data) else connect("wrong")) + data) as wire:
            received = wire.expect_close()
            assert len(received) in (0, 4), (vector["name"], received)
        others.are_well(number)


@pytest.mark.parametrize("vector", STATE, ids=lambda vector: vector["name"])
def test_packets_at_the_wrong_time(port: int, vector: dict):
    before, data = bytes.fromhex(vector["after"]), bytes.fromhex(vector["hex"])
    with Wire(port, before) as wire:
        if before:
            wire.expect(b"\x20\x02\x00\x00")
        wire.send(data)
        if "reply" in vector:
            wire.expect(bytes.fromhex(vector["reply"]))
        else:
            refusal = b"\x20\x02\x00\x02" if vector["name"].startswith("empty-client-id") else b""
            assert wire.expect_close() == refusal


@pytest.mark.parametrize("cut", [1, 2, 3, 7])
def test_packets_are_understood_in_pieces_of_any_size(port: int, cut: int):
    data = connect("pieces") + publish("a/b", bytes(200), 1, 10) + PINGREQ
    with Wire(port) as wire:
        for at in range(0, len(data), cut):
            wire.send(data[at : at + cut])
        wire.expect(b"\x20\x02\x00\x00", b"\x40\x02\x00\x0a", PINGRESP)


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_topics_are_matched_and_checked_as_the_vectors_say(interpreter: str):
    program = run_on_board(interpreter, "broker_topics.py")
    assert program.output().endswith("done\n"), program.output()
