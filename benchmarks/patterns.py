"""Work queue and request-reply: midge beside RabbitMQ, NATS JetStream and ZeroMQ, each with a client in Python.

Run: python benchmarks/patterns.py [--messages 5000] [--latency 200] [--only midge,nats]   (make patterns)

- work queue: one producer with WINDOW messages unconfirmed, one consumer with PREFETCH, each a process; messages a
  second from the first that was sent to the last that came, and the server's CPU time per message. Everybody confirms
  what is stored; ZeroMQ stores nothing.
- latency: one message every few milliseconds, from sending to arrival at a consumer that waits.
- request-reply: one at a time, there and back. No system stores these.
- kill -9: the server dies while a producer publishes and nobody consumes, is started again, and what is there is
  counted. ZeroMQ has no server: the producer dies.

What isn't installed is said in the table. Ratios on a quiet machine are what matters.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing as mp
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pattern_midge import Midge, MidgePaho
from pattern_systems import Nats, RabbitMq, Stop, ZeroMq, age, number

SYSTEMS = [Midge, MidgePaho, RabbitMq, Nats, ZeroMq]
SIZE = 100  # bytes of payload
WINDOW = 200
PREFETCH = 20
TIMEOUT_S = 120


def _produce(system: Any, count: int, window: int, pause_s: float, confirmed: Any) -> None:
    def told(so_far: int) -> None:
        confirmed.value = so_far

    with contextlib.suppress(Stop):
        system.produce(count, SIZE, window, told, pause_s)


def _consume(system: Any, count: int, prefetch: int, results: Any, progress: Any) -> None:
    """Hands back how old each message was, when the first and the last came, and the numbers."""
    ages: list[float] = []
    numbers: list[int] = []
    times: list[float] = []

    def took(data: bytes) -> None:
        ages.append(age(data))
        numbers.append(number(data))
        times.append(time.perf_counter())
        progress.value = len(numbers)
        if len(numbers) == count:
            results.put((ages, numbers, times[0] - ages[0], times[-1]))

    system.consume(count, prefetch, took)


def _respond(system: Any) -> None:
    system.respond()


def _request(system: Any, count: int, results: Any) -> None:
    results.put(system.request(count, SIZE))


class Child:
    """One of our own processes; it ends with the block."""

    def __init__(self, what: Callable[..., None], *arguments: Any) -> None:
        self._process = mp.get_context("fork").Process(target=what, args=arguments, daemon=True)

    def __enter__(self) -> Child:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def wait(self, timeout_s: float) -> None:
        self._process.join(timeout_s)


@contextlib.contextmanager
def running(system: Any) -> Iterator[Any]:
    """Its server; None if it has none."""
    server = system.start() if hasattr(system, "start") else None
    try:
        yield server
    finally:
        if server is not None:
            server.kill()


def work_queue(system: Any, count: int) -> dict[str, float]:
    results, confirmed, progress = mp.Queue(), mp.Value("i", 0), mp.Value("i", 0)
    with running(system) as server:
        before = server.cpu_s() if server else 0.0
        with Child(_consume, system, count, PREFETCH, results, progress):
            time.sleep(0.5)
            with Child(_produce, system, count, WINDOW, 0.0, confirmed):
                _, numbers, began, ended = results.get(timeout=TIMEOUT_S)
                time.sleep(0.3)
        cpu_s = server.cpu_s() - before if server else 0.0
    assert len(set(numbers)) == count, f"{count - len(set(numbers))} of {count} came again, and as many are missing"
    return {"per_second": count / (ended - began), "cpu_us": cpu_s * 1e6 / count}


def latency(system: Any, count: int) -> list[float]:
    results, confirmed, progress = mp.Queue(), mp.Value("i", 0), mp.Value("i", 0)
    with running(system), Child(_consume, system, count, PREFETCH, results, progress):
        time.sleep(0.5)
        with Child(_produce, system, count, 1, 0.005, confirmed):
            ages: list[float] = results.get(timeout=TIMEOUT_S)[0]
            return ages


def request_reply(system: Any, count: int) -> list[float]:
    results = mp.Queue()
    with running(system), Child(_respond, system):
        time.sleep(0.5)
        with Child(_request, system, count, results):
            times: list[float] = results.get(timeout=TIMEOUT_S)
            return times


def survives(system: Any) -> tuple[int, int]:
    """How many were confirmed when the server was killed, and how many of these are there after a restart."""
    results, confirmed, progress = mp.Queue(), mp.Value("i", 0), mp.Value("i", 0)
    with running(system) as server, Child(_produce, system, 1_000_000, WINDOW, 0.0, confirmed) as producer:
        end = time.monotonic() + TIMEOUT_S
        while confirmed.value < (1000 if server else 100) and time.monotonic() < end:
            time.sleep(0.005)
        if server:
            server.kill()
            producer.wait(10)
    count = confirmed.value
    with running(system), Child(_consume, system, count, PREFETCH, results, progress):
        last, quiet_since = -1, time.monotonic()
        while time.monotonic() - quiet_since < 4 and progress.value < count:
            if progress.value != last:
                last, quiet_since = progress.value, time.monotonic()
            time.sleep(0.02)
        if progress.value < count:
            return count, progress.value
        numbers = results.get(timeout=10)[1]
    return count, len(set(numbers) & set(range(1, count + 1)))


def percentiles(times: list[float]) -> str:
    """p50 and p99 in ms."""
    parts = statistics.quantiles(times, n=100, method="inclusive")
    return f"{parts[49] * 1e3:.2f} / {parts[98] * 1e3:.2f}"


def row(kind: Any, options: argparse.Namespace) -> str:
    missing = kind.missing()
    if missing:
        return f"| {kind.name} | {missing} | | | | | |"
    cells: list[str] = []
    with tempfile.TemporaryDirectory(prefix="midge-patterns-") as directory:
        def fresh(name: str) -> Any:
            place = Path(directory, name)
            place.mkdir()
            system = kind(place)
            made.append(system)
            return system

        made: list[Any] = []
        try:
            queue = work_queue(fresh("queue"), options.messages)
            cells.append(f"{queue['per_second']:,.0f}")
            cells.append(f"{queue['cpu_us']:.0f}" if queue["cpu_us"] else "-")
            cells.append(percentiles(latency(fresh("latency"), options.latency)))
            times = request_reply(fresh("request"), options.latency)
            cells.append(f"{len(times) / sum(times):,.0f}")
            cells.append(percentiles(times))
            confirmed, there = survives(fresh("killed"))
            cells.append(f"{there:,} of {confirmed:,}")
        finally:
            for system in made:
                if hasattr(system, "close"):
                    system.close()
    return f"| {kind.name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=5000, help="through the work queue (5000)")
    parser.add_argument("--latency", type=int, default=200, help="messages, and requests, one at a time (200)")
    parser.add_argument("--only", default="", help="names, or parts of them, with commas between")
    options = parser.parse_args()
    wanted = [name.lower() for name in options.only.split(",")]
    print(time.strftime("%Y-%m-%d"), f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f},", end=" ")
    print(f"payloads of {SIZE} bytes, {WINDOW} unconfirmed, prefetch {PREFETCH}")
    print("| system | messages/s | server's CPU us each | ms p50 / p99 | requests/s | ms p50 / p99 | after kill -9 |")
    print("|---|---|---|---|---|---|---|")
    for kind in SYSTEMS:
        if any(name in kind.name.lower() for name in wanted):
            print(row(kind, options), flush=True)


if __name__ == "__main__":
    main()
