"""The host's broker beside Debian's Mosquitto: messages a second, CPU per message, loss, latency.

Run: python benchmarks/host_broker.py [--rounds 3] [--seconds 2] [--only q1,fanout-q0] [--json FILE]

Both brokers are started here, fresh for each scenario, and take turns (A B A B ...); figures are medians. One thread
of Python is both ends of every message. It is fast enough because it decides nothing per message: payloads are
numbered 0 to 65,534 over and over, and so are both brokers' packet identifiers, so that what has to come back is
known in advance, and compared in whole chunks. Only where it differs are packets looked at one by one: each message
that is lost, doubled or out of order is counted. Exit code 1: one was, at QoS 1 or 2.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import re
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from midge.protocol import packets as p
from midge.protocol.encoder import encode

HOST = "127.0.0.1"
TOPICS = [f"bench/kitchen{number:02}/temperature" for number in range(10)]  # of one length
PAYLOAD_BYTES = 64
CYCLE = 65_535  # packets until payloads and packet identifiers repeat
QUEUED_MESSAGES = 10_000
WINDOW = 20  # messages at QoS 1 and 2 that a publisher has under way; both brokers' own window too
CONNECTING = 50  # connections in progress at the same time
RECEIVE_BYTES = 1 << 18
IDLE_S = 3.0  # nothing moved for so long: what is missing is lost
# How far the slowest subscriber may fall behind at QoS 1 and 2: half of what either broker queues by default, so
# that a slow reader here isn't counted as a loss there.
BEHIND_MAX = 500

# What answers what, by first byte: PUBLISH QoS 1, PUBLISH QoS 2, PUBREC, PUBREL.
ANSWER = {0x32: 0x40, 0x34: 0x50, 0x50: 0x62, 0x62: 0x70}


# -- what is sent, and what must come back --


class Stream:
    """Packets of one kind, endlessly, and how far we are."""

    def __init__(self, cycle: bytes) -> None:
        self.cycle = cycle
        self.size = len(cycle) // CYCLE
        # So that a slice doesn't have to wrap: what one chunk can hold stands there again.
        self._bytes = cycle + cycle[: RECEIVE_BYTES * 2]
        self._at = 0

    def peek(self, count: int) -> bytes:
        return self._bytes[self._at : self._at + count * self.size]

    def take(self, count: int) -> bytes:
        data = self.peek(count)
        self._at = (self._at + len(data)) % len(self.cycle)
        return data

    def copy(self) -> Stream:
        other = copy.copy(self)
        other._at = 0
        return other


def _publishes(qos: int) -> Stream:
    filler = bytes(range(PAYLOAD_BYTES - 8))
    return Stream(b"".join(
        encode(p.Publish(TOPICS[0], b"%08d" % number + filler, qos, packet_id=number + 1 if qos else 0), 4)
        for number in range(CYCLE)
    ))  # fmt: skip


def _acknowledgements(first: int) -> Stream:
    return Stream(b"".join(bytes((first, 2, n >> 8, n & 0xFF)) for n in range(1, CYCLE + 1)))


_streams: dict[tuple[int, int], Stream] = {}


def stream(first: int, topic: int = 0) -> Stream:
    """The packets with that first byte, from the first one on; PUBLISH to that one of TOPICS."""
    if first >> 4 != 3:
        topic = 0
    if (first, topic) not in _streams:
        if topic:
            made = Stream(stream(first).cycle.replace(TOPICS[0].encode(), TOPICS[topic].encode()))
        else:
            made = _publishes(first >> 1 & 3) if first >> 4 == 3 else _acknowledgements(first)
        _streams[first, topic] = made
    return _streams[first, topic].copy()


@dataclass
class Faults:
    lost: int = 0
    doubled: int = 0
    disordered: int = 0

    def add(self, other: Faults) -> None:
        self.lost += other.lost
        self.doubled += other.doubled
        self.disordered += other.disordered

    def __bool__(self) -> bool:
        return bool(self.lost or self.doubled or self.disordered)


class Client:
    """One connection: compares what comes with what must come, and answers it."""

    def __init__(
        self, port: int, client_id: str, expects: tuple[int, ...] = (), clean: bool = True, topic: int = 0
    ) -> None:
        self._topic = topic
        self.received = dict.fromkeys(expects, 0)  # packets by first byte
        self.faults = Faults()
        self._expected = {first: stream(first, topic) for first in expects}
        self._answers = {first: stream(ANSWER[first]) for first in expects if first in ANSWER}
        self._is_predictable = True  # cleared by the first packet that is another than the next one
        self._next_number = 0
        self._missing: set[int] = set()
        self._rest = b""
        self._unsent = b""
        self.socket = socket.create_connection((HOST, port), 10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.send(encode(p.Connect(client_id, clean, 600, 4), 4))
        self.session_present = bool(self._read_exactly(4)[2])

    def _read_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = self.socket.recv(size - len(data))
            if not chunk:
                raise ConnectionError("the broker closed the connection")
            data += chunk
        return data

    def subscribe(self, qos: int) -> None:
        self.send(encode(p.Subscribe(1, [p.Subscription(TOPICS[self._topic], qos)]), 4))
        assert self._read_exactly(5)[4] == qos

    def close(self) -> None:
        self.socket.setblocking(True)
        with contextlib.suppress(OSError):
            self.socket.sendall(b"\xe0\x00")
        self.socket.close()

    def send(self, data: bytes) -> None:
        """What the kernel doesn't take now leaves with the next call, or with `flush`."""
        self._unsent += data
        self.flush()

    def flush(self) -> None:
        if self._unsent:
            with contextlib.suppress(BlockingIOError):
                self._unsent = self._unsent[self.socket.send(self._unsent) :]

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    def receive(self) -> None:
        try:
            data = self.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionError("the broker closed the connection")
        if self._rest:
            data = self._rest + data
        at, answers = self._compare(data) if self._is_predictable else (0, [])
        if not self._is_predictable:
            at = self._parse(data, at, answers)
        self._rest = data[at:]
        if answers:
            self.send(b"".join(answers))

    def _compare(self, data: bytes) -> tuple[int, list[bytes]]:
        """Take what is as expected, in pieces as large as possible; how far that was, and the answers."""
        at = 0
        answers = []
        while at < len(data):
            first = data[at]
            expected = self._expected.get(first)
            count = (len(data) - at) // expected.size if expected else 0
            if expected is None:
                self._is_predictable = False
                break
            if not count:
                break
            if data[at : at + count * expected.size] != expected.peek(count):
                count = 0  # another kind of packet follows in between, mostly: one by one up to there
                if not data.startswith(expected.peek(1), at):
                    self._is_predictable = False
                    break
                while data.startswith(expected.peek(1), at + count * expected.size):
                    expected.take(1)
                    count += 1
            else:
                expected.take(count)
            at += count * expected.size
            self.received[first] += count
            if first in self._answers:
                answers.append(self._answers[first].take(count))
        self._next_number = self.delivered % CYCLE
        return at, answers

    def _parse(self, data: bytes, at: int, answers: list[bytes]) -> int:
        """The same packet by packet, from where the stream was another than expected."""
        while at + 2 <= len(data):
            first = data[at] & 0xF7  # without DUP
            end = at + 2 + data[at + 1]
            if end > len(data):
                break
            id_at = at + 4 + len(TOPICS[0]) if first >> 4 == 3 else at + 2
            if first in ANSWER:
                answers.append(bytes((ANSWER[first], 2)) + data[id_at : id_at + 2])
            if first >> 4 != 3 or self._is_new(int(data[end - PAYLOAD_BYTES : end - PAYLOAD_BYTES + 8])):
                self.received[first] = self.received.get(first, 0) + 1
            at = end
        return at

    def _is_new(self, number: int) -> bool:
        ahead = (number - self._next_number) % CYCLE
        if ahead < CYCLE // 2:
            self._missing.update((self._next_number + i) % CYCLE for i in range(ahead))
            self._next_number = (number + 1) % CYCLE
            return True
        if number in self._missing:
            self._missing.discard(number)
            self.faults.disordered += 1
            return True
        self.faults.doubled += 1
        return False

    @property
    def delivered(self) -> int:
        """Messages received."""
        return sum(count for first, count in self.received.items() if first >> 4 == 3)


