"""SIGTERM, Ctrl-C and what keeps the broker from starting: what clients are told, the exit code, the time it takes."""

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from brokers import LISTENING, RunningBroker, host_python, start_host
from midge.protocol import packets as p
from midge.protocol.decoder import Decoder
from midge.protocol.encoder import encode

TIMEOUT_S = 20
CLIENTS = 1000
SLOW_READERS = 20
# s of CPU that telling them all may take; the broker waits 1 s at most for those that don't read, so that
# it is gone in 2 s where it gets the CPU when it wants it. Here others run beside it.
CPU_MAX_S = 1.0


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Client:
    def __init__(self, port: int, client_id: str, version: int, receive_buffer: int = 0) -> None:
        self.version = version
        self.socket = socket.socket()
        self.socket.settimeout(TIMEOUT_S)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect(("127.0.0.1", port))
        properties = {"session_expiry_interval": 3600} if version == 5 else None
        self.send(p.Connect(client_id, False, keep_alive_s=600, level=version, properties=properties))

    def send(self, *packets: p.Packet) -> None:
        self.socket.sendall(b"".join(encode(packet, self.version) for packet in packets))

    def read_to_the_end(self) -> list:
        """All packets until the broker closes."""
        decoder = Decoder("client", self.version)
        packets: list = []
        while data := self.socket.recv(65_536):
            packets += decoder.receive_data(data)
        self.socket.close()
        return packets


def websocket(port: int, client_id: str) -> socket.socket:
    """One that was let in, and will never answer the closing handshake."""
    client = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
    client.sendall(
        b"GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
    )
    assert b"101" in client.recv(4096)
    packet = encode(p.Connect(client_id, True, keep_alive_s=600, level=5), 5)
    client.sendall(bytes((0x82, 0x80 | len(packet))) + bytes(4) + packet)
    assert client.recv(4096)[2] == 0x20
    return client


def allow_descriptors(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"this user may open {hard} files, {count} are needed")
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def wait_for_exit(broker: RunningBroker, number: signal.Signals) -> int:
    broker.send_signal(number)
    return broker.process.wait(TIMEOUT_S)


@pytest.mark.skipif(sys.platform != "linux", reason="reads CPU times from /proc")
def test_a_thousand_clients_are_told_and_nobody_holds_it_up(until_the_end, tmp_path: Path) -> None:
    allow_descriptors(CLIENTS + 200)
    (tmp_path / "midge.toml").write_text('[[listener]]\nport = 0\n[[listener]]\ntype = "websocket"\nport = 0\n')
    arguments = ("--config", tmp_path / "midge.toml", "--data", tmp_path, "--log-level", "info")
    broker = until_the_end.enter_context(start_host(*arguments))
    ws_port = int(broker.wait_for_output(r"listening on ws://127\.0\.0\.1:(\d+)")[1])
    clients = [Client(broker.port, f"c{number}", 5 if number % 2 else 4) for number in range(CLIENTS)]
    slow = [Client(broker.port, f"slow{number}", 5, receive_buffer=4096) for number in range(SLOW_READERS)]
    for number, client in enumerate(slow):
        client.send(p.Subscribe(1, [p.Subscription("flood" if number % 2 else "trickle", 0)]))
    publisher = Client(broker.port, "publisher", 4)
    # What the kernel's buffers can't hold: some of it waits in the broker, for some beyond its high-water mark.
    publisher.send(*(p.Publish(topic, bytes(100_000)) for topic in ["flood"] * 100 + ["trickle"] * 30))
    publisher.send(p.Publish("done", b"", 1, packet_id=1))
    while publisher.socket.recv(1000)[-4:] != b"\x40\x02\x00\x01":
        pass
    web = websocket(ws_port, "web")

    before, start = cpu_s(broker.pid), time.monotonic()
    os.kill(broker.pid, signal.SIGTERM)
    _, status, usage = os.wait4(broker.pid, 0)
    seconds, cpu = time.monotonic() - start, usage.ru_utime + usage.ru_stime - before
    broker.process.returncode = os.waitstatus_to_exitcode(status)
    broker._is_told_to_end = True
    print(f"{seconds:.2f} s, of them {cpu:.2f} s of CPU")
    assert broker.process.returncode == 0
    assert cpu < CPU_MAX_S
    assert seconds < 10
    for number, client in enumerate(clients):
        last = client.read_to_the_end()[-1]
        if number % 2:
            assert isinstance(last, p.Disconnect) and last.reason_code == 0x8B
        else:
            assert isinstance(last, p.Connack)  # 3.1.1 has no such packet
    assert b"\xe0\x01\x8b" in web.recv(4096)
    for client in (*slow, publisher):
        client.socket.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_acknowledged_before_the_signal_is_there_afterwards(number: signal.Signals, tmp_path: Path) -> None:
    with start_host("--data", tmp_path) as broker:
        client = Client(broker.port, "keeper", 5)
        client.send(p.Subscribe(1, [p.Subscription("kept", 1)]))
        client.send(*(p.Publish("kept", b"%d" % count, 1, packet_id=count) for count in range(1, 21)))
        assert wait_for_exit(broker, number) == 0
        acknowledged = [packet for packet in client.read_to_the_end() if isinstance(packet, p.Puback)]
    with start_host("--data", tmp_path) as broker:
        again = Client(broker.port, "keeper", 5)
        again.send(p.Pingreq())
        assert wait_for_exit(broker, number) == 0
        received = [packet.payload for packet in again.read_to_the_end() if isinstance(packet, p.Publish)]
    assert received == [b"%d" % count for count in range(1, len(received) + 1)]
    assert len(received) >= len(acknowledged)


