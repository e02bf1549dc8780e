"""`midge bench` against real brokers, and against one that loses, doubles and swaps: what it tells must be so."""

import functools
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

import brokers
from midge.load.clients import Address, Client, Refused, use_root
from midge.load.flows import Shape, ping_pong, run

DEADLINE_S = 50


def bench(*argv: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "midge", "bench", "--seconds", "0.2", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


@pytest.fixture(scope="module", params=[brokers.HOST, brokers.MOSQUITTO_PARAM])
def broker(request: pytest.FixtureRequest) -> Iterator[brokers.RunningBroker]:
    if request.param == brokers.HOST:
        start = brokers.start_host
    else:  # by default it drops what exceeds 1,000 queued messages, acknowledged or not, and the bench says so
        start = functools.partial(brokers.start_mosquitto, "max_queued_messages 100000")
    with start() as running:
        yield running


def test_all_shapes_arrive_whole(broker: brokers.RunningBroker) -> None:
    done = bench("-p", str(broker.port), "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [(row["qos"], row["scenario"]) for row in rows] == [
        (qos, name) for qos in (0, 1, 2) for name in ("1 to 1", "1 to 20", "20 to 1", "singly")
    ]
    for row in rows:
        [[figures]] = row["runs"].values()
        assert figures["delivered"] > 0
        assert (figures["lost"], figures["doubled"], figures["disordered"]) == (0, 0, 0)
        assert 0 < figures["p50_us"] <= figures["p99_us"] <= figures["p99.9_us"]


def test_sizes_windows_and_sessions_that_last(broker: brokers.RunningBroker) -> None:
    argv = "--pairs 2 -q 1 2 --size 3000 --window 3 --persistent"
    done = bench("-p", str(broker.port), *argv.split())
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("QoS 1    2 to 2")


def test_two_brokers_take_turns_and_are_compared(broker: brokers.RunningBroker) -> None:
    where = f"localhost:{broker.port}", f"mqtt://127.0.0.1:{broker.port}"
    done = bench("--compare", *where, "-q", "0", "--singly", "--rounds", "2", "--json")
    assert done.returncode == 0, done.stderr
    [row] = json.loads(done.stdout)
    assert [len(runs) for runs in row["runs"].values()] == [2, 2]
    done = bench("--compare", *where, "-q", "0", "--singly")
    assert "x, p50 " in done.stdout.splitlines()[2]


def test_mqtt_5_0_arrives_whole(broker: brokers.RunningBroker) -> None:
    argv = "-V 5 -q 1 2 --publishers 3 --persistent --seconds 0.1 --json"
    done = bench("-p", str(broker.port), *argv.split())
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert len(rows) == 2
    for row in rows:
        [[figures]] = row["runs"].values()
        assert figures["delivered"] > 0
        assert (figures["lost"], figures["doubled"], figures["disordered"]) == (0, 0, 0)


def test_over_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    tls = '[[listener]]\ntype = "tls"\nport = 0\ncertfile = "server.pem"\nkeyfile = "server.pem"\n'
    (tmp_path / "midge.toml").write_text(f'{tls}[[listener]]\nport = 0\n[store]\npath = ":memory:"\n')
    with brokers.start_host("--config", str(tmp_path / "midge.toml")) as both:
        port = both.wait_for_output(r"mqtts://127\.0\.0\.1:(\d+)")[1]
        where = f"mqtt://127.0.0.1:{both.port}", f"mqtts://127.0.0.1:{port}"
        argv = f"-V 5 -q 1 --singly --size 40000 --subscribers 2 --seconds 0.1 --cafile {tmp_path}/ca.pem --json"
        done = bench("--compare", *where, *argv.split())
        assert done.returncode == 0, done.stderr
        for row in json.loads(done.stdout):
            assert all(run["delivered"] and not run["lost"] for runs in row["runs"].values() for run in runs)
        done = bench("-h", "127.0.0.1", "-p", port, "-q", "0", "--publishers", "1", "--cafile", f"{tmp_path}/other.pem")
        assert (done.returncode, "isn't trusted" in done.stderr) == (1, True), done.stderr


@pytest.mark.parametrize(("argv", "code", "told"), [
    (["-p", "1"], 1, "is the broker running?"),
    (["-q", "3"], 2, "isn't a number of 0 to 2"),
    (["--size", "7"], 2, "isn't a number of 8 to"),
    (["--compare", "localhost:1883"], 2, "two brokers or more"),
    (["--compare", "a", "b:x"], 2, "isn't HOST:PORT"),
    (["--cert", "a.pem"], 2, "Both certfile and keyfile"),
])  # fmt: skip
def test_what_is_wrong_is_told(argv: list[str], code: int, told: str) -> None:
    done = bench(*argv)
    assert (done.returncode, told in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


# -- a relay that spoils what goes to the subscriber --


class Relay:
    """Passes bytes between clients and a broker; *spoil* gets the packets of the broker's PUBLISHes, one by one, with
    their number, and says what is passed on."""

    def __init__(self, port: int, spoil: Callable[[int, bytes], list[bytes]]) -> None:
        self._port = port
        self._spoil = spoil
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address(port=self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            threading.Thread(target=self._up, args=(client, server), daemon=True).start()
            threading.Thread(target=self._down, args=(server, client), daemon=True).start()

    @staticmethod
    def _up(client: socket.socket, server: socket.socket) -> None:
        try:
            while data := client.recv(65536):
                server.sendall(data)
        except OSError:
            pass
        server.close()

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        file = server.makefile("rb")
        number = 0
        try:
            while head := file.read(2):  # nothing here is longer than 127 bytes
                packet = head + file.read(head[1])
                if head[0] >> 4 == 3:
                    client.sendall(b"".join(self._spoil(number, packet)))
                    number += 1
                else:
                    client.sendall(packet)
        except OSError:
            pass
        client.close()


def swap() -> Callable[[int, bytes], list[bytes]]:
    held: list[bytes] = []

    def spoil(number: int, packet: bytes) -> list[bytes]:
        if number == 10:
            held.append(packet)
            return []
        return [packet, *held] if number == 11 else [packet]

    return spoil


@pytest.mark.parametrize(("spoil", "expected"), [
    (lambda number, packet: [packet], (0, 0, 0)),
    (lambda number, packet: [] if number in (5, 7) else [packet], (2, 0, 0)),
    (lambda number, packet: [packet, packet] if number == 20 else [packet], (0, 1, 0)),
    (swap(), (0, 0, 1)),
])  # fmt: skip
def test_each_message_that_is_lost_doubled_or_late_is_counted(
    spoil: Callable[[int, bytes], list[bytes]], expected: tuple[int, int, int], host_broker
) -> None:
    use_root("spoilt")
    relay = Relay(host_broker.port, spoil)
    outcome = run(relay.address, 0.3, Shape(0, window=50))
    relay.close()
    assert outcome.sent > 20
    assert (outcome.faults.lost, outcome.faults.doubled, outcome.faults.disordered) == expected


def test_who_may_not_is_told_why(tmp_path) -> None:
    (tmp_path / "passwords").write_text("")
    (tmp_path / "midge.toml").write_text('[access]\nallow_anonymous = false\npassword_file = "passwords"\n')
    with (
        brokers.start_host("--config", str(tmp_path / "midge.toml")) as guarded,
        pytest.raises(Refused, match=r"not authorised|user name"),
    ):
        Client(Address(port=guarded.port), "x")


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_one_message_at_a_time(qos: int, broker: brokers.RunningBroker) -> None:
    use_root(f"singly{qos}")
    outcome = ping_pong(Address(port=broker.port), 0.2, qos)
    assert outcome.count == outcome.sent == len(outcome.latencies_us) > 0
    assert not outcome.faults
