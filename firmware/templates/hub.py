"""A board as the hub: its own Wi-Fi, an MQTT broker, an LED. With the setting wifi.ssid it joins your network instead.

What it says:              NAME/status, NAME/state/led, $SYS/broker/#
What it obeys:             NAME/set/led (on, off), NAME/set/update/... (midge boards update)
"""
import asyncio
import sys

import midge_boot as boot
from basics import find_network, find_updater, tell_traceback
from midge_broker import Broker

NAME = boot.settings("name", "hub")
# An ESP32 counts memory as free that its radio needs (docs/hub-on-a-board.md).
BUDGET_BYTES = boot.settings("broker.budget_bytes", 60_000 if sys.platform == "esp32" else 0)
MAX_CLIENTS = boot.settings("broker.max_clients", 4 if sys.platform == "rp2" else 8)


# The radio needs memory too, so the network comes before the broker counts what is free.
async def start_network():
    try:
        import network
    except ImportError:
        return  # a computer
    if boot.settings("wifi.ssid"):
        await find_network().connect()
        return
    while len(boot.settings("ap.password", "")) < 8:  # WPA2 has no shorter one: the driver would not start with it
        print("no network yet: midge boards set PORT ap.password, 8 characters or more")
        await asyncio.sleep(5)
    name, password = boot.settings("ap.ssid", NAME), boot.settings("ap.password")
    access_point = network.WLAN(network.AP_IF)
    if sys.platform == "rp2":
        access_point.config(essid=name, password=password)
        access_point.config(pm=0xA11140)  # no power save: with it each message takes up to 0.1 s longer
    else:
        access_point.config(ssid=name, password=password, authmode=3, max_clients=MAX_CLIENTS)  # 3: WPA2
    access_point.active(True)
    while not access_point.active():
        await asyncio.sleep(0.1)


def find_led():
    try:
        from machine import Pin

        return Pin(boot.settings("led_pin", "LED"), Pin.OUT)  # Pico; on an ESP32 a number
    except (ImportError, ValueError):
        return None


# user and password of the settings, if there are some, for every client.
def check(_client_id, user, password):
    wanted_user, wanted = boot.settings("broker.user"), boot.settings("broker.password")
    return wanted_user is None or (wanted_user == user and wanted is not None and wanted.encode() == password)


class Hub:
    def __init__(self):
        bind = boot.settings("broker.bind", "0.0.0.0")
        self.broker = Broker(boot.settings("broker.port", 1883), bind, max_clients=MAX_CLIENTS, auth=check,
                             store=boot.path("midge"), budget_bytes=BUDGET_BYTES)
        self.led = find_led()
        self.updater = find_updater(NAME, self.publish)
        self.broker.subscribe(NAME + "/set/#", self.obey)

    def publish(self, topic, payload, retain):
        self.broker.publish(topic, payload, qos=1, retain=retain)

    # Called by the broker, in its own task: no socket, no waiting.
    def obey(self, topic, payload, _retained):
        if self.updater.receive(topic, payload):
            return
        payload = bytes(payload)
        if topic == NAME + "/set/led" and payload in (b"on", b"off"):
            if self.led:
                self.led.value(payload == b"on")
            self.publish(NAME + "/state/led", payload, True)

    async def run(self):
        self.broker.listen()
        print("listening on mqtt://%s:%d" % (self.broker.bind, self.broker.port))
        self.publish(NAME + "/status", b"online", True)
        tell_traceback(NAME, self.publish)
        self.updater.connected()  # a hub has nobody to connect to: it listens
        await self.broker.run()


async def main():
    await start_network()
    await Hub().run()
