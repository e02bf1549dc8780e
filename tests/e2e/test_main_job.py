"""The main job, as `make run` starts it: `midge demo` as a process, with real boards on the unix port.
Looks from outside only: output, exit code, and what is left behind.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import brokers

DEADLINE_S = 45
# The boards answer within two seconds of their start; a busy machine makes that more.
DEMO_S = 10


class Demo:
    """`midge demo` in a process group and temporary directory of its own, its processes marked to be found."""

    def __init__(
        self, directory: Path, *args: str, env: dict[str, str] | None = None, stdout: int = subprocess.PIPE
    ) -> None:
        self.directory = directory
        self.port = brokers.free_port()
        self.mark = f"MIDGE_E2E={uuid.uuid4()}"
        name, value = self.mark.split("=")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "midge", "demo", "--port", str(self.port), *args],
            stdout=stdout,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(directory), name: value, **(env or {})},
        )
        self._lines: list[str] = []
        self._came = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            with self._came:
                self._lines.append(line.decode())
                self._came.notify_all()

    @property
    def output(self) -> str:
        with self._came:
            return "".join(self._lines)

    def wait_for(self, pattern: str) -> None:
        end = time.monotonic() + DEADLINE_S
        with self._came:
            while not re.search(pattern, "".join(self._lines)):
                left_s = end - time.monotonic()
                assert left_s > 0, f"no {pattern!r} in:\n{''.join(self._lines)}"
                self._came.wait(left_s)

    def wait(self) -> int:
        code = self.process.wait(DEADLINE_S)
        self._reader.join(5)
        return code

    def processes(self) -> dict[int, str]:
        """The command lines of all processes that carry our mark."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and self.mark.encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # it ended meanwhile, or isn't ours
        return found

    def assert_nothing_left(self) -> None:
        assert self.processes() == {}
        assert list(self.directory.iterdir()) == []
        for port in {self.port, *map(int, re.findall(r"mqtt://127\.0\.0\.1:(\d+)", self.output))}:
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", port)) != 0, f"someone listens on {port}"

    def kill(self) -> None:
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    started: list[Demo] = []

    def run(*args: str, env: dict[str, str] | None = None) -> Demo:
        started.append(Demo(tmp_path, *args, env=env))
        return started[-1]

    yield run
    for demo in started:
        demo.kill()


def test_messages_go_both_ways_and_nothing_stays_behind(start) -> None:
    demo = start("--seconds", str(DEMO_S))
    assert demo.wait() == 0, demo.output
    assert re.search(r"^hub/sensor/load \d+\.\d+$", demo.output, re.MULTILINE)
    assert re.search(r"^hub/controller/uptime \d+$", demo.output, re.MULTILINE)
    assert re.search(r"^cable/uptime \d+$", demo.output, re.MULTILINE)  # the board on a serial cable
    assert "[controller] LED on" in demo.output
    for board in ("sensor", "controller"):
        assert re.search(rf"^{board}: \d+ readings arrived, [1-9]\d* of \d+ commands", demo.output, re.MULTILINE)
    demo.assert_nothing_left()


def test_a_command_published_by_hand_reaches_a_board_as_the_demo_says(start) -> None:
    demo = start()
    demo.wait_for("Your turn, in another terminal(?s:.*)mosquitto_pub")
    line = re.search(r"midge (pub -p \d+ -q 1 -t hub/controller/set/led -m on)\n", demo.output)
    assert line, demo.output
    # The demo switches the LED itself; an interval is ours alone.
    argv = line[1].replace("set/led -m on", "set/interval -m 7").split()
    done = subprocess.run([sys.executable, "-m", "midge", *argv], capture_output=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    demo.wait_for("hub/controller/state/interval 7")
    demo.process.send_signal(signal.SIGINT)
    assert demo.wait() == 0, demo.output
    demo.assert_nothing_left()


@pytest.mark.parametrize("moment", ["starting the boards", r"\[hub\] listening", r"hub/sensor/status online"])
def test_ctrl_c_ends_it_with_0_at_any_time_and_nothing_stays_behind(moment: str, start) -> None:
    demo = start()
    demo.wait_for(moment)
    demo.process.send_signal(signal.SIGINT)
    assert demo.wait() == 0, demo.output
    assert "Traceback" not in demo.output
    demo.assert_nothing_left()


def test_a_reader_that_goes_away_ends_it_and_nothing_stays_behind(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    demo = Demo(tmp_path, stdout=write_end)
    os.close(write_end)
    try:
        with open(read_end, "rb") as output:  # as `make run | head -3` does
            for _ in range(3):
                output.readline()
        assert demo.wait() == 141
        demo.assert_nothing_left()
    finally:
        demo.kill()


@pytest.mark.parametrize(("name", "program"), [("sensor", "-m sensor"), ("broker", "midge broker")])
def test_a_process_that_dies_is_named_and_the_rest_is_ended(name: str, program: str, start) -> None:
    demo = start("--seconds", "60")
    demo.wait_for("Your turn")
    victim = next(pid for pid, command in demo.processes().items() if program in command)
    os.kill(victim, signal.SIGKILL)
    assert demo.wait() == 1
    assert f"midge demo: {name} was ended by SIGKILL" in demo.output
    assert "Traceback" not in demo.output
    demo.assert_nothing_left()


def test_a_micropython_that_does_not_work_is_told(start, tmp_path_factory: pytest.TempPathFactory) -> None:
    program = tmp_path_factory.mktemp("bin") / "micropython"
    program.write_text("#!/bin/sh\necho 'wrong machine'\nexit 3\n")
    program.chmod(0o755)
    demo = start("--seconds", "60", env={"MICROPYTHON": str(program)})
    assert demo.wait() == 1
    assert "hub ended with exit code 3; its last lines:\n    wrong machine" in demo.output
    demo.assert_nothing_left()


def test_a_missing_micropython_is_told(start) -> None:
    demo = start(env={"MICROPYTHON": "/nonexistent/micropython"})
    assert demo.wait() == 1
    assert "midge demo: MICROPYTHON=/nonexistent/micropython: no such program" in demo.output
    demo.assert_nothing_left()