def test_a_second_signal_changes_nothing(host_broker: RunningBroker) -> None:
    host_broker.send_signal(signal.SIGTERM)
    host_broker.send_signal(signal.SIGTERM)
    host_broker.send_signal(signal.SIGINT)
    assert host_broker.process.wait(TIMEOUT_S) == 0
    assert "Traceback" not in host_broker.output()


# -- what keeps it from starting --


def run(*arguments: str | Path, before: Sequence[str] = ()) -> tuple[int, str]:
    """Exit code and errors of a broker that can't start."""
    command = [*before, host_python(), "-m", "midge", "broker", "--port", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.stdout == "" and "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_a_port_in_use_is_said_with_what_to_do() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert run("--data", ":memory:", "--port", str(port)) == (
            1,
            f"midge broker: can't listen on 127.0.0.1:{port}: another program listens there: stop it, or choose "
            "another port\n",
        )


@pytest.mark.parametrize(
    ("bind", "said"),
    [("192.0.2.1", "this machine has no such address"), ("nowhere.invalid", "no address is known by that name")],
)
def test_an_address_that_is_not_ours_is_said(bind: str, said: str) -> None:
    code, errors = run("--data", ":memory:", "--allow-anonymous", "--bind", bind)
    assert code == 1 and errors.startswith(f"midge broker: can't listen on {bind}:0: {said}: ")


@pytest.mark.parametrize("port", ["-1", "65536", "x", ""])
def test_a_port_that_is_none_is_a_wrong_option(port: str) -> None:
    code, errors = run("--port", port)
    assert code == 2 and f"{port!r} is not allowed: 0 to 65535" in errors


def run_without_privileges(*arguments: str | Path) -> tuple[int, str]:
    """As `run`; root gives up the right to write where file modes forbid it."""
    if os.geteuid() != 0:
        return run(*arguments)
    if shutil.which("setpriv") is None:
        pytest.skip("root may write everywhere, and there is no setpriv")
    return run(*arguments, before=["setpriv", "--bounding-set=-dac_override"])


@pytest.mark.parametrize("data", [".", "below/it"])
def test_a_data_directory_that_is_not_writable_is_said(tmp_path: Path, data: str) -> None:
    tmp_path.chmod(0o555)
    code, errors = run_without_privileges("--data", tmp_path / data)
    assert code == 1
    assert re.fullmatch(
        rf"midge broker: {tmp_path} is not writable for this process \(user \d+\): change its owner, or choose "
        r"another directory with --data\n",
        errors,
    )


def test_a_store_that_is_not_writable_is_said(tmp_path: Path) -> None:
    with start_host("--data", tmp_path):
        pass
    (tmp_path / "midge.db").chmod(0o444)
    code, errors = run_without_privileges("--data", tmp_path)
    assert code == 1 and f"{tmp_path}/midge.db is not writable for this process" in errors


