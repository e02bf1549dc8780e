"""What a history costs the live traffic, and how fast it is replayed.

Run: python benchmarks/replay.py [--messages 1000000] [--rounds 3]

Two host brokers, alternating: one whose [[history]] keeps `kept/#` and holds the messages, one that has none. Prints
ratios of CPU time per message (the kernel's, of the broker's whole process: other load on the machine spares them), the
publisher's cost of a message that is kept, messages per second of a replay with the broker's memory, and the round trip
of a live message while it runs. Exit code 1: something was lost or out of order, or memory grew by more than 100 MB.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

from broker_processes import Broker

from midge.protocol import packets as p
from midge.protocol.encoder import encode

PAYLOAD = "{:064d}"
LIVE = 20_000  # messages of one measurement
GROWTH_MAX = 100_000_000


class Link:
    """A client of 3.1.1 that counts bytes: all its messages on one topic have one size."""

    def __init__(self, port: int, client_id: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 120)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(encode(p.Connect(client_id, True, 0, 4), 4))
        self.read(4)

    def read(self, size: int) -> bytes:
        parts = []
        while size:
            data = self.socket.recv(min(size, 1 << 18))
            if not data:
                raise SystemExit("the broker closed the connection")
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def subscribe(self, topic_filter: str, qos: int = 0) -> None:
        self.socket.sendall(encode(p.Subscribe(1, [p.Subscription(topic_filter, qos)]), 4))
        if self.read(5)[4] != qos:
            raise SystemExit(f"{topic_filter} was refused")

    def publish_acknowledged(self, topic: str, first: int, count: int, window: int) -> None:
        """At QoS 1, *window* at a time: their acknowledgements are awaited together."""
        for at in range(first, first + count, window):
            last = min(at + window, first + count)
            packets = [
                encode(p.Publish(topic, PAYLOAD.format(number).encode(), 1, packet_id=number % 60_000 + 1), 4)
                for number in range(at, last)
            ]
            self.socket.sendall(b"".join(packets))
            self.read(4 * len(packets))


def size_of(topic: str, qos: int) -> int:
    return len(encode(p.Publish(topic, PAYLOAD.format(0).encode(), qos, packet_id=1 if qos else 0), 4))


def live(broker: Broker, qos: int, topic: str) -> float:
    """us of the broker's CPU for one message from a publisher to a subscriber (QoS 0: in bursts; 1: 20 at a time)."""
    reader, writer = Link(broker.port, "reader"), Link(broker.port, "writer")
    reader.subscribe(topic)
    before = broker.cpu_ns()
    burst = 500 if qos == 0 else 20
    packet = encode(p.Publish(topic, PAYLOAD.format(0).encode(), 0), 4)
    for at in range(0, LIVE, burst):
        if qos:
            writer.publish_acknowledged(topic, at, burst, burst)
        else:
            writer.socket.sendall(packet * burst)
        reader.read(burst * size_of(topic, 0))
    return (broker.cpu_ns() - before) / LIVE / 1000


def kept(broker: Broker, topic: str) -> float:
    """us of the broker's CPU for one message at QoS 1, 200 at a time, to nobody."""
    writer = Link(broker.port, "writer")
    before = broker.cpu_ns()
    writer.publish_acknowledged(topic, 0, LIVE, 200)
    return (broker.cpu_ns() - before) / LIVE / 1000


def replay(port: int, qos: int, first: int, last: int, done: multiprocessing.Queue) -> None:
    """Read these; puts the seconds, or 0 if something was missing or out of order."""
    link = Link(port, f"replay {qos}")
    size, rest, numbers = size_of("kept/a", qos), b"", []
    start = time.perf_counter()
    link.subscribe(f"$replay/after/{first}/kept/a", qos)
    while len(numbers) < last - first:
        rest += link.socket.recv(1 << 18)
        whole = len(rest) // size * size
        numbers += [int(rest[at + size - 64 : at + size]) for at in range(0, whole, size)]
        if qos:
            identifiers = [rest[at + 10 : at + 12] for at in range(0, whole, size)]
            link.socket.sendall(b"".join([b"\x40\x02" + each for each in identifiers]))
        rest = rest[whole:]
    took = time.perf_counter() - start
    done.put(took if numbers == list(range(first, last)) else 0.0)


