"""device/midge_serial.py: the link on both interpreters, and a board on a cable to the host's broker."""

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import brokers
from midge.boards.serial_line import SerialLine
from paho_peer import Paho

ON_BOARD = Path(__file__).with_name("on_board")
SEED = 20_261_125
DEVICE = brokers.ROOT / "device"
# s for what takes one or two, and many times that on a machine that does ten other things.
DEADLINE_S = 120
pytestmark = pytest.mark.timeout(2 * DEADLINE_S)
PATHS = {"MICROPYPATH": f".frozen:{DEVICE}", "PYTHONPATH": str(DEVICE)}


def on_board(interpreter: str, script: str, *arguments: object) -> list[str]:
    program = [brokers.micropython()] if interpreter == "micropython" else [sys.executable]
    return [*program, str(ON_BOARD / script), *map(str, arguments)]


@pytest.mark.parametrize("interpreter", ["micropython", "cpython"])
@pytest.mark.parametrize("error_rate", ["0", "1e-4", "1e-3"])
def test_bytes_arrive_in_order_whatever_the_line_does(interpreter, error_rate):
    done = subprocess.run(on_board(interpreter, "serial_link.py", SEED, error_rate, 3000), capture_output=True,
                          text=True, env=PATHS, timeout=50)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert done.stdout.startswith("arrived 3000")


