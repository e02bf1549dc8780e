"""A board with sensors: publishes what it can measure, and how often is up to you. Change READINGS to yours.

What it says:              NAME/temperature, NAME/memory (free, kB), NAME/status, NAME/state/interval
What it obeys:             NAME/set/interval (1 to 3600, s), NAME/set/update/... (midge boards update)
"""
import asyncio
import gc

import midge_boot as boot
from basics import find_network
from board import Board


def read_temperature():
    try:  # ESP32-S2, -S3, -C3, -C6
        import esp32

        return "%.1f" % esp32.mcu_temperature()
    except (ImportError, AttributeError):
        pass
    try:  # RP2040, RP2350: datasheet section 4.9.5, 0.706 V at 27 degrees, 1.721 mV less for each degree more
        from machine import ADC

        return "%.1f" % (27 - (ADC(ADC.CORE_TEMP).read_u16() * 3.3 / 65535 - 0.706) / 0.001721)
    except (ImportError, AttributeError):
        return None


def read_memory():
    return gc.mem_free() // 1024


READINGS = (("temperature", read_temperature), ("memory", read_memory))


class Sensor:
    def __init__(self):
        self.interval_s = boot.settings("interval_s", 10)
        self.changed = asyncio.Event()
        self.board = Board(self.obey, link=find_network())

    def obey(self, name, payload):
        if name == "interval" and payload.isdigit() and 1 <= int(payload) <= 3600:
            self.interval_s = int(payload)
            self.changed.set()

    async def run(self):
        board = self.board
        await board.connect()
        while True:
            self.changed.clear()
            await board.publish("status", "online", retain=True)  # each time: our will may have said offline
            await board.publish("state/interval", self.interval_s, retain=True)
            for name, read in READINGS:
                reading = read()
                if reading is not None:
                    await board.publish(name, reading)
            try:
                await asyncio.wait_for(self.changed.wait(), self.interval_s)
            except asyncio.TimeoutError:
                pass  # time for the next report


async def main():
    await Sensor().run()
