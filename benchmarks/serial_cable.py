"""A board on a serial cable: payload bytes a second against what the line carries, at several error rates.

Stand-alone: `.venv/bin/python benchmarks/serial_cable.py [--baud 115200] [--seconds 8]`. The board is MicroPython's
unix port, the line a pair of pseudo-terminals with a speed; the broker is the real one. A byte on the line takes 10
bits.
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
    await asyncio.gather(running, *[publish(client, int(sys.argv[2]), payload) for _ in range(4)])
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--baud", type=int, default=115_200)
    parser.add_argument("--seconds", type=float, default=8, help="of each row")
    options = parser.parse_args()
    line_rate = options.baud / 10
    print(f"{options.baud} baud: the line carries {line_rate:,.0f} bytes a second each way\n")
    print("| QoS | payload | bit error rate | payload bytes/s | of the line | bytes/s on the line, both ways |")
    print("|---|---|---|---|---|---|")
    for qos, size, error_rate in ((0, 64, 0), (0, 512, 0), (1, 64, 0), (1, 512, 0), (2, 512, 0), (1, 512, 1e-5),
                                  (1, 512, 1e-4), (1, 64, 1e-3)):
        payload, carried = measure(qos, size, error_rate, options.baud, options.seconds)
        print(f"| {qos} | {size} | {error_rate:g} | {payload:,.0f} | {payload / line_rate:.0%} | {carried:,.0f} |",
              flush=True)


if __name__ == "__main__":
    main()
