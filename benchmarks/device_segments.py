"""What a board's radio has to send: TCP segments and bytes per message, beside umqtt.simple and one of mqtt_as' kind.

Stand-alone: `.venv/bin/python benchmarks/device_segments.py`. Downloads umqtt.simple 1.3.4 and mqtt_async 0.7b4 from
PyPI (mqtt_as itself isn't there; mqtt_async is "loosely based on" it; its protocol class runs here, without the radio).
Segments are counted by Linux (TCP_INFO) at the server's end; each program runs on MicroPython's unix port.
"""

import argparse
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import device_client

MQTT_ASYNC = device_client.MQTT_AS
# Five sensors, 3 ms one after the other, every 60 ms; and so many messages wait for the board that wakes.
BURSTS, PER_BURST, QUEUED = 20, 5, 5

MIDGE = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from midge_client import Client, wake
port, mode, linger = int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
topic, payload = "kitchen/temperature", b"01234567890123456789"
async def always_on():
    client = Client("bench", "127.0.0.1", port, linger_ms=linger)
    await client.connect()
    async def sensor(i):
        for _ in range({bursts}):
            await asyncio.sleep_ms(3 * i)
            await client.publish(topic, payload, 1)
            await asyncio.sleep_ms(60 - 3 * i)
    await asyncio.gather(*[sensor(i) for i in range({per_burst})])
    await client.disconnect()
if mode == "on":
    asyncio.run(always_on())
else:
    stats = wake("bench", "127.0.0.1", port, [(topic, payload, 1)] * {per_burst}, [("kitchen/set", 1)])
    assert not stats.error and stats.received == {queued}, stats.error
"""

SIMPLE = """
import sys, time
sys.path.insert(0, sys.argv[1])
from umqtt.simple import MQTTClient
mode = sys.argv[3]
topic, payload = b"kitchen/temperature", b"01234567890123456789"
client = MQTTClient("bench", "127.0.0.1", int(sys.argv[2]))
seen = []
client.set_callback(lambda topic, payload: seen.append(topic))
client.connect(mode == "on")
if mode == "on":
    for _ in range({bursts}):
        for _ in range({per_burst}):
            client.publish(topic, payload, qos=1)
            time.sleep_ms(3)
        time.sleep_ms(45)
else:
    client.subscribe(b"kitchen/set", 1)
    for _ in range({per_burst}):
        client.publish(topic, payload, qos=1)
    while len(seen) < {queued}:
        client.wait_msg()
client.disconnect()
"""

# As its MQTTClient uses the class: a task reads, a publish waits for its PUBACK.
ASYNC = """
import sys
sys.path.insert(0, sys.argv[1])
import asyncio
sys.modules["uasyncio"] = asyncio
class Radio:
    STA_IF = 0
    def WLAN(self, _):
        return self
    unique_id = staticmethod(lambda: b"bench")
sys.modules["machine"] = sys.modules["network"] = Radio()
import mqtt_async
mqtt_async.log = type("Quiet", (), dict(debug=lambda *_: None, info=lambda *_: None, warning=lambda *_: None))
mode = sys.argv[3]
topic, payload = b"kitchen/temperature", b"01234567890123456789"
answered = asyncio.Event()
seen = []
async def main():
    proto = mqtt_async.MQTTProto(lambda *message: seen.append(message), lambda _: answered.set(),
                                 lambda *_: answered.set(), lambda: None)
    await proto.connect(("127.0.0.1", int(sys.argv[2])), b"bench", mode == "on")
    async def read():
        while True:
            await proto.read_msg()
    reader = asyncio.create_task(read())
    number = 0
    async def publish():
        answered.clear()
        await proto.publish(mqtt_async.MQTTMessage(topic, payload, False, 1, number + 1))
        await answered.wait()
    if mode == "on":
        for _ in range({bursts}):
            for _ in range({per_burst}):
                await publish()
                await asyncio.sleep_ms(3)
            await asyncio.sleep_ms(45)
    else:
        await proto.subscribe(b"kitchen/set", 1, 99)
        await answered.wait()
        for _ in range({per_burst}):
            await publish()
        while len(seen) < {queued}:
            await asyncio.sleep(0.001)
    await proto.disconnect()
    reader.cancel()
