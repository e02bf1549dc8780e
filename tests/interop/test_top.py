"""`midge top` at our broker, at Mosquitto, and at a board's broker behind a bridge."""

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import brokers
from paho_peer import Paho

DEADLINE_S = 50
COMMAND = [sys.executable, "-m", "midge", "top", "-h", "127.0.0.1"]


def look(port: int, *argv: str) -> "subprocess.CompletedProcess[str]":
    command = [*COMMAND, "-p", str(port), "--once", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


@pytest.mark.parametrize("kind", [brokers.HOST, brokers.MOSQUITTO_PARAM])
def test_one_look_at_a_broker_with_traffic(kind: str, tmp_path: Path) -> None:
    if kind == "host":
        (tmp_path / "midge.toml").write_text('[sys]\ninterval = 1\n[[queue]]\nname = "encode"\n')
        running = brokers.start_host("--config", str(tmp_path / "midge.toml"))
    else:
        running = brokers.start_mosquitto("sys_interval 1")
    with running as broker:
        peer = Paho(broker.port)
        peer.publish("kitchen/status", "online", 1, retain=True)
        if kind == "host":
            peer.publish("$queue/encode", "job", 1)
        for _ in range(20):
            peer.publish("kitchen/load", "1", 1)
        time.sleep(1.2)  # an update with that in it
        told = json.loads(look(broker.port, "--json", "-w", "2.5").stdout)
        text = look(broker.port, "-w", "1").stdout
        peer.disconnect()
    assert kind in told["version"] or "midge" in told["version"]
    assert told["clients"]["connected"] >= 1
    assert told["retained"] >= 1
    assert told["per_second"]["messages in"] is not None
    assert told["per_second"]["bytes out"] > 0
    if kind == "host":
        assert told["queues"]["encode"]["messages/count"] == "1"
    [board] = told["boards"]
    assert (board["name"], board["state"], board["seen_s_ago"]) == ("kitchen", "online", None)
    assert told["version"] in text
    assert "kitchen" in text


def test_a_boards_heap_comes_through_a_bridge(tmp_path: Path) -> None:
    with brokers.start_board() as board:
        told = json.loads(look(board.port, "--json", "-w", "1").stdout)  # its broker itself
        assert told["heap_free"] > 10_000
        assert told["clients"]["connected"] == 1
        bridge = (
            f'[[bridge]]\nname = "hub"\naddress = "mqtt://127.0.0.1:{board.port}"\n'
            'topics = [{ filter = "$SYS/#", direction = "in", local_prefix = "hub/" }]\n'
        )
        (tmp_path / "midge.toml").write_text(f"[sys]\ninterval = 1\n{bridge}")
        with brokers.start_host("--config", str(tmp_path / "midge.toml")) as host:
            deadline = time.monotonic() + DEADLINE_S
            boards: list[dict[str, object]] = []
            # The board tells every ten seconds, one topic after another.
            while not (boards and boards[0]["heap_free"] and boards[0]["clients"]) and time.monotonic() < deadline:
                boards = json.loads(look(host.port, "--json", "-w", "3").stdout)["boards"]
    [hub] = boards
    assert hub["name"] == "hub"
    assert isinstance(hub["heap_free"], int)
    assert hub["heap_free"] > 10_000
    assert hub["clients"] == 1  # the bridge


def test_a_broker_that_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "midge.toml").write_text("[sys]\ninterval = 0\n")
    with brokers.start_host("--config", str(tmp_path / "midge.toml")) as broker:
        done = look(broker.port, "-w", "0.5")
    assert done.returncode == 1
    assert "no $SYS/ topics came" in done.stdout


def test_no_broker_is_told() -> None:
    done = look(brokers.free_port())
    assert done.returncode == 1
    assert "is the broker running?" in done.stderr


def test_live_on_a_terminal_until_ctrl_c(host_broker) -> None:
    terminal, end = pty.openpty()
    command = [*COMMAND, "-p", str(host_broker.port), "-w", "0.3"]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    with subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=env) as process:
        os.close(end)
        shown = b""
        deadline = time.monotonic() + DEADLINE_S
        while shown.count(b"midge version") < 2 and time.monotonic() < deadline:  # it is drawn again and again
            if select.select([terminal], [], [], 1)[0]:
                shown += os.read(terminal, 10_000)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # EIO: it has closed the terminal
            while process.poll() is None and time.monotonic() < deadline:
                if select.select([terminal], [], [], 0.2)[0]:
                    os.read(terminal, 10_000)
        process.wait(DEADLINE_S)
    os.close(terminal)
    assert shown.count(b"midge version") >= 2
    assert process.returncode == 0