class Publisher(Client):
    """Sends as many messages as its window lets it."""

    def __init__(self, port: int, qos: int, window: int, topic: int = 0) -> None:
        super().__init__(port, f"publisher-{topic}", {0: (), 1: (0x40,), 2: (0x50, 0x70)}[qos])
        self.qos = qos
        self.sent = 0
        self._window = window
        self._messages = stream(0x30 | qos << 1, topic)

    @property
    def acknowledged(self) -> int:
        return self.received[0x70 if self.qos == 2 else 0x40]

    def publish(self, delivered: int, limit: int | None = None) -> None:
        """*delivered*: what the slowest subscriber has. At QoS 0 that is what the window counts."""
        if self.has_unsent:
            return
        room = self._window - (self.sent - (self.acknowledged if self.qos else delivered))
        if self.qos:
            room = min(room, BEHIND_MAX - (self.sent - delivered))
        if limit is not None:
            room = min(room, limit - self.sent)
        if room > 0:
            self.sent += room
            self.send(self._messages.take(room))


# -- the brokers --


class Broker:
    """One broker process, on a port that the system chose."""

    def __init__(self, name: str, command: list[str], port: int) -> None:
        self.name = name
        self.port = port
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        if not port:
            assert self.process.stdout is not None
            self.port = int(re.search(r":(\d+)$", self.process.stdout.readline().strip())[1])
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

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_midge(directory: Path, queue_max: int | None) -> Broker:
    """Its defaults: a store on disk, and what rests on it acknowledged once committed."""
    config = directory / "midge.toml"
    config.write_text(f"[limits]\nmax_queued_messages = {queue_max}\n" if queue_max else "")
    command = [sys.executable, "-m", "midge", "broker", "--port", "0", "--config", str(config)]
    return Broker("midge", [*command, "--data", str(directory), "--log-level", "warning"], 0)


