"""How a bridge reaches the other side, when it does, and that neither side holds up the other."""

import socket
import threading
import time
from pathlib import Path

import pytest
import trustme

from brokers import free_port, start_board, start_host
from midge.cli.passwd import run as passwd
from paho_peer import Paho

from .bridging import connected, section, start_bridging

pytestmark = pytest.mark.timeout(120)

BOTH_WAYS = '[{ filter = "#", direction = "in", qos = 1 }, { filter = "down/#", direction = "out", qos = 1 }]'
SECURE = """
[[listener]]
port = 0
[[listener]]
type = "{type}"
bind = "127.0.0.1"
port = {port}
certfile = "server.pem"
keyfile = "server.key"
[access]
allow_anonymous = false
password_file = "passwd"
"""


def crosses(here, there) -> None:
    """A message each way."""
    up, down = Paho(here.port), Paho(there.port)
    up.subscribe("up/#", qos=1)
    down.subscribe("down/#", qos=1)
    deadline = time.monotonic() + 20
    while up.messages.empty():
        down.publish("up/x", b"1", 1)
        time.sleep(0.1)
        assert time.monotonic() < deadline, "nothing comes across"
    up.publish("down/x", b"2", 1)
    assert down.receive().payload == b"2"
    up.disconnect()
    down.disconnect()


@pytest.mark.parametrize(("type_", "scheme"), [("tls", "mqtts"), ("websocket", "wss")])
def test_tls_with_credentials(tmp_path: Path, until_the_end, type_: str, scheme: str) -> None:
    ca, port = trustme.CA(), free_port()
    certificate = ca.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "server.key")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    assert passwd(["-c", "-b", str(tmp_path / "passwd"), "laptop", "secret"]) == 0
    config = tmp_path / "there.toml"
    config.write_text(SECURE.format(type=type_, port=port))
    until_the_end.enter_context(start_host("--config", str(config)))
    here = tmp_path / "here"
    here.mkdir()
    ca.cert_pem.write_to_path(here / "ca.pem")
    keys = {"cafile": "ca.pem", "username": "laptop", "password": "secret"}
    link = section("b", port, BOTH_WAYS, scheme, **keys)
    connected(until_the_end.enter_context(start_bridging(here, link)))
    unknown = section("b", port, BOTH_WAYS, scheme, **{**keys, "password": "wrong"})
    refused = until_the_end.enter_context(start_bridging(here / "wrong", unknown.replace('"ca.pem"', '"../ca.pem"')))
    refused.wait_for_output("refused by the remote broker: ", 20)
    distrusts = section("b", port, BOTH_WAYS, scheme)
    refused = until_the_end.enter_context(start_bridging(here / "distrusts", distrusts))
    refused.wait_for_output("certificate verify failed|unable to get local issuer", 20)


def test_a_websocket_without_tls(tmp_path: Path, until_the_end) -> None:
    port = free_port()
    config = tmp_path / "there.toml"
    config.write_text(f'[[listener]]\nport = 0\n[[listener]]\ntype = "websocket"\nport = {port}\n')
    there = until_the_end.enter_context(start_host("--config", str(config)))
    here = until_the_end.enter_context(start_bridging(tmp_path / "here", section("b", port, BOTH_WAYS, "ws")))
    connected(here)
    crosses(here, there)


def test_after_a_failure_the_next_address_is_tried(tmp_path: Path, until_the_end) -> None:
    there = until_the_end.enter_context(start_host())
    nobody = free_port()
    link = section("b", nobody, BOTH_WAYS, alternatives=[f"mqtt://127.0.0.1:{there.port}"])
    here = until_the_end.enter_context(start_bridging(tmp_path, link))
    here.wait_for_output(f"bridge b to mqtt://127.0.0.1:{there.port}: connected", 20)
    crosses(here, there)


def test_a_periodic_bridge_fetches_brings_and_leaves_until_next_time(tmp_path: Path, until_the_end) -> None:
    there = until_the_end.enter_context(start_host())
    link = section("b", there.port, BOTH_WAYS, start="periodic", interval=3.0)
    here = until_the_end.enter_context(start_bridging(tmp_path, link))
    here.wait_for_output("bridge b to .*: we leave", 20)
    up, down = Paho(here.port), Paho(there.port)
    up.subscribe("up/#", qos=1)
    down.subscribe("down/#", qos=1)
    for number in range(30):
        down.publish("up/x", str(number), 1)
        up.publish("down/x", str(number), 1)
    assert [up.receive(20).payload for _ in range(30)] == [b"%d" % number for number in range(30)]
    assert [down.receive(20).payload for _ in range(30)] == [b"%d" % number for number in range(30)]
    here.wait_for_output("(?s)(we leave.*){2}", 20)
    up.disconnect()
    down.disconnect()


