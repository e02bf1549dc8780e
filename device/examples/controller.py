"""A board that obeys: switches its LED, and says how it is. Copy it to the board as main.py.

It doesn't bring the network up: do that before (see wifi.py), or run it on a computer, where the LED is a line:
    micropython controller.py NAME BROKER PORT SECONDS
"""
# What it obeys, for the name "lamp":                What it says:
#   lamp/set/led        on or off                      lamp/state/led       on or off (retained)
#   lamp/set/interval   1 to 3600, seconds             lamp/state/interval  seconds (retained)
#                                                      lamp/uptime          seconds since the start
#                                                      lamp/memory          free, in kB
#                                                      lamp/status          online or offline (retained)
import asyncio
import gc
import sys
import time

from midge_client import Client, MQTTError

# Your board's settings. On a computer the command line takes their place, in this order.
SETTINGS = ["lamp", "192.168.4.1", "1883", "10"]
SETTINGS[: len(sys.argv) - 1] = sys.argv[1:]
NAME, BROKER, PORT, INTERVAL_S = SETTINGS


class PrintedLED:
    def value(self, on):
        print("LED", "on" if on else "off")


def find_led():
    try:
        from machine import Pin

        return Pin("LED", Pin.OUT)  # Pico; on an ESP32 the number: Pin(2, Pin.OUT)
    except (ImportError, ValueError):
        return PrintedLED()


class Controller:
    def __init__(self):
        self.led = find_led()
        self.states = {"led": "off", "interval": INTERVAL_S}
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

    async def obey(self):
        async for topic, payload, _retained in self.client:
            name = topic[len(NAME + "/set/") :]
            if name == "led" and payload in (b"on", b"off"):
                self.led.value(payload == b"on")
                self.states["led"] = payload.decode()
            elif name == "interval" and payload.isdigit() and 1 <= int(payload) <= 3600:
                self.states["interval"] = str(int(payload))
                self.interval_changed.set()
            if name in self.states:
                # The answer is what holds now; who asked for nonsense sees that nothing changed.
                await self.publish("state/" + name, self.states[name], retain=True)

    async def report(self):
        started = time.time()
        while True:
            try:
                await self.publish("status", "online", retain=True)  # each time: our will may have said offline
                await self.publish("uptime", str(int(time.time() - started)))
                if hasattr(gc, "mem_free"):  # MicroPython
                    await self.publish("memory", str(gc.mem_free() // 1024))
            except MQTTError as error:
                print("not delivered:", error)  # no broker for a minute: the next report will be fresher
            self.interval_changed.clear()
            try:
                await asyncio.wait_for(self.interval_changed.wait(), int(self.states["interval"]))
            except asyncio.TimeoutError:
                pass  # nothing changed: time for the next report

    async def publish(self, name, text, retain=False):
        await self.client.publish(NAME + "/" + name, text.encode(), qos=1, retain=retain)


try:
    asyncio.run(Controller().run())
except KeyboardInterrupt:
    pass  # Ctrl-C