def round_trips(broker: Broker, seconds: float, until: multiprocessing.Process | None = None) -> list[float]:
    """us, of single live messages at QoS 0 from a client to itself."""
    link = Link(broker.port, "ping")
    link.subscribe("live/ping")
    packet = encode(p.Publish("live/ping", b"x", 0), 4)
    end, found = time.perf_counter() + seconds, []
    while time.perf_counter() < end and (until is None or until.is_alive()):
        start = time.perf_counter()
        link.socket.sendall(packet)
        link.read(len(packet))
        found.append((time.perf_counter() - start) * 1e6)
        time.sleep(0.001)
    return found


def told(trips: list[float]) -> str:
    trips = sorted(trips)
    at = [trips[min(len(trips) - 1, int(len(trips) * part))] for part in (0.5, 0.99)]
    return f"median {at[0]:.0f} us, 99 % {at[1]:.0f} us, longest {trips[-1] / 1000:.1f} ms ({len(trips)})"


def start(directory: Path, history: str) -> Broker:
    directory.mkdir()
    config = directory / "midge.toml"
    config.write_text(history)
    command = [sys.executable, "-m", "midge", "broker", "--port", "0", "--config", str(config)]
    return Broker("midge", [*command, "--data", str(directory), "--log-level", "warning"], 0)


def compare(name: str, with_it: list[float], without: list[float]) -> None:
    one, other = statistics.median(with_it), statistics.median(without)
    print(f"{name:<58} {one:7.1f} us of CPU, {other:7.1f} without: {one / other:.2f}x", flush=True)


def measure(options: argparse.Namespace, with_it: Broker, without: Broker) -> bool:
    began = time.perf_counter()
    writer = Link(with_it.port, "filler")
    before = with_it.cpu_ns()
    writer.publish_acknowledged("kept/a", 0, options.messages, 1000)
    took = time.perf_counter() - began
    cpu = (with_it.cpu_ns() - before) / options.messages / 1000
    print(f"{options.messages} kept at QoS 1: {options.messages / took:.0f}/s, {cpu:.1f} us of CPU each", flush=True)
    for qos in (0, 1):
        found = [(live(with_it, qos, "live/a"), live(without, qos, "live/a")) for _ in range(options.rounds)]
        compare(f"live message at QoS {qos} beside that history", *map(list, zip(*found, strict=True)))
    found = [(kept(with_it, "kept/b"), kept(without, "kept/b")) for _ in range(options.rounds)]
    compare("message at QoS 1 to nobody, kept (and committed)", *map(list, zip(*found, strict=True)))
    print("round trip of a live message:", told(round_trips(with_it, 3)), flush=True)
    is_well = True
    for qos in (0, 1):
        count = options.messages if qos == 0 else options.messages // 10
        memory, highest = with_it.memory(), 0
        done: multiprocessing.Queue = multiprocessing.Queue()
        wanted = (with_it.port, qos, options.messages - count, options.messages, done)
        reader = multiprocessing.Process(target=replay, args=wanted)
        cpu_before = with_it.cpu_ns()
        reader.start()
        trips = []
        while reader.is_alive():
            trips += round_trips(with_it, 1, reader)
            highest = max(highest, with_it.memory())
        took = done.get(timeout=10)
        cpu = (with_it.cpu_ns() - cpu_before) / count / 1000
        grew = highest - memory
        is_well = is_well and bool(took) and grew < GROWTH_MAX
        speed = f"{count / took:.0f} messages/s" if took else "LOST OR OUT OF ORDER"
        print(f"replay at QoS {qos}: {speed}, {cpu:.1f} us of CPU each, memory grew by {grew / 1e6:.0f} MB", flush=True)
        print("  round trip of a live message meanwhile:", told(trips), flush=True)
    return is_well


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="midge-replay-") as name:
        directory = Path(name)
        brokers = [
            start(directory / "with", '[[history]]\nfilter = "kept/#"\n'),
            start(directory / "without", ""),
        ]
        try:
            is_well = measure(options, *brokers)
        finally:
            for broker in brokers:
                broker.stop()
        size = sum(file.stat().st_size for file in (directory / "with").iterdir())
        print(f"the store: {size / 1e6:.0f} MB for {options.messages + options.rounds * LIVE} messages of 64 bytes")
    return 0 if is_well else 1


if __name__ == "__main__":
    raise SystemExit(main())
