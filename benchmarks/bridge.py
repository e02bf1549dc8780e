"""Across a bridge: messages a second, added latency, and how fast 10,000 messages that were held arrive.

Run: python benchmarks/bridge.py [--rounds 3] [--seconds 1] [--json FILE]

Pairs of brokers take turns: midge with a bridge to midge, the same with `durability = "none"`, and Mosquitto with a
bridge to Mosquitto. The publisher is a client of the far broker, the subscriber one of the near broker, which dials
(`#`, direction in, 5.0 for midge, Mosquitto's default of 3.1.1 for Mosquitto). midge commits to disk before it
acknowledges, on both sides; the second pair writes without waiting for it, which is what Mosquitto, that keeps all in
memory, can be compared with. How long this disk takes for a commit stands in the first line. Every message is checked.
Exit code 1: midge lost one at QoS 1 or 2, sent it twice or out of order.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from broker_processes import HOST, Broker, mosquitto, mosquitto_version

from midge.load.clients import Client, Faults, Publisher, serve

UNCOMMITTED = "midge, none"
HELD = 10_000
WINDOW = 20
KINDS = {0: (0x30,), 1: (0x32,), 2: (0x34, 0x62)}
# s until a bridge that has its address has connected.
LINK_S = 15.0


class Pair:
    """A far broker, and a near one with a bridge to it; each keeps its port when it starts again."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self._directory = directory
        self._ports = {"far": _free_port(), "near": _free_port()}
        self.far = self.start("far")
        self.near = self.start("near")

    def start(self, side: str) -> Broker:
        directory = self._directory / side
        directory.mkdir(exist_ok=True)
        port, far = self._ports[side], self._ports["far"]
        if self.name != "mosquitto":
            text = f"[limits]\nmax_queued_messages = {2 * HELD}\n"
            text += '[store]\ndurability = "none"\n' * (self.name == UNCOMMITTED)
            if side == "near":
                text += f'[[bridge]]\nname = "b"\naddress = "mqtt://{HOST}:{far}"\nreconnect_min = 0.1\n'
                text += 'topics = [{ filter = "#", direction = "in", qos = 2 }]\n'
            (directory / "midge.toml").write_text(text)
            command = [sys.executable, "-m", "midge", "broker", "--port", str(port), "--log-level", "error"]
            command += ["--config", str(directory / "midge.toml"), "--data", str(directory)]
        else:
            lines = [f"listener {port} {HOST}", "allow_anonymous true", "log_type error", "set_tcp_nodelay true"]
            lines += [f"max_queued_messages {2 * HELD}", "persistence true", f"persistence_location {directory}/"]
            lines += ["user root"] if os.geteuid() == 0 else []
            if side == "near":
                lines += ["connection b", f"address {HOST}:{far}", "topic # in 2", "cleansession false"]
                lines += ["restart_timeout 1", "remote_clientid near"]
            (directory / "mosquitto.conf").write_text("\n".join(lines) + "\n")
            program = mosquitto()
            assert program is not None
            command = [program, "-c", str(directory / "mosquitto.conf")]
        return Broker(self.name, command, port)

    def wait_for_link(self) -> None:
        """Until a message crosses."""
        sub = Client(self.near.port, "waiting", (0x30,))
        sub.subscribe(0)
        deadline = time.monotonic() + LINK_S
        sub.socket.settimeout(0.2)
        while True:
            Publisher(self.far.port, 0, 1).publish(0)
            with contextlib.suppress(TimeoutError):
                if sub.socket.recv(1000):
                    break
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.name}: the bridge isn't connected")
        time.sleep(0.3)  # what else was sent by then
        sub.close()

    def cpu_ns(self) -> int:
        return self.far.cpu_ns() + self.near.cpu_ns()

    def stop(self) -> None:
        self.near.stop()
        self.far.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


# -- scenarios: each returns figures, and what went wrong --


def flow(pair: Pair, qos: int, seconds: float) -> tuple[dict[str, float], Faults]:
    """As fast as a window of 20 (QoS 0: of 500 that the subscriber hasn't) lets it."""
    sub = Client(pair.near.port, f"flow{qos}", KINDS[qos])
    sub.subscribe(qos)
    publisher = Publisher(pair.far.port, qos, WINDOW if qos else 500)
    cpu, start = pair.cpu_ns(), time.perf_counter()
    last = start

    def go_on() -> bool:
        nonlocal last
        now = time.perf_counter()
        if sub.delivered:
            last = now
        if now - start >= seconds:
            return sub.delivered >= publisher.sent and (not qos or publisher.acknowledged >= publisher.sent)
        publisher.publish(sub.delivered)
        return False

    serve([publisher, sub], go_on)
    count = sub.delivered
    sub.faults.lost += publisher.sent - count
    publisher.close()
    sub.close()
    return {
        "per_second": count / (last - start),
        "cpu_us": (pair.cpu_ns() - cpu) / 1e3 / max(1, count),
    }, sub.faults