def test_a_file_in_the_place_of_the_data_directory_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, errors = run("--data", tmp_path / "file" / "below")
    assert (code, errors) == (1, f"midge broker: {tmp_path}/file is not a directory: choose another for the store "
                              "with --data\n")  # fmt: skip


def test_a_read_only_file_system_is_said(tmp_path: Path) -> None:
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o ro none "$0" && exec "$@"', str(tmp_path)]
    try:
        allowed = subprocess.run([*mount, "true"], capture_output=True, timeout=TIMEOUT_S).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("mounting needs user namespaces: unshare -rm")
    code, errors = run("--data", tmp_path, before=mount)
    assert code == 1
    said = "is on a file system that is mounted read-only: choose another directory with --data"
    assert errors == f"midge broker: {tmp_path} {said}\n"


def test_what_is_not_a_store_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "midge.db").write_text("a diary\n" * 100)
    code, errors = run("--data", tmp_path)
    assert code == 1 and f"{tmp_path}/midge.db is not a store of midge: move it away" in errors
    assert (tmp_path / "midge.db").read_text() == "a diary\n" * 100


def test_programs_are_told_in_json(tmp_path: Path) -> None:
    (tmp_path / "midge.toml").write_text("[limits]\na = 1\n")
    for options, code in ((("--config", tmp_path / "midge.toml"), 2), (("--data", "/dev/null"), 1)):
        found, errors = run("--log-format", "json", *options)
        (line,) = [json.loads(line) for line in errors.splitlines()]
        assert (found, line["level"]) == (code, "error") and line["message"]


def test_a_configuration_that_is_wrong_is_exit_code_2(tmp_path: Path) -> None:
    config = tmp_path / "midge.toml"
    config.write_text("[limits]\nmax_conections = 1\nmax_packet_size = 1\n")
    assert run("--config", config) == (
        2,
        f"midge broker: {config}:2: limits.max_conections: unknown key; did you mean max_connections?\n"
        f"midge broker: {config}:3: limits.max_packet_size: 1 is not allowed: bytes, 128 to 268_435_460\n",
    )


# -- what could keep it from ending --


def test_an_auth_hook_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    info = tmp_path / "hook-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hook\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[midge.auth]\nslow = slow_hook:ask\n")
    program = f"import time\ndef ask(login):\n    open({str(tmp_path / 'asked')!r}, 'w')\n    time.sleep(600)\n"
    (tmp_path / "slow_hook.py").write_text(program)
    (tmp_path / "midge.toml").write_text('[access]\nauth_hook = "slow"\n')
    command = [host_python(), "-m", "midge", "broker", "--port", "0", "--data", ":memory:", "--config",
               tmp_path / "midge.toml"]  # fmt: skip
    env = {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(tmp_path)}
    with RunningBroker("host", command, LISTENING, env=env) as broker:
        with socket.create_connection(("127.0.0.1", broker.port), TIMEOUT_S) as client:
            client.sendall(encode(p.Connect("asks", True, keep_alive_s=60, username="u", password=b"x"), 4))
            deadline = time.monotonic() + TIMEOUT_S
            while not (tmp_path / "asked").exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert wait_for_exit(broker, signal.SIGTERM) == 0
        broker.wait_for_output("not waited for: auth-slow")


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux' way to fail another process's writes")
def test_a_store_that_fails_does_not_keep_it(tmp_path: Path) -> None:
    with start_host("--data", tmp_path) as broker:
        client = Client(broker.port, "keeper", 5)
        client.send(p.Subscribe(1, [p.Subscription("kept", 1)]))
        broker.wait_for_output("keeper@")
        resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        client.send(p.Publish("kept", b"1", 1, packet_id=1))
        broker.wait_for_output("trying again")
        assert wait_for_exit(broker, signal.SIGTERM) == 0
        answers = client.read_to_the_end()
        # Not success for what isn't kept: no answer, or 0x97 (Quota exceeded).
        assert {packet.reason_code for packet in answers if isinstance(packet, p.Puback)} <= {0x97}
        assert "Traceback" not in broker.output()
