"""Brokers as processes of their own, for `host_broker.py`: started on a port that the system chose, with their CPU time
and memory as the kernel counts them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

HOST = "127.0.0.1"
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Broker:
    """One broker process."""

    def __init__(self, name: str, command: list[str], port: int) -> None:
        self.name = name
        self.port = port
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        if not port:
            assert self.process.stdout is not None
            line = self.process.stdout.readline().strip()
            found = re.search(r":(\d+)$", line)
            if found is None:
                raise SystemExit(f"{name} did not start: {' '.join(command)}")
            self.port = int(found[1])
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection((HOST, self.port), 1).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{name} did not start: {' '.join(command)}") from None
                time.sleep(0.02)

    def cpu_ns(self) -> int:
        """Time on a processor of all its threads. To the nanosecond, where /proc/PID/stat counts 10 ms ticks."""
        total = 0
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):
                total += int((task / "schedstat").read_text().split()[0])
        return total

    def memory(self) -> int:
        """bytes that it has resident."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * _PAGE

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def form_of(python: str) -> str:
    """Whether the midge of that interpreter is "compiled" (a wheel of `make wheel`) or "pure" Python."""
    code = "import midge.core.connection as it; print(it.__file__)"
    run = subprocess.run([python, "-c", code], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{python} has no midge: {run.stderr.strip().splitlines()[-1]}")
    return "pure" if run.stdout.strip().endswith(".py") else "compiled"


def start_midge(python: str, directory: Path, queue_max: int | None) -> Broker:
    """Its defaults: a store on disk, and what rests on it acknowledged once committed."""
    config = directory / "midge.toml"
    config.write_text(f"[limits]\nmax_queued_messages = {queue_max}\n" if queue_max else "")
    command = [python, "-m", "midge", "broker", "--port", "0", "--config", str(config)]
    return Broker(form_of(python), [*command, "--data", str(directory), "--log-level", "warning"], 0)


def start_mosquitto(directory: Path, queue_max: int | None, is_persistent: bool) -> Broker | None:
    """Its defaults, but without a log, and with TCP_NODELAY, which is better for it here. None: not installed."""
    program = mosquitto()
    if program is None:
        return None
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    lines = [f"listener {port} {HOST}", "allow_anonymous true", "log_type error", "set_tcp_nodelay true"]
    if is_persistent:
        lines += ["persistence true", f"persistence_location {directory}/"]
    if queue_max:
        lines += [f"max_queued_messages {queue_max}"]
    if os.geteuid() == 0:
        lines += ["user root"]  # else it gives up the right to our directory
    (directory / "mosquitto.conf").write_text("\n".join(lines) + "\n")
    return Broker("mosquitto", [program, "-c", str(directory / "mosquitto.conf")], port)


def mosquitto() -> str | None:
    return shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def mosquitto_version() -> str:
    program = mosquitto()
    if program is None:
        return "not installed: apt-get install mosquitto"
    run = subprocess.run([program, "-h"], capture_output=True, text=True)
    found = re.search(r"version (\S+)", run.stdout)
    return found[1] if found else "?"
