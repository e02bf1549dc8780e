"""The host's broker with far more than its memory: retained topics, a long backlog, and a restart on them.

Run: python benchmarks/large_store.py [--retained 100000] [--backlog-mb 200] [--queued 100000] [--directory DIR]
     make large      a million retained topics, a backlog of 10 GB

Prints what the broker's process takes (RSS), how long it takes to start, and how fast it sends. Exit code 1: something
was lost or out of order, or the RSS grew by more than the budget (limits.max_message_memory, its default) and 150 MB.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from midge.core.limits import Limits
from midge.protocol import packets as p
from midge.protocol.decoder import Decoder
from midge.protocol.encoder import encode

EXTRA_MB = 150  # SQLite's caches, batches on their way, the routing's memory of 50,000 topics, holes
RETAINED_BYTES = 64
BACKLOG_BYTES = 4096
WINDOW = 500


class Broker:
    """On *directory*; `start_s` is from exec to the line that says it listens."""

    def __init__(self, directory: Path) -> None:
        config = directory / "midge.toml"
        config.write_text(
            "[limits]\nmax_queued_messages = 100_000_000\nmax_queued_bytes = 1_000_000_000_000\n"
            "max_retained_messages = 100_000_000\nmax_retained_bytes = 1_000_000_000_000\n"
        )
        command = [sys.executable, "-m", "midge", "broker", "--port", "0", "--config", str(config)]
        start = time.perf_counter()
        self.process = subprocess.Popen(
            [*command, "--data", str(directory), "--log-level", "warning"], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.start_s = time.perf_counter() - start
        self.port = int(line.rsplit(":", 1)[1])

    def rss_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e6

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Client:
    def __init__(self, port: int, client_id: str, clean: bool = True) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._decoder = Decoder("client", 4)
        self._packets: list[Any] = []
        self.send(p.Connect(client_id, clean, 0, 4))
        self.receive()

    def send(self, *packets: p.Packet) -> None:
        self.socket.sendall(b"".join(encode(packet, 4) for packet in packets))

    def receive(self) -> Any:
        while not self._packets:
            data = self.socket.recv(1 << 18)
            if not data:
                raise SystemExit("the broker closed the connection")
            for packet in self._decoder.receive_data(data):
                self._packets += packet.publishes(4) if isinstance(packet, p.PublishRun) else [packet]
            self._packets.reverse()
        return self._packets.pop()

    def subscribe(self, topic_filter: str, qos: int) -> None:
        self.send(p.Subscribe(1, [p.Subscription(topic_filter, qos)]))
        self.receive()


def publish(port: int, topics: list[str], payload_bytes: int, qos: int, retain: bool) -> None:
    """One message to each of *topics*, numbered."""
    client = Client(port, "publisher")
    for at in range(0, len(topics), WINDOW):
        chunk = topics[at : at + WINDOW]
        client.send(*(
            p.Publish(topic, b"%0*d" % (payload_bytes, at + i), qos, retain=retain, packet_id=i + 1)
            for i, topic in enumerate(chunk)
        ))  # fmt: skip
        for _ in chunk:
            client.receive()
    client.socket.close()


def receive(port: int, client_id: str, count: int, clean: bool, topic_filter: str = "", qos: int = 0) -> list[int]:
    """The numbers of *count* messages."""
    client = Client(port, client_id, clean)
    if topic_filter:
        client.subscribe(topic_filter, qos)
    numbers: list[int] = []
    while len(numbers) < count:
        packet = client.receive()
        numbers.append(int(packet.payload))
        if packet.qos:
            client.send(p.Puback(packet.packet_id))
    client.socket.close()
    return numbers


def measure(title: str, directory: Path, count: int, bytes_each: int, is_retained: bool) -> bool:
    print(f"{title}: {count:,} of {bytes_each} bytes")
    broker = Broker(directory)
    before = broker.rss_mb()
    if not is_retained:
        subscriber = Client(broker.port, "away", clean=False)
        subscriber.subscribe("backlog/#", 1)
        subscriber.socket.close()
        topics = ["backlog/one"] * count
    else:
        topics = [f"site{i % 50}/machine{i // 50 % 1000}/sensor{i}/value" for i in range(count)]
    start = time.perf_counter()
    publish(broker.port, topics, bytes_each, 1, is_retained)
    seconds = time.perf_counter() - start
    published = broker.rss_mb()
    print(f"  published in {seconds:.1f} s; RSS {before:.0f} MB before, {published:.0f} MB after; "
          f"files {sum(file.stat().st_size for file in directory.iterdir()) / 1e6:,.0f} MB")  # fmt: skip
    broker.kill()
    broker = Broker(directory)
    started = broker.rss_mb()
    print(f"  killed and started again in {broker.start_s:.2f} s; RSS {started:.0f} MB")
    start = time.perf_counter()
    if is_retained:
        few = receive(broker.port, "few", len(range(7, count, 50_000)), True, "site7/machine0/#")
        print(f"  {len(few)} found by a filter in {(time.perf_counter() - start) * 1e3:.0f} ms")
        start = time.perf_counter()
        numbers = sorted(receive(broker.port, "all", count, True, "#"))
    else:
        numbers = receive(broker.port, "away", count, False)
    seconds = time.perf_counter() - start
    read = broker.rss_mb()
    print(f"  all received in {seconds:.1f} s; RSS {read:.0f} MB")
    broker.kill()
    growth = max(published, started, read) - before
    is_good = numbers == list(range(count)) and growth < Limits().max_message_memory / 1e6 + EXTRA_MB
    print(f"  {'as it should be' if is_good else 'WRONG'}: RSS grew by {growth:.0f} MB at most")
    return is_good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retained", type=int, default=100_000, help="retained topics (100,000)")
    parser.add_argument("--backlog-mb", type=int, default=200, help="queued payloads in MB (200)")
    parser.add_argument("--queued", type=int, default=100_000, help="small messages queued for one session (100,000)")
    parser.add_argument("--directory", type=Path, help="where the stores are made (the system's temporary one)")
    options = parser.parse_args()
    cases = [
        ("retained", options.retained, RETAINED_BYTES, True),
        ("queued", options.queued, RETAINED_BYTES, False),
        ("backlog", options.backlog_mb * 1_000_000 // BACKLOG_BYTES, BACKLOG_BYTES, False),
    ]
    is_good = True
    for title, count, bytes_each, is_retained in cases:
        directory = Path(tempfile.mkdtemp(prefix="midge-large-", dir=options.directory))
        try:
            if count:
                is_good = measure(title, directory, count, bytes_each, is_retained) and is_good
        finally:
            shutil.rmtree(directory)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
