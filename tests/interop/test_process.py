"""The broker as a process: what systemd is told, how many files it may open."""

import os
import re
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from brokers import LISTENING, RunningBroker, host_python

TIMEOUT_S = 20


class Systemd:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.socket.settimeout(TIMEOUT_S)

    def wait_for(self, start: str) -> str:
        while not (state := self.socket.recv(4096).decode()).startswith(start):
            pass
        return state


def start(address: str, **env: str) -> RunningBroker:
    command = [host_python(), "-m", "midge", "broker", "--port", "0", "--data", ":memory:"]
    return RunningBroker("host", command, LISTENING, env={"PYTHONUNBUFFERED": "1", "NOTIFY_SOCKET": address, **env})


@pytest.mark.parametrize("is_abstract", [False, True])
def test_systemd_is_told_of_start_reload_and_stop(tmp_path: Path, is_abstract: bool) -> None:
    if is_abstract and sys.platform != "linux":
        pytest.skip("abstract sockets are Linux'")
    path = f"{tmp_path}/notify"
    systemd = Systemd("\0" + path if is_abstract else path)
    with start("@" + path if is_abstract else path) as broker:
        systemd.wait_for("READY=1")
        broker.process.send_signal(signal.SIGHUP)
        assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", systemd.wait_for("RELOADING=1"))
        systemd.wait_for("READY=1")
        broker.send_signal(signal.SIGTERM)
        systemd.wait_for("STOPPING=1")
        assert broker.process.wait(TIMEOUT_S) == 0


def test_the_watchdog_hears_of_us_while_the_loop_turns(tmp_path: Path) -> None:
    systemd = Systemd(f"{tmp_path}/notify")
    with start(f"{tmp_path}/notify", WATCHDOG_USEC="200000") as broker:
        for _ in range(3):
            systemd.wait_for("WATCHDOG=1")
        broker.process.send_signal(signal.SIGSTOP)  # as a loop that hangs
        systemd.socket.settimeout(1)
        with pytest.raises(TimeoutError):
            for _ in range(20):  # what was on its way
                systemd.socket.recv(100)
        broker.process.send_signal(signal.SIGCONT)
        systemd.socket.settimeout(TIMEOUT_S)
        systemd.wait_for("WATCHDOG=1")


def test_another_process_watchdog_is_not_ours(tmp_path: Path) -> None:
    systemd = Systemd(f"{tmp_path}/notify")
    with start(f"{tmp_path}/notify", WATCHDOG_USEC="100000", WATCHDOG_PID="1") as broker:
        systemd.wait_for("READY=1")
        systemd.socket.settimeout(0.5)
        with pytest.raises(TimeoutError):
            systemd.socket.recv(100)
        assert broker.is_running()


@pytest.mark.skipif(sys.platform != "linux", reason="reads and sets another process's limits")
@pytest.mark.parametrize("hard", [4096, 20_000])
def test_as_many_files_may_be_open_as_connections(tmp_path: Path, hard: int) -> None:
    if hard > resource.getrlimit(resource.RLIMIT_NOFILE)[1] != resource.RLIM_INFINITY:
        pytest.skip(f"this user may not open {hard} files")
    limited = ["sh", "-c", f'ulimit -Sn 1024; ulimit -Hn {hard}; exec "$@"', "sh"]
    command = [*limited, host_python(), "-m", "midge", "broker", "--port", "0", "--data", ":memory:"]
    with RunningBroker("host", command, LISTENING, env={"PYTHONUNBUFFERED": "1"}) as broker:
        assert resource.prlimit(broker.pid, resource.RLIMIT_NOFILE) == (min(10_100, hard), hard)
        warned = "may open only 4096 files: raise LimitNOFILE=" in broker.output()
        assert warned == (hard == 4096)


def test_output_that_nobody_reads_does_not_stop_it() -> None:
    """`midge broker | head -1`: what is read ends, the broker goes on."""
    reader, writer = os.pipe()
    command = [host_python(), "-m", "midge", "broker", "--port", "0", "--data", ":memory:"]
    process = subprocess.Popen(command, stdout=writer, stderr=subprocess.DEVNULL)
    os.close(writer)
    try:
        with os.fdopen(reader) as lines:
            port = int(LISTENING.match(lines.readline())[1])
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as client:
            client.settimeout(TIMEOUT_S)
            client.sendall(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01x")
            assert client.recv(4) == b"\x20\x02\x00\x00"
        process.terminate()
        assert process.wait(TIMEOUT_S) == 0
    finally:
        process.kill()
        process.wait()
