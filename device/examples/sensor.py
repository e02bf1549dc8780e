"""A board with sensors: publishes what it can measure and lets you choose how often. Copy it to the board as main.py.

It doesn't bring the network up: do that before (see wifi.py), or run it on a computer:
    micropython sensor.py NAME BROKER PORT SECONDS
"""
# What it says, for the name "kitchen":              What it obeys:
#   kitchen/temperature   of the chip, in Celsius      kitchen/set/interval   1 to 3600, seconds
#   kitchen/load          runnable processes
#   kitchen/memory        free, in kB
#   kitchen/status        online or offline (retained)
#   kitchen/state/interval                   (retained): the answer to kitchen/set/interval
import asyncio
import gc
import os
import sys

from midge_client import Client, MQTTError

# Your board's settings. On a computer the command line takes their place, in this order.
SETTINGS = ["kitchen", "192.168.4.1", "1883", "10"]
SETTINGS[: len(sys.argv) - 1] = sys.argv[1:]
NAME, BROKER, PORT, INTERVAL_S = SETTINGS


# One function for each reading. A reading that this board can't take is None and is not published.


def read_temperature():
    try:  # ESP32-S2, -S3, -C3, -C6
        import esp32

        return "%.1f" % esp32.mcu_temperature()
    except (ImportError, AttributeError):
        pass
    try:  # RP2040, RP2350: datasheet section 4.9.5, 0.706 V at 27 degrees, 1.721 mV less for each degree more
        from machine import ADC

        volts = ADC(ADC.CORE_TEMP).read_u16() * 3.3 / 65535
        return "%.1f" % (27 - (volts - 0.706) / 0.001721)
    except (ImportError, AttributeError):
        pass
    try:  # Linux
        zone = "/sys/class/thermal/" + sorted(os.listdir("/sys/class/thermal"))[0]
        return "%.1f" % (int(read_file(zone + "/temp")) / 1000)
    except (OSError, IndexError, ValueError):
        return None


def read_load():
    try:  # Linux: the mean number of runnable processes in the last minute
        return read_file("/proc/loadavg").split()[0]
    except OSError:
        return None


def read_memory():
    try:  # Linux
        for line in read_file("/proc/meminfo").split("\n"):
            if line.startswith("MemAvailable:"):
                return line.split()[1]
    except OSError:
        pass
    if hasattr(gc, "mem_free"):  # a board: what the program may still allocate
        return str(gc.mem_free() // 1024)


def read_file(path):
    with open(path) as file:
        return file.read()


READINGS = (("temperature", read_temperature), ("load", read_load), ("memory", read_memory))


class Sensor:
    def __init__(self):
        self.interval_s = int(INTERVAL_S)
        self.interval_changed = asyncio.Event()
        # If we vanish, the broker says so for us.
        will = (NAME + "/status", b"offline", 1, True)
        self.client = Client(NAME, BROKER, port=int(PORT), keepalive=30, will=will)

    async def run(self):
        await self.connect()
        await self.client.subscribe(NAME + "/set/#", qos=1)
        await asyncio.gather(self.report(), self.obey())

    # Only the first connection needs patience: once made, the client keeps it.
    async def connect(self):
        while True:
            try:
                return await self.client.connect()
            except (OSError, MQTTError) as error:
                print("no connection:", error)
                await asyncio.sleep(5)

    async def report(self):
        while True:
            try:
                await self.publish("status", "online", retain=True)  # each time: our will may have said offline
                for name, read in READINGS:
                    reading = read()
                    if reading is not None:
                        await self.publish(name, reading)
            except MQTTError as error:
                print("not delivered:", error)  # no broker for a minute: the next report will be fresher
            self.interval_changed.clear()
            try:
                await asyncio.wait_for(self.interval_changed.wait(), self.interval_s)
            except asyncio.TimeoutError:
                pass  # nothing changed: time for the next report

    async def obey(self):
        async for topic, payload, _retained in self.client:
            if topic == NAME + "/set/interval":
                self.set_interval(payload)
                # The answer is what holds now; who asked for nonsense sees that nothing changed.
                await self.publish("state/interval", str(self.interval_s), retain=True)

    def set_interval(self, payload):
        if payload.isdigit() and 1 <= int(payload) <= 3600:
            self.interval_s = int(payload)
            self.interval_changed.set()

    async def publish(self, name, text, retain=False):
        await self.client.publish(NAME + "/" + name, text.encode(), qos=1, retain=retain)


try:
    asyncio.run(Sensor().run())
except KeyboardInterrupt:
    pass  # Ctrl-C
