"""A board as the hub: access point, MQTT broker, a button and an LED. Copy it to the board as main.py.

No router, no other computer: whoever joins its Wi-Fi reaches the broker at 192.168.4.1, port 1883. On a computer it is
a broker at 127.0.0.1, its LED a line:
    micropython hub.py NAME PASSWORD PORT
"""
# What it says, for the name "hub":               What it obeys:
#   hub/button      pressed (QoS 1)                 hub/set/led    on or off
#   hub/state/led   on or off (retained)
#   hub/status      online (retained)
#   $SYS/broker/#   clients, messages, what was dropped and why, free heap
#
# Beside it on the board: midge_broker.mpy; for clients of MQTT 5.0 midge_broker_v5.mpy; for a store on flash
# midge_broker_store.mpy. docs/hub-on-a-board.md says what fits which board.
import asyncio
import sys

# Your board's settings. On a computer the command line takes their place, in this order.
SETTINGS = ["hub", "change-me-please", "1883"]
SETTINGS[: len(sys.argv) - 1] = sys.argv[1:]
NAME, PASSWORD, PORT = SETTINGS

BUTTON_PIN = 0  # BOOT on most ESP32 boards; a Pico has none: wire one to ground
STORE = "/midge"  # the journal; None: after a power cut retained messages and sessions are gone
# What the broker may plan with; 0: what is free, as on a Pico. An ESP32 counts memory as free that its radio needs.
BUDGET_BYTES = 60_000 if sys.platform == "esp32" else 0
MAX_CLIENTS = 4 if sys.platform == "rp2" else 8  # the firmware's TCP connections, less one: see the page


# The board's own network. Its radio needs memory too, so this comes before the broker counts what is free.
def start_access_point():
    try:
        import network
    except ImportError:
        return "127.0.0.1"  # a computer
    access_point = network.WLAN(network.AP_IF)
    if sys.platform == "rp2":
        access_point.config(essid=NAME, password=PASSWORD)
        access_point.config(pm=0xA11140)  # no power save: with it each message takes up to 0.1 s longer
    else:
        access_point.config(ssid=NAME, password=PASSWORD, authmode=3, max_clients=MAX_CLIENTS)  # 3: WPA2
    access_point.active(True)
    while not access_point.active():
        pass
    return "0.0.0.0"


class PrintedLED:
    def value(self, on):
        print("LED", "on" if on else "off")


def find_led():
    try:
        from machine import Pin

        return Pin("LED", Pin.OUT)  # Pico; on an ESP32 the number: Pin(2, Pin.OUT)
    except (ImportError, ValueError):
        return PrintedLED()


def find_button():
    try:
        from machine import Pin

        return Pin(BUTTON_PIN, Pin.IN, Pin.PULL_UP)
    except (ImportError, ValueError):
        return None


class Hub:
    def __init__(self):
        bind = start_access_point()
        from midge_broker import Broker

        store = STORE if bind == "0.0.0.0" else None  # not on a computer
        self.led = find_led()
        self.button = find_button()
        self.broker = Broker(int(PORT), bind, max_clients=MAX_CLIENTS, store=store, budget_bytes=BUDGET_BYTES)
        self.broker.subscribe(NAME + "/set/led", self.set_led)
        self.broker.publish(NAME + "/status", "online", qos=1, retain=True)
        self.set_led("", b"off", False)

    # Called by the broker, in its own task: no socket, no waiting.
    def set_led(self, topic, payload, retained):
        if payload in (b"on", b"off"):
            self.led.value(payload == b"on")
            self.broker.publish(NAME + "/state/led", payload, qos=1, retain=True)

    async def watch_button(self):
        was_pressed = False
        while self.button:
            is_pressed = not self.button.value()
            if is_pressed and not was_pressed:
                self.broker.publish(NAME + "/button", "pressed", qos=1)
            was_pressed = is_pressed
            await asyncio.sleep_ms(20)  # longer than a contact bounces

    async def run(self):
        self.broker.listen()
        print("listening on mqtt://%s:%d" % (self.broker.bind, self.broker.port))
        print("limits:", self.broker.limits())
        button = asyncio.create_task(self.watch_button())
        try:
            await self.broker.run()
        finally:
            button.cancel()


try:
    asyncio.run(Hub().run())
except KeyboardInterrupt:
    pass  # Ctrl-C