def start_mosquitto(directory: Path, queue_max: int | None, is_persistent: bool) -> Broker | None:
    """Its defaults, but without a log, and with TCP_NODELAY, which is better for it here."""
    program = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
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


# -- scenarios --


@dataclass
class Result:
    """One run. `count` is of messages delivered, or connections made."""

    count: int = 0
    seconds: float = 0.0
    broker_cpu_s: float = 0.0
    load_cpu_s: float = 0.0
    faults: Faults = field(default_factory=Faults)
    latencies_us: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        figures = {
            "per_second": self.count / self.seconds,
            "broker_us": self.broker_cpu_s * 1e6 / self.count,
            "broker_share": self.broker_cpu_s / self.seconds,
            "load_share": self.load_cpu_s / self.seconds,
            "lost": self.faults.lost,
            "doubled": self.faults.doubled,
            "disordered": self.faults.disordered,
        }
        if self.latencies_us:
            percentiles = statistics.quantiles(self.latencies_us, n=100, method="inclusive")
            figures |= {"p50_us": percentiles[49], "p99_us": percentiles[98]}
        return figures


@contextlib.contextmanager
def measured(broker: Broker) -> Iterator[Result]:
    """Fills in the times; the caller the count, and the seconds if they end earlier."""
    result = Result()
    cpu_ns, load_s, start = broker.cpu_ns(), time.process_time(), time.perf_counter()
    yield result
    result.seconds = result.seconds or time.perf_counter() - start
    result.broker_cpu_s = (broker.cpu_ns() - cpu_ns) / 1e9
    result.load_cpu_s = time.process_time() - load_s


