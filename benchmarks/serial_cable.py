"""A board on a serial cable: payload bytes a second against what the line carries, at several error rates.

Stand-alone: `.venv/bin/python benchmarks/serial_cable.py [--baud 115200] [--seconds 8]`. The board is MicroPython's
unix port, the line a pair of pseudo-terminals with a speed; the broker is the real one. A byte on the line takes 10
bits. Twelve messages are under way (the client's window is 16). "at most" is what the bytes of PUBLISH and of full
frames leave of a line without errors: 64 bytes of payload have 10 to 12 bytes of PUBLISH before them, and 240 bytes of
that go into a frame of 249 and more, as some have to be escaped.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import paho.mqtt.client as mqtt

from midge.boards.serial_line import SerialLine
from midge.protocol.encoder import encode
from midge.protocol.packets import Publish
from midge.protocol.serial_link import DATA, encode_frame

ROOT = Path(__file__).resolve().parent.parent
BOARD = """
import asyncio, sys
from midge_client import Client
from midge_serial import Cable
async def publish(client, qos, payload):
    while True:
        await client.publish("bench", payload, qos=qos)
async def main():
    cable = Cable(open(sys.argv[1], "r+b"), name="bench")
    running = asyncio.create_task(cable.run())
    client = Client("bench", "", dial=cable.dial, keepalive=30)
    await client.connect()
    payload = b"x" * int(sys.argv[3])
    await asyncio.gather(running, *[publish(client, int(sys.argv[2]), payload) for _ in range(12)])
asyncio.run(main())
"""


def measure(qos: int, size: int, error_rate: float, baud: int, seconds: float) -> tuple[float, float]:
    """(payload bytes a second that arrived, bytes a second on the line both ways)."""
    with tempfile.TemporaryDirectory() as directory, SerialLine(1, error_rate, baud) as line:
        config = Path(directory, "midge.toml")
        config.write_text(
            f'[[listener]]\nport = 0\n[[listener]]\ntype = "serial"\ndevice = "{line.host_port}"\nbaud = {baud}\n'
            '[store]\npath = ":memory:"\n', encoding="utf-8")
        program = Path(directory, "board.py")
        program.write_text(BOARD, encoding="utf-8")
        broker = subprocess.Popen([sys.executable, "-m", "midge", "broker", "--config", config],
                                  stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL,
                                  env={**os.environ, "PYTHONUNBUFFERED": "1"})
        assert broker.stdout is not None
        port = int(broker.stdout.readline().rpartition(":")[2])
        board = subprocess.Popen(
            [Path(sys.executable).with_name("micropython"), program, line.board_port, str(qos), str(size)],
            env={"MICROPYPATH": f".frozen:{ROOT / 'device'}"})
        try:
            return count(port, line, seconds)
        finally:
            for process in (board, broker):
                process.kill()
                process.wait()


def count(port: int, line: SerialLine, seconds: float) -> tuple[float, float]:
    arrived = 0
    is_first = threading.Event()

    def take(_client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        nonlocal arrived
        arrived += len(message.payload)
        is_first.set()

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.on_message = take
    client.on_connect = lambda *_: client.subscribe("bench")
    client.connect("127.0.0.1", port)
    client.loop_start()
    is_first.wait(30)
    before, carried, start = arrived, line.bytes_carried, time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - start
    result = (arrived - before) / passed, (line.bytes_carried - carried) / passed
    client.disconnect()
    client.loop_stop()
    return result


def ceiling(qos: int, size: int) -> float:
    """The part of the line that payloads can have."""
    count = 100
    publishes = b"".join(
        encode(Publish("bench", b"x" * size, qos, packet_id=number + 1 if qos else 0), 4) for number in range(count)
    )
    others = count * 4 if qos == 2 else 0  # PUBREL goes the same way
    frames = [publishes[at : at + 240] for at in range(0, len(publishes), 240)]
    line = sum(len(encode_frame(DATA, number & 0xFF, 0, data, 1)) for number, data in enumerate(frames))
    return count * size / (line + others)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--baud", type=int, default=115_200)
    parser.add_argument("--seconds", type=float, default=8, help="of each row")
    options = parser.parse_args()
    line_rate = options.baud / 10
    print(f"{options.baud} baud: the line carries {line_rate:,.0f} bytes a second each way\n")
    print("| QoS | payload | bit error rate | payload bytes/s | of the line | at most | bytes/s both ways |")
    print("|---|---|---|---|---|---|---|")
    for qos, size, error_rate in ((0, 64, 0), (0, 512, 0), (1, 64, 0), (1, 512, 0), (2, 512, 0), (1, 512, 1e-5),
                                  (1, 512, 1e-4), (1, 64, 1e-3)):
        payload, carried = measure(qos, size, error_rate, options.baud, options.seconds)
        at_most = "" if error_rate else f"{ceiling(qos, size):.0%}"
        print(f"| {qos} | {size} | {error_rate:g} | {payload:,.0f} | {payload / line_rate:.0%} | {at_most} "
              f"| {carried:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
