"""device/midge_mqtt5.py against a scripted server and real brokers, on the unix port and on CPython."""

import json
from pathlib import Path

import pytest

CONNECT = "102c 0004 4d515454 050c001e 10 11ffffffff 210014 2700000800 220010 0005 626f617264 00 0001 77 0004 676f6e65"
CONNACK = "2003000000"
VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "packets-5.0.json").read_text(encoding="utf-8"))


@pytest.fixture
def run(start_board):
    return lambda scenario, port: start_board("client_mqtt5.py", scenario, port, heap="1m")


def test_connect_announces_what_we_take_and_topics_are_sent_once(run, server):
    board = run("publish", server.port)
    peer = server.connection()
    peer.expect(CONNECT)
    peer.send("2009 00 00 06 22000a 21000a".replace(" ", ""))
    board.says("connected", False)
    peer.expect("3213 0005 746f706963 0001 08 230001 020000003c 78")
    peer.send("4003000110")  # no matching subscribers: well received
    board.says("published", None)
    peer.expect("320e 0000 0002 08 230001 020000003c 78")
    peer.send("4003000297")  # quota exceeded
    board.says("published", "MQTTError", 0x97)
    peer.expect("3416 0005 6f74686572 0003 0b 230002 080001 72 090001 63 79")
    peer.send("50020003")
    peer.expect("62020003")
    peer.send("70020003")
    board.says("published", None)
    peer.expect("e000")


def test_no_more_is_in_flight_than_the_server_takes(run, server):
    board = run("window", server.port)
    peer = server.connection()
    peer.packet()
    peer.send("200600 00 03 210002".replace(" ", ""))
    for i in range(0, 5, 2):
        pair = [peer.packet() for _ in range(min(2, 5 - i))]
        peer.expect_silence(0.05)
        for packet in pair:
            peer.send(b"\x40\x02" + packet[5:7])
    board.says("connected", False)
    board.says("published")


def test_reason_codes_of_connack_and_suback_are_raised(run, server):
    board = run("refused", server.port)
    peer = server.connection()
    peer.packet()
    peer.send("200b 00 87 08 1f0005 6e6f706521".replace(" ", ""))
    board.says("connected", "MQTTError", 0x87)


def test_subscribing_and_receiving_with_properties(run, server):
    board = run("subscribe", server.port)
    peer = server.connection()
    peer.packet()
    peer.send(CONNACK)
    board.says("connected", False)
    peer.expect("8207 0001 00 0001 61 01")
    peer.send("9004 0001 00 01".replace(" ", ""))
    board.says("subscribed", 1)
    peer.expect("8207 0002 00 0001 62 02")
    peer.send("9004 0002 00 87".replace(" ", ""))
    board.says("subscribed", "MQTTError", 0x87)
    peer.expect("a206 0003 00 0001 61")
    peer.send("b004 0003 00 11".replace(" ", ""))
    board.says("unsubscribed")
    user = "26 0001 6b 0001 76"
    peer.send(f"3119 0003 612f62 11 {user} 230003 {user} 68 69".replace(" ", ""))
    board.says("received", "a/b", "hi", True)
    peer.send("3008 0000 03 230003 61 62".replace(" ", ""))
    board.says("received", "a/b", "ab", False)
    peer.send("3207 0001 63 0009 00 7a".replace(" ", ""))
    board.says("received", "c", "z", False)
    peer.expect("40020009")
    peer.send("3008 0000 03 230003 61 63".replace(" ", ""))
    board.says("received", "a/b", "ac", False)


def test_server_that_disconnects_says_why(run, server):
    board = run("errors", server.port)
    peer = server.connection()
    peer.packet()
    peer.send(CONNACK)
    board.says("connected", False)
    peer.send("e0028e00")
    kind, _text, code = board.said()
    assert (kind, code) == ("MQTTError", 0x8E)


def test_every_valid_packet_of_the_server_is_understood(run, server):
    board = run("errors", server.port)
    peer = server.connection()
    peer.packet()
    peer.send(CONNACK)
    board.says("connected", False)
    packets = [v for v in VECTORS if v["from"] in ("server", "any") and "after" not in v
               and v.get("packet", {}).get("type") in ("PUBACK", "PUBREC", "PUBREL", "PUBCOMP", "SUBACK", "UNSUBACK")]
    assert len(packets) > 60
    for vector in packets:
        peer.send(vector["hex"].replace(" ", ""))
    peer.send("b004 0003 00 11".replace(" ", ""))
    peer.send("e0028b00")  # what is said last is the first error
    while True:
        kind, _text, code = board.said()
        if code == 0x8B:
            break
        assert (kind, code > 127) == ("MQTTError", True)