def serve(clients: list[Client], after_each: Callable[[], bool]) -> None:
    """Let the clients receive and answer until *after_each* says True, or nothing moves any more."""
    poller = select.epoll()
    by_fd = {client.socket.fileno(): client for client in clients}
    for client in clients:
        client.socket.setblocking(False)
        poller.register(client.socket, select.EPOLLIN)
    with poller:
        while not after_each():
            ready = poller.poll(0.001 if any(client.has_unsent for client in clients) else IDLE_S)
            if not ready and not any(client.has_unsent for client in clients):
                return
            for fd, _ in ready:
                by_fd[fd].receive()
            for client in clients:
                client.flush()


_numbers = iter(range(1, 1 << 60))


class Topic:
    """One publisher and those who subscribe to it."""

    def __init__(self, broker: Broker, number: int, qos: int, subscribers: int, window: int, clean: bool) -> None:
        kinds = {0: (0x30,), 1: (0x32,), 2: (0x34, 0x62)}[qos]
        self._kind = kinds[0]
        self.names = [f"subscriber-{next(_numbers)}" for _ in range(subscribers)]
        self.subscribers = [Client(broker.port, name, kinds, clean, number) for name in self.names]
        for subscriber in self.subscribers:
            subscriber.subscribe(qos)
        self.publisher = Publisher(broker.port, qos, window, number)
        self.slowest = 0  # messages that every subscriber has; set by `count`

    def count(self) -> int:
        self.slowest = min([subscriber.received[self._kind] for subscriber in self.subscribers])
        return self.slowest

    @property
    def is_done(self) -> bool:
        publisher = self.publisher
        return self.slowest >= publisher.sent and (not publisher.qos or publisher.acknowledged >= publisher.sent)


def flow(
    broker: Broker,
    seconds: float,
    qos: int,
    *,
    topics: int = 1,
    subscribers: int = 1,
    window: int = WINDOW,
    clean: bool = True,
) -> Result:
    """Each topic has one publisher, as fast as its window allows, and *subscribers*."""
    flows = [Topic(broker, number, qos, subscribers, window, clean) for number in range(topics)]
    with measured(broker) as result:
        start = last = time.perf_counter()
        seen = 0

        def go_on() -> bool:
            nonlocal last, seen
            delivered = sum([one.count() for one in flows])
            now = time.perf_counter()
            if delivered > seen:
                seen, last = delivered, now
            if now - start >= seconds:
                return all(one.is_done for one in flows)
            for one in flows:
                one.publisher.publish(one.slowest)
            return False

        serve([client for one in flows for client in (one.publisher, *one.subscribers)], go_on)
        result.seconds = last - start
    for one in flows:
        one.publisher.close()
        for name, subscriber in zip(one.names, one.subscribers, strict=True):
            result.count += subscriber.delivered
            subscriber.faults.lost = one.publisher.sent - subscriber.delivered
            result.faults.add(subscriber.faults)
            subscriber.close()
            if not clean:
                Client(broker.port, name).close()  # a clean session ends the one that was kept
    return result


def ping_pong(broker: Broker, seconds: float, qos: int) -> Result:
    """One message at a time: from `send` to its arrival at the subscriber."""
    sub = Client(broker.port, f"subscriber-{next(_numbers)}", ((0x30, 0x32)[qos],))
    sub.subscribe(qos)
    publisher = Publisher(broker.port, qos, 1)
    with measured(broker) as result:
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            publisher.publish(publisher.sent)
            while sub.delivered < publisher.sent:
                sub.receive()
            result.latencies_us.append((time.perf_counter() - start) * 1e6)
            while qos and publisher.acknowledged < publisher.sent:
                publisher.receive()
        result.count = sub.delivered
    result.faults.add(sub.faults)
    publisher.close()
    sub.close()
    return result


def deliver_queued(broker: Broker, seconds: float) -> Result:
    """A persistent session was away while 10,000 messages at QoS 1 came; from its CONNECT to the last of them."""
    name = f"subscriber-{next(_numbers)}"
    away = Client(broker.port, name, clean=False)
    away.subscribe(1)
    away.close()
    publisher = Publisher(broker.port, 1, 100)

    def queue() -> bool:
        publisher.publish(publisher.sent, QUEUED_MESSAGES)
        return publisher.acknowledged >= QUEUED_MESSAGES

    serve([publisher], queue)
    publisher.close()
    with measured(broker) as result:
        sub = Client(broker.port, name, (0x32,), clean=False)
        serve([sub], lambda: sub.delivered >= QUEUED_MESSAGES)
        result.count = sub.delivered
    result.faults.add(sub.faults)
    result.faults.lost = QUEUED_MESSAGES - sub.delivered
    sub.close()
    Client(broker.port, name).close()
    return result


