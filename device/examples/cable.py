"""A board without a radio: MQTT over its cable to the broker on the laptop. Copy it to the board as main.py.

On a computer, over a serial port or pseudo-terminal:   micropython cable.py NAME PORT SECONDS
"""
# What it says, for the name "pico":        What it obeys:
#   pico/uptime   s since the start           pico/set/interval   1 to 3600, seconds
#   pico/memory   free, in kB
#   pico/status   online or offline (retained)
#   pico/state/interval           (retained): the answer to pico/set/interval
import asyncio
import gc
import sys
import time

from midge_client import Client, MQTTError
from midge_serial import Cable

# Your board's settings. On a computer the command line takes their place, in this order.
# PORT: "usb", or the number of a UART.
SETTINGS = ["pico", "usb", "10"]
SETTINGS[: len(sys.argv) - 1] = sys.argv[1:]
NAME, PORT, INTERVAL_S = SETTINGS


def open_cable():
    if PORT == "usb":  # the cable that mpremote uses too: Ctrl-C on it still ends this program and gives the REPL
        return Cable(sys.stdin.buffer, sys.stdout.buffer, NAME)
    if PORT.isdigit():
        from machine import UART

        return Cable(UART(int(PORT), 115200, timeout=0, rxbuf=256), name=NAME)
    return Cable(open(PORT, "r+b"), name=NAME)


class Board:
    def __init__(self):
        self.interval_s = int(INTERVAL_S)
        self.cable = open_cable()
        will = (NAME + "/status", b"offline", 1, True)
        self.client = Client(NAME, "", dial=self.cable.dial, keepalive=30, will=will)

    async def run(self):
        cable = asyncio.create_task(self.cable.run())
        while True:
            try:
                await self.client.connect()
                break
            except (OSError, MQTTError) as error:
                self.cable.log("no connection: %s" % error)  # print() would be console output beside the frames
                await asyncio.sleep(5)
        await self.client.subscribe(NAME + "/set/#", qos=1)
        await asyncio.gather(cable, self.report(), self.obey())

    async def report(self):
        while True:
            try:
                await self.publish("status", "online", True)
                await self.publish("uptime", int(time.time() - STARTED))
                await self.publish("memory", gc.mem_free() // 1024)
            except MQTTError as error:
                self.cable.log("not delivered: %s" % error)
            await asyncio.sleep(self.interval_s)

    async def obey(self):
        async for topic, payload, _retained in self.client:
            if topic == NAME + "/set/interval":
                if payload.isdigit() and 1 <= int(payload) <= 3600:
                    self.interval_s = int(payload)
                await self.publish("state/interval", self.interval_s, True)

    async def publish(self, name, value, retain=False):
        await self.client.publish(NAME + "/" + name, str(value).encode(), qos=1, retain=retain)


STARTED = time.time()
try:
    asyncio.run(Board().run())
except KeyboardInterrupt:
    pass  # Ctrl-C
