"""A full queue, over sockets: mosquitto_pub is told, or waits, and what was acknowledged is delivered."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from brokers import RunningBroker, needs_mosquitto, start_host

ROOM = 5


def start(tmp_path: Path, policy: str) -> RunningBroker:
    config = tmp_path / "midge.toml"
    config.write_text(f'[limits]\nmax_queued_messages = {ROOM}\nqueue_full = "{policy}"\n')
    return start_host("--config", str(config), "--data", str(tmp_path))


def sub(port: int, *arguments: str) -> list[str]:
    command = ["mosquitto_sub", "-p", str(port), "-i", "reader", "-c", "-q", "1", "-t", "jobs", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.split()


def pub(port: int, lines: int, version: str = "5") -> subprocess.Popen[str]:
    command = ["mosquitto_pub", "-p", str(port), "-V", version, "-q", "1", "-t", "jobs", "-l", "-i", "writer"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdin is not None
    process.stdin.write("".join(f"{i}\n" for i in range(lines)))
    process.stdin.close()
    return process


@needs_mosquitto
def test_reject_tells_a_5_0_publisher_which_were_refused(tmp_path: Path) -> None:
    with start(tmp_path, "reject") as broker:
        sub(broker.port, "-E")
        publisher = pub(broker.port, 8)
        assert publisher.stdout is not None
        output = publisher.stdout.read()
        publisher.wait(20)
        assert output.count("Quota exceeded") == 3, output
        assert sub(broker.port, "-C", str(ROOM)) == ["0", "1", "2", "3", "4"]
        assert sub(broker.port, "-W", "1") == []


@needs_mosquitto
@pytest.mark.parametrize("version", ["311", "5"])
def test_wait_lets_the_publisher_wait_and_loses_nothing(tmp_path: Path, version: str) -> None:
    with start(tmp_path, "wait") as broker:
        sub(broker.port, "-E")
        publisher = pub(broker.port, 60, version)
        with pytest.raises(subprocess.TimeoutExpired):
            publisher.wait(1)
        assert sub(broker.port, "-C", "60") == [str(i) for i in range(60)]
        assert publisher.wait(20) == 0
        assert publisher.stdout is not None
        assert publisher.stdout.read() == ""


@needs_mosquitto
def test_a_session_section_gives_one_client_s_queue_another_policy(tmp_path: Path) -> None:
    config = tmp_path / "midge.toml"
    config.write_text(
        f'[limits]\nmax_queued_messages = {ROOM}\n\n[[session]]\nclient_id = "read*"\nqueue_full = "reject"\n'
    )
    with start_host("--config", str(config), "--data", str(tmp_path)) as broker:
        sub(broker.port, "-E")
        publisher = pub(broker.port, 8)
        assert publisher.stdout is not None
        assert publisher.stdout.read().count("Quota exceeded") == 3
        publisher.wait(20)
        assert sub(broker.port, "-C", str(ROOM)) == ["0", "1", "2", "3", "4"]