def connect(broker: Broker, seconds: float) -> Result:
    """CONNECT, CONNACK, DISCONNECT, close, with 50 connections in progress."""
    hello = encode(p.Connect("connecting", True, 60, 4), 4)
    hellos = iter(hello.replace(b"connecting", b"%010d" % n) for n in range(1, 1 << 30))
    waiting: dict[int, socket.socket] = {}
    with measured(broker) as result, select.epoll() as poller:
        end = time.perf_counter() + seconds
        while waiting or time.perf_counter() < end:
            while len(waiting) < CONNECTING and time.perf_counter() < end:
                opened = socket.create_connection((HOST, broker.port), 10)
                opened.sendall(next(hellos))
                poller.register(opened, select.EPOLLIN)
                waiting[opened.fileno()] = opened
            for fd, _ in poller.poll(IDLE_S):
                with waiting.pop(fd) as answered:
                    if answered.recv(16) == b"\x20\x02\x00\x00":
                        answered.sendall(b"\xe0\x00")
                        result.count += 1
                    else:
                        result.faults.lost += 1
    return result


@dataclass(frozen=True)
class Scenario:
    what: str
    run: Callable[[Broker, float], Result]
    qos: int = 0
    is_persistent: bool = False
    queue_max: int | None = None
    unit: str = "message"


SCENARIOS = {
    "q0": Scenario("QoS 0, 1 to 1", lambda b, s: flow(b, s, 0, window=1000)),
    "q1": Scenario("QoS 1, 1 to 1", lambda b, s: flow(b, s, 1), 1),
    "q2": Scenario("QoS 2, 1 to 1", lambda b, s: flow(b, s, 2), 2),
    "pairs-q1": Scenario("QoS 1, 10 to 10", lambda b, s: flow(b, s, 1, topics=10), 1),
    "fanout-q0": Scenario("QoS 0, 1 to 100", lambda b, s: flow(b, s, 0, subscribers=100, window=50)),
    "fanout-q1": Scenario("QoS 1, 1 to 100", lambda b, s: flow(b, s, 1, subscribers=100), 1),
    "kept-q1": Scenario("QoS 1, 1 to 1 persistent *", lambda b, s: flow(b, s, 1, clean=False), 1, True),
    "kept-pairs-q1": Scenario(
        "QoS 1, 10 to 10 persistent *", lambda b, s: flow(b, s, 1, topics=10, clean=False), 1, True
    ),
    "queued": Scenario("10,000 queued, QoS 1 *", deliver_queued, 1, True, QUEUED_MESSAGES + 1000),
    "ping-q0": Scenario("ping-pong, QoS 0", lambda b, s: ping_pong(b, s, 0)),
    "ping-q1": Scenario("ping-pong, QoS 1", lambda b, s: ping_pong(b, s, 1), 1),
    "connect": Scenario("connections", connect, unit="connection"),
}


# -- the run --


def start(scenario: Scenario, stack: contextlib.ExitStack) -> list[Broker]:
    brokers: list[Broker] = []
    for name in ("midge", "mosquitto"):
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        broker: Broker | None
        if name == "midge":
            broker = start_midge(directory, scenario.queue_max)
        else:
            broker = start_mosquitto(directory, scenario.queue_max, scenario.is_persistent)
        if broker is not None:
            stack.callback(broker.stop)
            brokers.append(broker)
    return brokers


