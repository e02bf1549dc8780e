"""The disk is full, really: what must be kept is refused, everything else goes on, and it recovers by itself.

Two ways to a full disk: a file system of a few megabytes (needs root), and a limit on the size of the broker's
files (RLIMIT_FSIZE; SQLite meets EFBIG where it would meet ENOSPC).
"""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from brokers import RunningBroker, start_host
from midge.protocol import packets as p
from midge.protocol.decoder import Decoder
from midge.protocol.encoder import encode

from .peers import Subscriber

QUOTA_EXCEEDED = 0x97
LIMITS = "[limits]\nmax_queued_messages = 1_000_000\n"


class Client:
    """A client of either version; what comes is taken packet by packet."""

    def __init__(self, port: int, client_id: str, version: int = 5, clean_start: bool = True) -> None:
        self.version = version
        self._decoder = Decoder("client", version)
        self._packets: list[Any] = []
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        properties: Any = {} if clean_start or version == 4 else {"session_expiry_interval": 0xFFFF_FFFF}
        self.send(p.Connect(client_id, clean_start, 60, version, properties=properties))
        connack = self.receive()
        assert connack.reason_code == 0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()

    def send(self, *packets: p.Packet) -> None:
        self.socket.sendall(b"".join(encode(packet, self.version) for packet in packets))

    def receive(self, timeout_s: float = 10) -> Any:
        """The next packet; None: the broker has closed the connection."""
        self.socket.settimeout(timeout_s)
        while not self._packets:
            try:
                data = self.socket.recv(65_536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._packets += self._decoder.receive_data(data)
        return self._packets.pop(0)

    def publish(self, topic: str, payload: bytes, packet_id: int) -> Any:
        """At QoS 1; the answer."""
        self.send(p.Publish(topic, payload, 1, packet_id=packet_id))
        return self.receive()


Disk = tuple[Path, Callable[[RunningBroker], None], Callable[[RunningBroker], None]]


@contextmanager
def small_file_system(directory: Path) -> Iterator[Disk]:
    """Of 6 MB; to make it full is to fill it up, to make space is to remove that again."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(directory)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, timeout=10).returncode:
        pytest.skip("mounting a small file system needs root")
    ballast = directory / "ballast"

    def fill(broker: RunningBroker) -> None:
        free = os.statvfs(directory)
        ballast.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - 400_000)))

    try:
        yield directory, fill, lambda broker: ballast.unlink()
    finally:
        subprocess.run(["umount", "-l", directory], check=True, timeout=10)


@contextmanager
def limited_file_size(directory: Path) -> Iterator[Disk]:
    def limit(broker: RunningBroker) -> None:
        size = max(file.stat().st_size for file in directory.iterdir())
        resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, (size + 400_000, resource.RLIM_INFINITY))

    def lift(broker: RunningBroker) -> None:
        resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    yield directory, limit, lift


def publish_until_full(port: int) -> list[int]:
    """Numbers that were acknowledged, the last before the disk was full."""
    acknowledged: list[int] = []
    with Client(port, "filler") as client:
        for number in range(20_000):
            answer = client.publish("numbers", b"%08d" % number + bytes(4000), number % 65_535 + 1)
            if not (isinstance(answer, p.Puback) and answer.reason_code == 0):
                # In the batch that failed: the connection was closed, with the reason.
                assert answer.reason_code == QUOTA_EXCEEDED
                return acknowledged
            acknowledged.append(number)
    raise AssertionError("the disk was never full")


def check_what_goes_on(port: int) -> None:
    with Client(port, "old", 4) as old:
        old.send(p.Publish("numbers", b"99999998", 1, packet_id=1))
        assert old.receive() is None  # closed, not acknowledged
    with Client(port, "reader") as reader, Client(port, "writer") as writer:
        assert writer.publish("numbers", b"99999999", 1).reason_code == QUOTA_EXCEEDED
        reader.send(p.Subscribe(1, [p.Subscription("live/#", 1)]))
        assert reader.receive().reason_codes == [1]
        assert writer.publish("live/one", b"1", 2).reason_code == 0
        writer.send(p.Publish("live/zero", b"0", 0))
        assert [reader.receive().payload for _ in range(2)] == [b"1", b"0"]
        writer.send(p.Pingreq())
        assert isinstance(writer.receive(), p.Pingresp)


def wait_for_space(port: int) -> None:
    deadline = time.monotonic() + 20
    with Client(port, "again") as client:
        for packet_id in range(1, 1000):
            if client.publish("numbers", b"88888888", packet_id).reason_code == 0:
                return
            assert time.monotonic() < deadline, "it did not recover"
            time.sleep(0.1)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("disk", [small_file_system, limited_file_size])
def test_a_full_disk_refuses_what_must_last_and_recovers(tmp_path: Path, disk: Any) -> None:
    data = tmp_path / "data"
    data.mkdir()
    config = tmp_path / "midge.toml"
    config.write_text(LIMITS)
    arguments = ("--config", str(config), "--data", str(data), "--log-level", "warning")
    subscriber = Subscriber("subscriber", "numbers", 1)
    with disk(data) as (_, fill, make_space):
        with start_host(*arguments) as broker:
            subscriber.resume(broker.port)
            subscriber.close()
            fill(broker)
            acknowledged = publish_until_full(broker.port)
            broker.wait_for_output(r"trying again")
            check_what_goes_on(broker.port)
            make_space(broker)
            wait_for_space(broker.port)
            broker.kill()
        with start_host(*arguments) as broker:
            assert subscriber.resume(broker.port)
            while subscriber.step(timeout_s=1):
                pass
            subscriber.close()
    # The payloads are longer than numbers, so only what they begin with is compared.
    delivered = [number for number in subscriber.numbers if number < 80_000_000]
    assert delivered[: len(acknowledged)] == acknowledged
    assert len(delivered) <= len(acknowledged) + 1  # the one in the failed batch may be there
    assert subscriber.numbers[-1] == 88_888_888
    assert 99_999_998 not in subscriber.numbers and 99_999_999 not in subscriber.numbers


@pytest.mark.timeout(60)
def test_a_broker_whose_disk_is_full_still_stops_in_time(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    config = tmp_path / "midge.toml"
    config.write_text(LIMITS)
    with limited_file_size(data) as (_, fill, _), start_host(
        "--config", str(config), "--data", str(data), "--log-level", "warning"
    ) as broker:
        Subscriber("subscriber", "numbers", 1).resume(broker.port)
        fill(broker)
        publish_until_full(broker.port)
        start = time.monotonic()
        assert broker.stop() == 0
        assert time.monotonic() - start < 4