def latency(pair: Pair, qos: int, seconds: float) -> tuple[dict[str, float], Faults]:
    """One message at a time, to a subscriber of the far broker and one of the near; the difference is the bridge's."""
    far, near = (Client(broker.port, f"latency{qos}", KINDS[qos]) for broker in (pair.far, pair.near))
    publisher = Publisher(pair.far.port, qos, 1)
    clients = [far, near, publisher]
    for sub in (far, near):
        sub.subscribe(qos)
    for client in clients:
        client.socket.setblocking(False)
    direct, across = [], []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        publisher.publish(publisher.sent)
        times = {}
        while len(times) < 2 or not _is_settled(clients, qos):
            for client in clients:
                client.receive()
            for sub in (far, near):
                if sub.delivered == publisher.sent and sub not in times:
                    times[sub] = (time.perf_counter() - start) * 1e6
        direct.append(times[far])
        across.append(times[near])
    faults = Faults()
    for client in clients:
        faults.add(client.faults)
        client.close()
    added = [there - here for there, here in zip(across, direct, strict=True)]
    return {
        "direct_us": statistics.median(direct),
        "across_us": statistics.median(across),
        "added_us": statistics.median(added),
    }, faults


def _is_settled(clients: list[Client], qos: int) -> bool:
    """Whether all acknowledgements of the last message have come."""
    publisher = clients[-1]
    assert isinstance(publisher, Publisher)
    if qos and publisher.acknowledged < publisher.sent:
        return False
    return qos < 2 or all(sub.received[0x62] == publisher.sent for sub in clients[:-1])


def drain(pair: Pair, qos: int, seconds: float) -> tuple[dict[str, float], Faults]:
    """The near broker was away while 10,000 messages came: from the first of them here to the last."""
    name = f"held-{pair.name}"
    sub = Client(pair.near.port, name, clean=False)
    sub.subscribe(qos)
    sub.close()
    pair.near.stop()
    publisher = Publisher(pair.far.port, qos, 100)

    def hold() -> bool:
        publisher.publish(publisher.sent, HELD)
        return publisher.acknowledged >= HELD

    serve([publisher], hold)
    publisher.close()
    started = time.perf_counter()
    pair.near = pair.start("near")
    sub = Client(pair.near.port, name, KINDS[qos], clean=False)
    cpu, first = pair.cpu_ns(), 0.0

    def is_there() -> bool:
        nonlocal first
        first = first or (time.perf_counter() if sub.delivered else 0.0)
        return sub.delivered >= HELD

    serve([sub], is_there)
    end = time.perf_counter()
    figures = {
        "seconds": end - first,
        "from_start_s": end - started,
        "cpu_us": (pair.cpu_ns() - cpu) / 1e3 / HELD,
    }
    sub.faults.lost += HELD - sub.delivered
    sub.end_session()
    return figures, sub.faults


SCENARIOS = {
    **{f"flow, QoS {qos}": (flow, qos) for qos in (0, 1, 2)},
    **{f"latency, QoS {qos}": (latency, qos) for qos in (0, 1, 2)},
    "drain 10,000, QoS 1": (drain, 1),
}


def _commit_us() -> float:
    """The median of 50."""
    times = []
    with tempfile.TemporaryFile() as file:
        for _ in range(50):
            start = time.perf_counter()
            file.write(bytes(400))
            file.flush()
            os.fsync(file.fileno())
            times.append((time.perf_counter() - start) * 1e6)
    return statistics.median(times)


@contextlib.contextmanager
def pairs() -> Iterator[list[Pair]]:
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        found = []
        for name in ["midge", UNCOMMITTED, *["mosquitto"] * (mosquitto() is not None)]:
            (Path(directory) / name).mkdir()
            found.append(Pair(name, Path(directory) / name))
            stack.callback(found[-1].stop)
        yield found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each run")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    print(f"midge beside mosquitto {mosquitto_version()}, {options.rounds} rounds of {options.seconds} s; medians")
    print(f"a commit to this disk takes {_commit_us():.0f} us\n")
    results: dict[str, dict[str, dict[str, float]]] = {}
    exit_code = 0
    with pairs() as both:
        for title, (run, qos) in SCENARIOS.items():
            measured: dict[str, list[dict[str, float]]] = {pair.name: [] for pair in both}
            faults = {pair.name: Faults() for pair in both}
            for _ in range(1 if run is drain else options.rounds):
                for pair in both:
                    pair.wait_for_link()
                    figures, wrong = run(pair, qos, options.seconds)
                    measured[pair.name].append(figures)
                    faults[pair.name].add(wrong)
            results[title] = {}
            for name, rounds in measured.items():
                row = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
                wrong = faults[name]
                row |= {"undelivered": wrong.lost, "doubled": wrong.doubled, "disordered": wrong.disordered}
                results[title][name] = row
                if name != "mosquitto" and qos and wrong:
                    exit_code = 1
            _print(title, results[title])
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))
    return exit_code


_UNITS = {
    "per_second": "{:,.0f}/s",
    "cpu_us": "{:.0f} us of both brokers' CPU a message",
    "direct_us": "{:.0f} us within one broker",
    "across_us": "{:.0f} us across",
    "added_us": "{:.0f} us added",
    "seconds": "{:.2f} s from the first to the last",
    "from_start_s": "{:.2f} s from the start of the process",
}


def _print(title: str, rows: dict[str, dict[str, float]]) -> None:
    for name, row in rows.items():
        texts = [text.format(row[key]) for key, text in _UNITS.items() if key in row]
        wrong = [f"{row[key]:.0f} {key}" for key in ("undelivered", "doubled", "disordered") if row[key]]
        print(f"{title:20} {name:12} {', '.join(texts + wrong)}")
    for name, row in rows.items():
        if name != "mosquitto" and "mosquitto" in rows:
            key = next(key for key in ("per_second", "across_us", "seconds") if key in row)
            print(f"{'':20} {'ratio':12} {name} / mosquitto = {row[key] / rows['mosquitto'][key]:.2f} ({key})")


if __name__ == "__main__":
    sys.exit(main())