def run(scenario: Scenario, rounds: int, seconds: float) -> dict[str, list[dict[str, float]]]:
    """The figures of each round by broker."""
    with contextlib.ExitStack() as stack:
        brokers = start(scenario, stack)
        found: dict[str, list[dict[str, float]]] = {broker.name: [] for broker in brokers}
        for broker in brokers:
            scenario.run(broker, 0.3)  # warms up, isn't counted
        for _ in range(rounds):
            for broker in brokers:
                found[broker.name].append(scenario.run(broker, seconds).figures())
    return found


def median(rounds: list[dict[str, float]], figure: str) -> float | None:
    values = [one[figure] for one in rounds if figure in one]
    return statistics.median(values) if values else None


def print_rows(scenario: Scenario, found: dict[str, list[dict[str, float]]]) -> None:
    """One row per broker; ratios are midge's figure to the other's."""
    for name, rounds in found.items():
        other = found.get("mosquitto") if name == "midge" else None

        def ratio(figure: str, rounds: list = rounds, other: list | None = other) -> str:
            mine, theirs = median(rounds, figure), median(other, figure) if other else None
            return f"{mine / theirs:.2f}x" if mine and theirs else ""

        def cell(figure: str, digits: int = 0, rounds: list = rounds) -> str:
            value = median(rounds, figure)
            return "" if value is None else f"{value:,.{digits}f}"

        faults = [int(sum(one[fault] for one in rounds)) for fault in ("lost", "doubled", "disordered")]
        print(
            f"{scenario.what if name == 'midge' else '':28} {name:9} {cell('per_second'):>10} "
            f"{ratio('per_second'):>7} {cell('broker_us', 2):>8} {ratio('broker_us'):>7} "
            f"{faults[0]:>5} {faults[1]:>5} {faults[2]:>5} {cell('p50_us', 1):>7} {cell('p99_us', 1):>7} "
            f"{cell('broker_share', 2):>6} {cell('load_share', 2):>5}",
            flush=True,
        )


NOTES = f"""\
/s: messages delivered, or connections made, a second. us: microseconds of the broker's CPU for each (all threads,
/proc/PID/task/*/schedstat). x: midge's figure to mosquitto's. lost, dup, order: messages of all rounds that did not
come, came again, came late. p50, p99: us from publish to receipt. broker, load: processors that the broker and this
program were busy on; where load is near 1.00 and broker below it, this program was the bottleneck.
{PAYLOAD_BYTES}-byte payloads, MQTT 3.1.1; at QoS 1 and 2 {WINDOW} messages under way, at QoS 0 1,000 (1 to 100: 50).
* midge acknowledges once the message is committed to disk (durability = "commit", its default): one publisher waits
for the disk once per window, ten share each write. Mosquitto, with
  persistence true, doesn't write before it acknowledges: it saves every 30 minutes and at its end."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each scenario and broker (3)")
    parser.add_argument("--seconds", type=float, default=2, help="of publishing in each run (2)")
    parser.add_argument("--only", default="", help=f"comma-separated: {', '.join(SCENARIOS)}")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures of every run to FILE")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(SCENARIOS)
    if unknown := [name for name in names if name not in SCENARIOS]:
        parser.error(f"no scenario {unknown[0]!r}; there are {', '.join(SCENARIOS)}")
    print(f"{'':28} {'broker':9} {'/s':>10} {'x':>7} {'us':>8} {'x':>7} {'lost':>5} {'dup':>5} {'order':>5} "
          f"{'p50':>7} {'p99':>7} {'broker':>6} {'load':>5}")  # fmt: skip
    everything = {}
    is_faulty = False
    for name in names:
        found = everything[name] = run(SCENARIOS[name], options.rounds, options.seconds)
        print_rows(SCENARIOS[name], found)
        if len(found) == 1:
            print(f"{'':28} mosquitto is not installed: apt-get install mosquitto")
        runs = [one for rounds in found.values() for one in rounds]
        is_faulty |= SCENARIOS[name].qos > 0 and any(
            one["lost"] or one["disordered"] or one["doubled"] for one in runs
        )
    print(NOTES)
    if options.json:
        options.json.write_text(json.dumps(everything, indent=1) + "\n")
    return int(is_faulty)


if __name__ == "__main__":
    sys.exit(main())