class CableBoard:
    """A program on the unix port, and the lines that it prints."""

    def __init__(self, *arguments: object, program: str = "serial_board.py"):
        self.process = subprocess.Popen(
            on_board("micropython", program, *arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, env=PATHS)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def payloads(self, topic: str) -> list[str]:
        return [line.split()[1] for line in list(self.lines) if line.startswith(topic + " ")]

    def __enter__(self) -> "CableBoard":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        print("\n".join(self.lines[-40:]))


def wait_until(condition, what: str, timeout_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} didn't happen within {timeout_s} s"
        time.sleep(0.02)


def host_on(line: SerialLine, directory: Path) -> brokers.RunningBroker:
    config = directory / "midge.toml"
    config.write_text(f'[[listener]]\nport = 0\n\n[[listener]]\ntype = "serial"\ndevice = "{line.host_port}"\n',
                      encoding="utf-8")
    return brokers.start_host("--config", config)


def deduplicated(payloads: list[str]) -> list[str]:
    """Without what came twice in a row."""
    return [payload for i, payload in enumerate(payloads) if i == 0 or payload != payloads[i - 1]]


@pytest.mark.parametrize(("error_rate", "count"), [(0, 40), (1e-5, 40), (1e-4, 40), (1e-3, 8)])
def test_a_board_on_a_bad_cable_loses_nothing_and_doubles_nothing_at_qos_2(error_rate, count, tmp_path, until_the_end):
    print(f"seed {SEED}")
    line = until_the_end.enter_context(SerialLine(SEED, error_rate))
    host = until_the_end.enter_context(host_on(line, tmp_path))
    watcher = Paho(host.port, "watcher")
    watcher.subscribe("up/#", qos=2)
    board = until_the_end.enter_context(CableBoard(line.board_port, count))
    wait_until(lambda: "ready" in board.lines, "the board's subscription")
    for i in range(count):
        for qos in (1, 2):
            watcher.client.publish(f"down/{qos}", str(i), qos)
    wanted = [str(i) for i in range(count)]
    wait_until(lambda: board.payloads("down/2") == wanted, "the arrival of all QoS 2 messages at the board")
    wait_until(lambda: deduplicated(board.payloads("down/1")) == wanted, "that of all QoS 1 messages")
    got: dict[str, list[str]] = {"up/1": [], "up/2": []}
    while len(got["up/2"]) < count or len(deduplicated(got["up/1"])) < count:
        message = watcher.receive(50)
        got[message.topic].append(message.payload.decode().split()[0])
    assert got["up/2"] == wanted
    assert deduplicated(got["up/1"]) == wanted
    assert "says: started" in host.output()


def test_a_cable_that_is_cut_and_mended_goes_on_with_the_session(tmp_path, until_the_end):
    line = until_the_end.enter_context(SerialLine(SEED))
    host = until_the_end.enter_context(host_on(line, tmp_path))
    watcher = Paho(host.port, "watcher")
    board = until_the_end.enter_context(CableBoard(line.board_port, 0))
    wait_until(lambda: "ready" in board.lines, "the board's subscription")
    watcher.publish("down/1", "before", 1)
    wait_until(lambda: board.payloads("down/1") == ["before"], "the first message")
    line.cut(True)
    watcher.publish("down/1", "meanwhile", 1)
    time.sleep(1)
    assert board.payloads("down/1") == ["before"]
    line.cut(False)
    wait_until(lambda: deduplicated(board.payloads("down/1")) == ["before", "meanwhile"], "the message of meanwhile")


def test_a_host_that_is_killed_and_a_board_that_is_killed_find_each_other_again(tmp_path, until_the_end):
    line = until_the_end.enter_context(SerialLine(SEED))
    first_host = host_on(line, tmp_path)
    with CableBoard(line.board_port, 1) as board:
        wait_until(lambda: "published" in board.lines, "the board's message")
        first_host.kill()
        host = until_the_end.enter_context(host_on(line, tmp_path))
        publisher = Paho(host.port, "publisher")
        publisher.publish("down/2", "to a new host", 2, retain=True)
        wait_until(lambda: board.payloads("down/2") == ["to"], "the return of the board to the new host")
    with CableBoard(line.board_port, 1) as board:
        # What is retained comes with each subscription, and the link may start anew after the first.
        wait_until(lambda: deduplicated(board.payloads("down/2")) == ["to"], "the return of the board")


def test_a_port_that_is_not_there_is_said_once_and_waited_for(tmp_path, until_the_end):
    config = tmp_path / "midge.toml"
    port = tmp_path / "ttyUSB0"
    config.write_text(f'[[listener]]\nport = 0\n\n[[listener]]\ntype = "serial"\ndevice = "{port}"\n', encoding="utf-8")
    host = until_the_end.enter_context(brokers.start_host("--config", config))
    host.wait_for_output(f"serial:{re.escape(str(port))}: not there yet", 20)
    line = until_the_end.enter_context(SerialLine(SEED))
    port.symlink_to(line.host_port)
    board = until_the_end.enter_context(CableBoard(line.board_port, 0))
    wait_until(lambda: "ready" in board.lines, "the board's subscription")
    assert host.output().count("not there yet") == 1


def test_the_broker_of_a_board_is_bridged_over_its_cable(tmp_path, until_the_end):
    line = until_the_end.enter_context(SerialLine(SEED, 1e-5))
    config = tmp_path / "midge.toml"
    config.write_text(f"""
[[listener]]
port = 0

[[listener]]
type = "serial"
device = "{line.host_port}"

[[bridge]]
name = "hub"
address = "serial:{line.host_port}"
topics = [
  {{ filter = "button/#", direction = "in", qos = 1, local_prefix = "hub/" }},
  {{ filter = "set/#", direction = "out", qos = 2, local_prefix = "hub/" }},
]
""", encoding="utf-8")
    host = until_the_end.enter_context(brokers.start_host("--config", config))
    watcher = Paho(host.port, "watcher")
    watcher.subscribe("hub/button/count", qos=1)
    watcher.publish("hub/set/led", "waits", 2)  # the board isn't there yet
    board = until_the_end.enter_context(CableBoard(line.board_port, program="serial_hub.py"))
    counts = [int(watcher.receive(50).payload) for _ in range(5)]
    assert counts == list(range(counts[0], counts[0] + 5))
    wait_until(lambda: board.payloads("set/led") == ["waits"], "the command that was sent before")
    watcher.publish("hub/set/led", "on", 2)
    wait_until(lambda: board.payloads("set/led") == ["waits", "on"], "the command")


def test_a_bridge_over_a_cable_needs_its_listener(tmp_path):
    config = tmp_path / "midge.toml"
    config.write_text('[[bridge]]\nname = "hub"\naddress = "serial:auto"\ntopics = [{ filter = "#" }]\n',
                      encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", "midge", "broker", "--check", "--config", config],
                          capture_output=True, text=True)
    assert done.returncode == 2
    assert 'add a [[listener]] with type = "serial" and device = "auto"' in done.stderr