asyncio.run(main())
"""


@dataclass(frozen=True)
class Traffic:
    """Of one connection, as the server's kernel saw it; `segments` are all, acknowledgements without data too."""

    data_segments_in: int
    bytes_in: int
    segments: int
    bytes_out: int


class Server:
    """Acknowledges what comes, in one write for each read; who subscribes is sent what waited for him."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.traffic: Traffic | None = None

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self._serve, daemon=True)
        thread.start()
        return thread

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            data = b""
            ended = False
            while not ended and (chunk := connection.recv(65536)):
                data += chunk
                out = bytearray()
                while len(data) >= 2 and len(data) >= 2 + data[1]:  # all packets are shorter than 128 bytes
                    packet, data = data[: 2 + data[1]], data[2 + data[1] :]
                    out += answer(packet)
                    ended |= packet[0] == 0xE0
                if out:
                    connection.sendall(out)
            while connection.recv(65536):  # what a client that closes at once has still to say
                pass
            self.traffic = traffic(connection)


def answer(packet: bytes) -> bytes:
    kind = packet[0] & 0xF0
    if kind == 0x10:
        return b"\x20\x02\x00\x00"
    if kind == 0x30:
        at = 4 + packet[3]
        return b"\x40\x02" + packet[at : at + 2] if packet[0] & 6 else b""
    if kind == 0x80:
        out = b"\x90\x03" + packet[2:4] + b"\x01"
        for packet_id in range(1, QUEUED + 1):
            body = b"\x00\x0bkitchen/set" + bytes((0, packet_id)) + b"01234567890123456789"
            out += bytes((0x32, len(body))) + body
        return out
    return b"\xd0\x00" if kind == 0xC0 else b""


def traffic(connection: socket.socket) -> Traffic:
    """Of struct tcp_info (linux/tcp.h): bytes_acked and bytes_received at 120, segs_out at 136, data_segs_in at 152."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
    acked, received, segments_out, segments_in, _, _, data_in, _ = struct.unpack_from("=QQIIIIII", info, 120)
    return Traffic(data_in, received, segments_in + segments_out, acked)


def measure(folder: Path, name: str, source: str, mode: str, linger_ms: int = 0) -> Traffic:
    program = folder / f"{name}_segments.py"
    program.write_text(source.replace("{bursts}", str(BURSTS)).replace("{per_burst}", str(PER_BURST)).replace(
        "{queued}", str(QUEUED)))  # fmt: skip
    server = Server()
    thread = server.start()
    command = [device_client.BIN / "micropython", program, folder / name, str(server.port), mode, str(linger_ms)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        sys.exit(f"{name} {mode}: {done.stdout}{done.stderr}")
    thread.join(30)
    assert server.traffic
    return server.traffic


def print_rows(title: str, rows: dict[str, Traffic], messages: int) -> None:
    print(f"{title:44} {'data segments':>14} {'all segments':>14} {'bytes':>14}")
    for name, seen in rows.items():
        figures = (seen.data_segments_in, seen.segments, seen.bytes_in + seen.bytes_out)
        print(f"  {name:42} " + " ".join(f"{figure / messages:>14.2f}" for figure in figures))


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        device_client.prepare(folder)
        device_client.mqtt_as_size(folder)
        (folder / "async").mkdir()
        (folder / "mqtt_async.py").rename(folder / "async" / "mqtt_async.py")
        on = {
            "midge_client": measure(folder, "midge", MIDGE, "on"),
            "midge_client, linger_ms=20": measure(folder, "midge", MIDGE, "on", 20),
            "umqtt.simple": measure(folder, "simple", SIMPLE, "on"),
            "mqtt_async 0.7b4": measure(folder, "async", ASYNC, "on"),
        }
        print_rows(f"always on, {PER_BURST} sensors, QoS 1: each message", on, BURSTS * PER_BURST)
        awake = {
            "midge_wake": measure(folder, "midge", MIDGE, "wake"),
            "umqtt.simple": measure(folder, "simple", SIMPLE, "wake"),
            "mqtt_async 0.7b4": measure(folder, "async", ASYNC, "wake"),
        }
        print_rows(f"one wake cycle, {PER_BURST} out and {QUEUED} in at QoS 1", awake, 1)


if __name__ == "__main__":
    main()
