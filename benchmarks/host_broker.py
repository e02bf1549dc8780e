"""The host's broker beside Debian's Mosquitto: messages a second, CPU per message, loss, latency, memory.

Run: python benchmarks/host_broker.py [--rounds 3] [--seconds 1] [--only q1,fanout-q0] [--json FILE]
     python benchmarks/host_broker.py --python .venv/bin/python --python build/compiled/bin/python

The brokers are started here, fresh for each scenario, and take turns (A B A B ...); figures are medians. Without
--python the midge that runs is this interpreter's; each row says whether it was pure Python or compiled (`make wheel`).
Every message is checked (see midge.load.clients). Exit code 1: at QoS 1 or 2 midge lost one, sent it twice or out of
order.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import select
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker_processes import HOST, Broker, form_of, mosquitto_version, start_midge, start_mosquitto

from midge.load import flows
from midge.load.clients import IDLE_S, SMALL_BYTES, Address, Client, Faults, Publisher, serve
from midge.load.flows import WINDOW, Shape
from midge.protocol import packets as p
from midge.protocol.encoder import encode

LARGE_BYTES = 4096
QUEUED_MESSAGES = 10_000
ABSENT_MAX = 1_000_000  # messages that may be queued for who is away: none is to be dropped
CONNECTING = 50  # connections in progress at the same time
IDLE_CONNECTIONS = 2_000
SUBSCRIBERS_OF_MANY = 50  # clients that share the subscriptions of `subs-1k` and `subs-100k`


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
    memory: int = 0  # bytes that the broker grew by

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
        if self.memory:
            figures["bytes"] = self.memory / self.count
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


_numbers = iter(range(1, 1 << 60))


def flow(broker: Broker, seconds: float, shape: Shape) -> Result:
    """Each publisher is as fast as its window allows."""
    with measured(broker) as result:
        outcome = flows.run(Address(port=broker.port), seconds, shape)
        result.seconds, result.count, result.faults = outcome.seconds, outcome.count, outcome.faults
    return result


def ping_pong(broker: Broker, seconds: float, qos: int) -> Result:
    """One message at a time: from `send` to its arrival at the subscriber."""
    with measured(broker) as result:
        outcome = flows.ping_pong(Address(port=broker.port), seconds, qos)
        result.count, result.faults, result.latencies_us = outcome.count, outcome.faults, outcome.latencies_us
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
    sub.end_session()
    return result


def publish_to_absent(broker: Broker, seconds: float) -> Result:
    """A persistent session is away: acknowledgements of what is queued for it."""
    name = f"subscriber-{next(_numbers)}"
    away = Client(broker.port, name, clean=False)
    away.subscribe(1)
    away.close()
    publisher = Publisher(broker.port, 1, WINDOW)
    with measured(broker) as result:
        end = time.perf_counter() + seconds

        def publish() -> bool:
            if time.perf_counter() >= end:
                return publisher.acknowledged >= publisher.sent
            publisher.publish(publisher.sent)
            return False

        serve([publisher], publish)
        result.count = publisher.acknowledged
    publisher.close()
    Client(broker.port, name).close()  # and with that its session ends
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


def idle(broker: Broker, seconds: float) -> Result:
    """Connections that do nothing, one subscription each: what the broker grows by."""
    number = next(_numbers)
    before = broker.memory()
    with measured(broker) as result:
        clients = []
        for one in range(IDLE_CONNECTIONS):
            clients.append(Client(broker.port, f"idle-{number}-{one}"))
            clients[-1].subscribe(0, f"idle/{one}/set")
        result.count = len(clients)
    time.sleep(0.2)
    result.memory = max(0, broker.memory() - before)
    for client in clients:
        client.close()
    return result


class ManySubscriptions:
    """*count* different filters (of five: three exact, one with +, one with #), shared by some clients. Each message
    matches one of them."""

    def __init__(self, broker: Broker, count: int) -> None:
        self.clients = [Client(broker.port, f"many-{one}") for one in range(SUBSCRIBERS_OF_MANY)]
        with measured(broker) as result:
            for at, client in enumerate(self.clients):
                filters = [self._filter(number, at) for number in range(at, count, SUBSCRIBERS_OF_MANY)]
                for start in range(0, len(filters), 100):
                    client.subscribe(0, *filters[start : start + 100])
            result.count = count
        self.subscribed = result
        numbers = random.Random(1).sample(range(count), min(count, 20_000))
        self.packets = [encode(p.Publish(f"fleet/{n % 1000:03}/{n:06}/t", bytes(SMALL_BYTES)), 4) for n in numbers]

    @staticmethod
    def _filter(number: int, kind: int) -> str:
        if kind % 5 == 3:
            return f"fleet/+/{number:06}/t"
        return f"fleet/{number % 1000:03}/{number:06}/" + ("#" if kind % 5 == 4 else "t")


def publish_to_many(broker: Broker, seconds: float, many: ManySubscriptions) -> Result:
    """QoS 0, each message on another topic, at most 200 under way."""
    size = len(many.packets[0])
    publisher = socket.create_connection((HOST, broker.port), 10)
    publisher.sendall(encode(p.Connect("publisher", True, 600, 4), 4))
    publisher.recv(4)
    sent = received = at = 0
    with measured(broker) as result, select.epoll() as poller:
        by_fd = {client.socket.fileno(): client.socket for client in many.clients}
        for fd in by_fd:
            poller.register(fd, select.EPOLLIN)
        start = time.perf_counter()
        while True:
            if time.perf_counter() - start < seconds and sent - received // size < 100:
                chunk = many.packets[at : at + 100]
                at = (at + 100) % len(many.packets)
                publisher.sendall(b"".join(chunk))
                sent += len(chunk)
            elif received == sent * size:
                break
            ready = poller.poll(IDLE_S)
            if not ready:
                break
            for fd, _ in ready:
                received += len(by_fd[fd].recv(1 << 18))
        result.count = received // size
    result.faults.lost = sent - result.count
    publisher.close()
    return result


@dataclass(frozen=True)
class Scenario:
    what: str
    run: Callable[..., Result]
    qos: int = 0
    is_persistent: bool = False
    queue_max: int | None = None
    prepare: Callable[[Broker], Any] | None = None  # once for each broker; what it gives is passed to `run`
    is_warmed_up: bool = True


def _flow(what: str, qos: int, is_persistent: bool = False, **shape: Any) -> Scenario:
    one = Shape(qos, is_clean=not is_persistent, **shape)
    return Scenario(f"QoS {qos}, {what}", lambda b, s: flow(b, s, one), qos, is_persistent)


def _many(count: int) -> Scenario:
    what = f"QoS 0, {count:,} subscriptions"
    return Scenario(what, publish_to_many, prepare=lambda broker: ManySubscriptions(broker, count))


SCENARIOS = {
    "q0": _flow("1 to 1", 0, window=1000),
    "q1": _flow("1 to 1", 1),
    "q2": _flow("1 to 1", 2),
    "pairs-q0": _flow("10 to 10", 0, pairs=10, window=1000),
    "pairs-q1": _flow("10 to 10", 1, pairs=10),
    "pairs-q2": _flow("10 to 10", 2, pairs=10),
    "single-q0": _flow("100 to 100, singly", 0, pairs=100, window=1, size=SMALL_BYTES),
    "single-q1": _flow("100 to 100, singly", 1, pairs=100, window=1, size=SMALL_BYTES),
    "single-q2": _flow("100 to 100, singly", 2, pairs=100, window=1, size=SMALL_BYTES),
    "fanout-q0": _flow("1 to 100", 0, subscribers=100, window=50),
    "fanout-q1": _flow("1 to 100", 1, subscribers=100),
    "fanout-q2": _flow("1 to 100", 2, subscribers=100),
    "fanin-q0": _flow("100 to 1", 0, publishers=100, window=100),
    "fanin-q1": _flow("100 to 1", 1, publishers=100, window=5),
    "fanin-q2": _flow("100 to 1", 2, publishers=100, window=5),
    "q0-4k": _flow("1 to 1, 4 KB", 0, window=100, size=LARGE_BYTES),
    "q1-4k": _flow("1 to 1, 4 KB", 1, size=LARGE_BYTES),
    "q2-4k": _flow("1 to 1, 4 KB", 2, size=LARGE_BYTES),
    "fanout-q0-4k": _flow("1 to 100, 4 KB", 0, subscribers=100, window=20, size=LARGE_BYTES),
    "fanout-q1-4k": _flow("1 to 100, 4 KB", 1, subscribers=100, size=LARGE_BYTES),
    "fanin-q0-4k": _flow("100 to 1, 4 KB", 0, publishers=100, window=5, size=LARGE_BYTES),
    "fanin-q1-4k": _flow("100 to 1, 4 KB", 1, publishers=100, window=5, size=LARGE_BYTES),
    "kept-q1": _flow("1 to 1 persistent *", 1, is_persistent=True),
    "kept-pairs-q1": _flow("10 to 10 persistent *", 1, is_persistent=True, pairs=10),
    "away-q1": Scenario("1 to an absent one *", publish_to_absent, 1, True, ABSENT_MAX),
    "queued": Scenario("10,000 queued, QoS 1 *", deliver_queued, 1, True, QUEUED_MESSAGES + 1000),
    "ping-q0": Scenario("ping-pong, QoS 0", lambda b, s: ping_pong(b, s, 0)),
    "ping-q1": Scenario("ping-pong, QoS 1", lambda b, s: ping_pong(b, s, 1), 1),
    "connect": Scenario("connections", connect),
    "idle": Scenario("idle connections", idle, is_warmed_up=False),
    "subs-1k": _many(1_000),
    "subs-100k": _many(100_000),
}


# -- the run --


def start(scenario: Scenario, pythons: list[str], stack: contextlib.ExitStack) -> list[Broker]:
    brokers: list[Broker] = []
    for python in (*pythons, None):
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        broker: Broker | None
        if python is not None:
            broker = start_midge(python, directory, scenario.queue_max)
        else:
            broker = start_mosquitto(directory, scenario.queue_max, scenario.is_persistent)
        if broker is not None:
            stack.callback(broker.stop)
            brokers.append(broker)
    return brokers


def run(scenario: Scenario, pythons: list[str], rounds: int, seconds: float) -> dict[str, list[dict[str, float]]]:
    """The figures of each round by broker."""
    with contextlib.ExitStack() as stack:
        brokers = start(scenario, pythons, stack)
        found: dict[str, list[dict[str, float]]] = {broker.name: [] for broker in brokers}
        prepared: dict[str, tuple[Any, ...]] = {}
        for broker in brokers:
            prepared[broker.name] = (scenario.prepare(broker),) if scenario.prepare else ()
            if scenario.is_warmed_up:
                scenario.run(broker, 0.3, *prepared[broker.name])  # isn't counted
        # What isn't warmed up can't be repeated either: memory that was given back is used again.
        for _ in range(rounds if scenario.is_warmed_up else 1):
            for broker in brokers:
                figures = scenario.run(broker, seconds, *prepared[broker.name]).figures()
                for one in prepared[broker.name]:
                    figures["subscribed_us"] = one.subscribed.figures()["broker_us"]
                found[broker.name].append(figures)
    return found


def median(rounds: list[dict[str, float]] | None, figure: str) -> float | None:
    values = [one[figure] for one in rounds or () if figure in one]
    return statistics.median(values) if values else None


def print_rows(scenario: Scenario, found: dict[str, list[dict[str, float]]]) -> None:
    """One row per broker; ratios are to mosquitto's figure."""
    what = scenario.what
    for name, rounds in found.items():
        other = None if name == "mosquitto" else found.get("mosquitto")

        def ratio(figure: str, rounds: list = rounds, other: list | None = other) -> str:
            mine, theirs = median(rounds, figure), median(other, figure)
            return f"{mine / theirs:.2f}x" if mine and theirs else ""

        def cell(figure: str, digits: int = 0, rounds: list = rounds) -> str:
            value = median(rounds, figure)
            return "" if value is None else f"{value:,.{digits}f}"

        faults = [int(sum(one[fault] for one in rounds)) for fault in ("lost", "doubled", "disordered")]
        extra = ""
        if "bytes" in rounds[0]:
            extra = f"  {cell('bytes')} bytes each"
        elif "subscribed_us" in rounds[0]:
            extra = f"  {cell('subscribed_us', 1)} us each to subscribe"
        elif "p50_us" in rounds[0]:
            extra = f"  p50 {cell('p50_us', 1)} us {ratio('p50_us')}, p99 {cell('p99_us', 1)} us {ratio('p99_us')}"
        print(
            f"{what:28} {name:9} {cell('per_second'):>10} {ratio('per_second'):>7} {cell('broker_us', 2):>8} "
            f"{ratio('broker_us'):>7} {faults[0]:>5} {faults[1]:>5} {faults[2]:>5} "
            f"{cell('broker_share', 2):>6} {cell('load_share', 2):>5}{extra}",
            flush=True,
        )
        what = ""


NOTES = f"""\
/s: messages delivered, or connections made, a second. us: microseconds of the broker's CPU for each (all threads,
/proc/PID/task/*/schedstat). x: ratio to mosquitto's figure. lost, dup, order: messages of all rounds that did not
come, came again, came late. p50, p99: from publish to receipt. broker, load: processors that the broker and this
program were busy on; where load is near 1.00 and broker below it, this program was the bottleneck, and the ratio of us
says more than that of /s.
{SMALL_BYTES}-byte payloads unless said, MQTT 3.1.1; at QoS 1 and 2 {WINDOW} messages under way (100 to 1: 5 each), at
QoS 0 1,000 (1 to 100: 50; 100 to 1: 100 each; 4 KB: fewer). "singly": each publisher waits for its message to arrive.
* midge acknowledges once the message is committed to disk (durability = "commit", its default) or its subscriber has
acknowledged it: one publisher to an absent one waits for the disk once per window. Mosquitto, with
  persistence true, doesn't write before it acknowledges: it saves every 30 minutes and at its end."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each scenario and broker (3)")
    parser.add_argument("--seconds", type=float, default=1, help="of publishing in each run (1)")
    parser.add_argument("--only", default="", help=f"comma-separated: {', '.join(SCENARIOS)}")
    parser.add_argument("--python", action="append", help="an interpreter whose midge runs; may be given twice")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures of every run to FILE")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(SCENARIOS)
    if unknown := [name for name in names if name not in SCENARIOS]:
        parser.error(f"no scenario {unknown[0]!r}; there are {', '.join(SCENARIOS)}")
    pythons = options.python or [sys.executable]
    forms = [form_of(python) for python in pythons]
    if len(set(forms)) < len(forms):
        parser.error(f"both are {forms[0]}")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))  # for `idle`, the brokers' too
    print(f"midge: {' and '.join(forms)}; Mosquitto: {mosquitto_version()}")
    print(f"{'':28} {'broker':9} {'/s':>10} {'x':>7} {'us':>8} {'x':>7} {'lost':>5} {'dup':>5} {'order':>5} "
          f"{'broker':>6} {'load':>5}")  # fmt: skip
    everything = {}
    is_faulty = False
    for name in names:
        found = everything[name] = run(SCENARIOS[name], pythons, options.rounds, options.seconds)
        print_rows(SCENARIOS[name], found)
        runs = [one for broker, rounds in found.items() if broker != "mosquitto" for one in rounds]
        is_faulty |= SCENARIOS[name].qos > 0 and any(
            one["lost"] or one["disordered"] or one["doubled"] for one in runs
        )
    print(NOTES)
    if options.json:
        options.json.write_text(json.dumps(everything, indent=1) + "\n")
    return int(is_faulty)


if __name__ == "__main__":
    sys.exit(main())
