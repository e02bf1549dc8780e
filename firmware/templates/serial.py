"""A board on a cable: MQTT over USB or a UART to the broker on the laptop, for boards without a radio.

What it says:              NAME/uptime (s), NAME/memory (free, kB), NAME/status, NAME/state/interval
What it obeys:             NAME/set/interval (1 to 3600, s), NAME/set/update/... (midge boards update)
"""
import asyncio
import gc
import sys
import time

import midge_boot as boot
from board import Board
from midge_serial import Cable

NAME = boot.settings("name", "board")
STARTED = time.time()


# The setting "uart": the number of a UART; without it the cable that mpremote uses too.
def open_cable():
    uart = boot.settings("uart")
    if uart is None:
        return Cable(sys.stdin.buffer, sys.stdout.buffer, NAME)
    from machine import UART

    return Cable(UART(uart, boot.settings("baud", 115200), timeout=0, rxbuf=256), name=NAME)


class Serial:
    def __init__(self):
        self.interval_s = boot.settings("interval_s", 10)
        self.cable = open_cable()
        self.board = Board(self.obey, dial=self.cable.dial)

    def obey(self, name, payload):
        if name == "interval" and payload.isdigit() and 1 <= int(payload) <= 3600:
            self.interval_s = int(payload)

    async def run(self):
        cable = asyncio.create_task(self.cable.run())
        try:
            await self.board.connect()
            while True:
                await self.board.publish("status", "online", retain=True)
                await self.board.publish("state/interval", self.interval_s, retain=True)
                await self.board.publish("uptime", int(time.time() - STARTED))
                await self.board.publish("memory", gc.mem_free() // 1024)
                await asyncio.sleep(self.interval_s)
        finally:
            cable.cancel()


async def main():
    await Serial().run()