def test_a_bridge_on_demand_comes_when_enough_waits(tmp_path: Path, until_the_end) -> None:
    there = until_the_end.enter_context(start_host())
    link = section("b", there.port, BOTH_WAYS, start="on-demand", threshold=5, idle_timeout=1.0)
    here = until_the_end.enter_context(start_bridging(tmp_path, link))
    down, up = Paho(there.port), Paho(here.port)
    down.subscribe("down/#", qos=1)
    for number in range(4):
        up.publish("down/x", str(number), 1)
    with pytest.raises(TimeoutError):
        here.wait_for_output("bridge b to .*: connected", 1.5)
    up.publish("down/x", "4", 1)
    assert [down.receive(20).payload for _ in range(5)] == [b"%d" % number for number in range(5)]
    here.wait_for_output("bridge b to .*: we leave", 20)
    up.disconnect()
    down.disconnect()


def deaf_broker() -> tuple[socket.socket, int]:
    """Lets a bridge in (5.0), and then doesn't read any more."""
    server = socket.create_server(("127.0.0.1", 0))
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    def run() -> None:
        kept = []
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            client.recv(4096)
            client.sendall(b"\x20\x03\x00\x00\x00")
            kept.append(client)

    threading.Thread(target=run, daemon=True).start()
    return server, server.getsockname()[1]


def test_a_deaf_broker_holds_up_nobody_here(tmp_path: Path, until_the_end) -> None:
    server, port = deaf_broker()
    until_the_end.callback(server.close)
    here = until_the_end.enter_context(
        start_bridging(tmp_path, section("b", port, BOTH_WAYS), limits="[limits]\nmax_queued_bytes = 200_000\n")
    )
    connected(here)
    publisher, subscriber = Paho(here.port), Paho(here.port)
    subscriber.subscribe("down/#", qos=1)
    for qos in (0, 1):
        for number in range(300):
            publisher.publish(f"down/{qos}", b"%04d" % number * 1000, qos)
    got = [subscriber.receive().payload[:4] for _ in range(600)]
    assert got == [b"%04d" % number for number in range(300)] * 2
    publisher.disconnect()
    subscriber.disconnect()


@pytest.mark.parametrize("version", ["3.1.1", "5.0"])
def test_a_message_that_a_board_can_t_take_doesn_t_hold_up_the_others(
    tmp_path: Path, until_the_end, version: str
) -> None:
    board = until_the_end.enter_context(start_board())
    here = until_the_end.enter_context(start_bridging(tmp_path, section("b", board.port, BOTH_WAYS, version=version)))
    connected(here)
    down, up = Paho(board.port), Paho(here.port)
    down.subscribe("down/#", qos=1)
    up.publish("down/x", b"before", 1)
    up.publish("down/large", bytes(100_000), 1)
    up.publish("down/x", b"behind", 1)
    assert [down.receive(60).payload for _ in range(2)] == [b"before", b"behind"]
    if version == "3.1.1":
        here.wait_for_output("the remote broker closes whenever it is sent 'down/large', 100000 bytes", 5)
    up.disconnect()
    down.disconnect()


def test_a_full_broker_that_says_so_is_waited_for_and_nothing_is_lost(tmp_path: Path, until_the_end) -> None:
    limits = '[limits]\nmax_queued_messages = 5\nqueue_full = "reject"\n'
    there = until_the_end.enter_context(start_bridging(tmp_path / "there", limits=limits))
    reader = Paho(there.port, "reader", clean=False)
    assert reader.subscribe("out/#", qos=1) == [1]
    reader.disconnect()
    topics = '[{ filter = "out/#", direction = "out", qos = 1 }]'
    here = until_the_end.enter_context(start_bridging(tmp_path / "here", section("b", there.port, topics)))
    connected(here)
    publisher = Paho(here.port)
    for number in range(12):
        publisher.publish("out/n", f"{number}", 1)  # acknowledged here at once: the bridge's queue has it
    publisher.disconnect()
    here.wait_for_output("the remote broker is full: quota exceeded", 20)
    reader = Paho(there.port, "reader", clean=False)
    got = [int(reader.messages.get(timeout=40).payload) for _ in range(12)]
    reader.disconnect()
    assert got == list(range(12))
