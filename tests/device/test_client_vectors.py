"""device/midge_client.py and tests/vectors/packets-3.1.1.json, on the unix port and on CPython."""

import json
from pathlib import Path

import pytest
from client_board import CONNACK, publish

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "packets-3.1.1.json").read_text(encoding="utf-8"))


def vectors(*types, sender=("server", "any")):
    """The valid ones of these types."""
    return [v for v in VECTORS if v["from"] in sender and v.get("packet", {}).get("type") in types and "after" not in v]


def malformed():
    return [v for v in VECTORS if v["from"] in ("server", "any") and "error" in v]


@pytest.fixture
def run(start_board, server):
    return lambda what: start_board("client_vectors.py", what, server.port, heap="8m")


def test_every_connect_that_the_client_can_make_is_byte_equal(run, server):
    board = run("connects")
    made = [v for v in VECTORS if v.get("packet", {}).get("type") == "CONNECT"
            and v["packet"]["protocol_level"] == 4 and "bridge" not in v["packet"]]
    assert len(made) > 20
    for vector in made:
        peer = server.connection()
        assert peer.packet().hex() == vector["hex"].replace(" ", ""), vector["name"]
        peer.send("20020005")
        peer.expect_close()
        board.says(5)
    board.has_ended()


def test_every_publish_subscribe_and_unsubscribe_that_the_client_can_make_is_byte_equal(run, server):
    board = run("sends")
    made = [v for v in VECTORS if v.get("packet", {}).get("type") == "PUBLISH" and not v["packet"]["dup"]]
    for kind, field in (("SUBSCRIBE", "subscriptions"), ("UNSUBSCRIBE", "filters")):
        made += [v for v in VECTORS if v.get("packet", {}).get("type") == kind and len(v["packet"][field]) == 1]
    assert len(made) > 40
    for vector in made:
        peer = server.accepted()
        packet = peer.packet()
        assert packet.hex() == vector["hex"].replace(" ", ""), vector["name"]
        answer(peer, vector["packet"])
        peer.expect("e000")
        peer.expect_close()
    board.has_ended()


def answer(peer, packet):
    packet_id = f"{packet.get('packet_id', 0):04x}"
    if packet["type"] == "SUBSCRIBE":
        peer.send("9003" + packet_id + "00")
    elif packet["type"] == "UNSUBSCRIBE":
        peer.send("b002" + packet_id)
    elif packet["qos"] == 1:
        peer.send("4002" + packet_id)
    elif packet["qos"] == 2:
        peer.send("5002" + packet_id)
        peer.expect("6202" + packet_id)
        peer.send("7002" + packet_id)


def test_every_publish_from_the_server_is_understood_and_acknowledged(run, server):
    board = run("receives")
    peer = server.accepted()
    for vector in vectors("PUBLISH"):
        packet = vector["packet"]
        peer.send(vector["hex"].replace(" ", ""))
        assert board.said() == [packet["topic"], packet["payload"], packet["retain"]], vector["name"]
        packet_id = f"{packet.get('packet_id', 0):04x}"
        if packet["qos"] == 1:
            peer.expect("4002" + packet_id)
        elif packet["qos"] == 2:
            peer.expect("5002" + packet_id)
            peer.send("6202" + packet_id)
            peer.expect("7002" + packet_id)


def test_every_other_packet_from_the_server_is_understood(run, server):
    board = run("receives")
    peer = server.accepted()
    for vector in vectors("PUBACK", "PUBREC", "PUBREL", "PUBCOMP", "SUBACK", "UNSUBACK", "PINGRESP"):
        packet = vector["packet"]
        peer.send(vector["hex"].replace(" ", ""), publish("ok"))
        assert board.said() == ["ok", "hex:", False], vector["name"]
        if packet["type"] == "PUBREC":
            peer.expect(f"6202{packet['packet_id']:04x}")
        elif packet["type"] == "PUBREL":
            peer.expect(f"7002{packet['packet_id']:04x}")


def reject_first(server, board):
    """connect() itself has to succeed; from then on the client comes back for each vector."""
    peer = server.accepted()
    board.says("connected")
    peer.close()
    board.says("MQTTError", "closed by the server")


def test_every_malformed_packet_from_the_server_ends_the_connection_with_an_error(run, server):
    board = run("rejects")
    reject_first(server, board)
    assert len(malformed()) > 80
    for vector in malformed():
        peer = server.connection()
        peer.packet()
        if not vector["name"].startswith("connack-") and not vector.get("state"):
            peer.send(CONNACK)
        peer.send(vector["hex"].replace(" ", ""))
        try:
            peer.expect_close()
        except TimeoutError:
            raise AssertionError(vector["name"]) from None
        kind, text = board.said()
        assert kind == "MQTTError", vector["name"]
        assert text != "closed by the server", vector["name"]


def test_every_packet_cut_at_every_byte_leaves_the_client_waiting_or_closing(run, server):
    board = run("rejects")
    reject_first(server, board)
    shortest = {v["packet"]["type"]: v["hex"].replace(" ", "")
                for v in reversed(vectors("PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP", "SUBACK", "UNSUBACK"))}
    for packet in shortest.values():
        for cut in range(1, len(packet) // 2):
            peer = server.accepted()
            peer.send(packet[:cut * 2])
            peer.close()
            assert board.said() == ["MQTTError", "closed by the server"], (packet, cut)