@pytest.mark.parametrize("interpreter", ["micropython"], indirect=True)
def test_malformed_packets_of_the_server_end_the_connection(run, server):
    """All but those whose fault can't mislead the client, and that it doesn't spend memory to look for."""
    board = run("errors", server.port)
    peer = server.connection()
    peer.packet()
    peer.send(CONNACK)
    board.says("connected", False)
    peer.close()
    board.said()
    accepted = []
    packets = [v for v in VECTORS if v["from"] in ("server", "any") and "error" in v and not v.get("state")]
    for vector in packets:
        peer = server.connection()
        peer.packet()
        if not vector["name"].startswith("connack-"):
            peer.send(CONNACK)
        peer.send(vector["hex"].replace(" ", ""))
        peer.close()
        kind, text, _code = board.said()
        assert kind in ("MQTTError", "OSError", "ConnectionResetError"), vector["name"]
        if kind != "MQTTError" or text == "closed by the server":
            accepted.append(vector["name"])
    harmless = ("-not-allowed", "-utf8", "-null-character", "-reason-", "-not-minimal", "-available-2", "-indicator-2",
                "-qos-2", "-wildcard", "-identifier-0", "-without-property-length", "-packet-size-0")
    assert [name for name in accepted if not any(part in name for part in harmless)] == []
    assert len(packets) - len(accepted) > 190


def test_properties_are_those_of_the_message_that_the_loop_has(run, server):
    board = run("properties", server.port)
    peer = server.connection()
    peer.packet()
    peer.send(CONNACK)
    board.says("connected", False)
    peer.packet()
    user = "26 0001 6b 0001 76"
    packets = ("40020001",
               f"3014 0001 61 0f {user} 080001 72 090001 63 78",
               "3005 0001 62 00 79",
               "300d 0001 63 05 0200000005 6c617374")
    peer.send("".join(packets).replace(" ", ""))
    board.says("a", "x", [[8, "b'r'"], [9, "b'c'"]])
    board.says("b", "y", [])
    board.says("c", "last", [[2, "5"]])
    peer.packet()
    peer.send("40020002", "3009 0001 64 04 080001 72 7a".replace(" ", ""), "3005 0001 65 00 7a".replace(" ", ""))
    board.says("called", "d", "b'r'")
    board.says("called", "e", "None")


def test_requests_of_5_0_and_of_3_1_1_peers_are_answered(run, server):
    """Response topic and correlation data; without them TOPIC/request/ID is answered at TOPIC/response/ID."""
    board = run("respond", server.port)
    peer = server.connection()
    peer.packet()
    peer.send(CONNACK)
    filters = set()
    for packet_id in (1, 2, 3, 4):
        packet = peer.packet()
        assert packet[2:4] == bytes((0, packet_id))
        filters.add(packet[7:-1].decode())
        peer.send(f"900400{packet_id:02x}0001")
    assert filters == {"double", "double/request/+", "slow/double", "slow/double/request/+"}
    board.says("connected")
    peer.send("3217 0006 646f75626c65 0007 0a 080003 722f31 090001 63 3231".replace(" ", ""))
    peer.expect("40020007", "320e 0003 722f31 0005 04 090001 63 3432")
    peer.send("40020005", "3016 0011 646f75626c652f726571756573742f3131 00 3132".replace(" ", ""))
    peer.expect("3017 0012 646f75626c652f726573706f6e73652f3131 00 3234")
    peer.send("3016 000b 736c6f772f646f75626c65 06 080003 722f32 3330".replace(" ", ""))
    peer.expect("3008 0003 722f32 00 3630")
    peer.send("300a 0006 646f75626c65 00 78".replace(" ", ""))  # no response topic: a message as any other
    board.says("received", "double", "x")
    peer.send("3110 0006 646f75626c65 06 080003 722f31 79".replace(" ", ""))  # retained: nobody waits for an answer
    board.says("received", "double", "y")


def test_request_whose_handler_fails_is_told_why(run, server):
    board = run("respond", server.port)
    peer = server.connection()
    peer.packet()
    peer.send(CONNACK)
    for packet_id in (1, 2, 3, 4):
        peer.packet()
        peer.send(f"900400{packet_id:02x}0001")
    board.says("connected")
    for topic in ("double", "slow/double"):
        for request in (f"{topic}/request/1", topic):
            properties = bytes.fromhex("06080003722f31") if request == topic else b"\0"
            body = len(request).to_bytes(2, "big") + request.encode() + properties + b"x"
            peer.send(bytes((0x30, len(body))) + body)
            reply = peer.packet()
            if request == topic:
                assert b"\0\x03r/1" in reply[:8]
                assert b"\x26\0\x05error\0" in reply
            else:
                assert f"{topic}/response/1/error".encode() in reply
            assert b"ValueError" in reply


def test_version_5_is_chosen_at_construction(run, server):
    board = run("version", server.port)
    board.says(True, False)
    peer = server.connection()
    assert peer.packet()[8] == 5
    peer.send(CONNACK)
    peer.expect("320c 0001 74 0001 05 0200000009 78")
    peer.send("40020001")
    peer.expect("e000")
    board.has_ended()


def test_request_and_reply(run, broker_5_0):
    board = run("request", broker_5_0.port)
    board.says("connected", False)
    for i in range(5):
        board.says("reply", str(2 * i))
    board.says("replies", [str(2 * i) for i in range(10, 15)])
    board.says("nobody", "MQTTTimeout", 0)
    board.has_ended()


def test_every_qos_goes_round(run, broker_5_0):
    board = run("real_broker", broker_5_0.port)
    board.says("connected", False)
    for qos in (0, 1, 2):
        for i in range(6):
            board.says("received", f"in/{qos}", str(i))
    board.has_ended()
