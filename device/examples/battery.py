"""A sensor on batteries: wakes, measures, publishes, takes its commands, sleeps. Copy it to an ESP32 as main.py.

Besides it the board needs midge_client, midge_wake, midge_outbox and wifi (see docs/battery-sensor.md).
"""
# What it says, for the name "garden":               What it obeys, when it wakes:
#   garden/temperature   of the chip, in Celsius       garden/set/interval   10 to 86400, seconds
#   garden/radio         ms of the last cycle          (retained or sent at QoS 1, so that the broker keeps it)
#   garden/state/interval            (retained): the answer to garden/set/interval
import sys

import machine
from midge_client import OutboxFull, wake
from midge_outbox import RTCOutbox
from wifi import WiFi

# Your board's settings. On a computer the command line takes their place, in this order.
SETTINGS = ["garden", "192.168.4.1", "1883", "your network", "its password"]
SETTINGS[: len(sys.argv) - 1] = sys.argv[1:]
NAME, BROKER, PORT, SSID, PASSWORD = SETTINGS


# Kept in a file: RTC memory is the outbox's. A file is written only when the interval changes.
def read_interval():
    try:
        with open("interval") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 600


def read_temperature():
    try:  # ESP32-S2, -S3, -C3, -C6
        import esp32

        return "%.1f" % esp32.mcu_temperature()
    except (ImportError, AttributeError):  # RP2040's sensor, see sensor.py
        volts = machine.ADC(machine.ADC.CORE_TEMP).read_u16() * 3.3 / 65535
        return "%.1f" % (27 - (volts - 0.706) / 0.001721)


class Sensor:
    def __init__(self):
        self.interval_s = read_interval()
        # A week without a network: the oldest readings make room for the newest.
        self.outbox = RTCOutbox(drop=True)
        self.wifi = WiFi(SSID, PASSWORD, timeout_ms=6000)  # while it looks, the radio takes 0.1 A

    def obey(self, topic, payload, _retained):
        if topic == NAME + "/set/interval" and payload.isdigit() and 10 <= int(payload) <= 86_400:
            self.interval_s = int(payload)
            with open("interval", "w") as file:
                file.write(str(self.interval_s))
            self.say("state/interval", str(self.interval_s), True)  # leaves in this cycle or the next

    # To the outbox, where it outlives what the network does now.
    def say(self, name, text, retain=False):
        try:
            self.outbox.put(NAME + "/" + name, text, 1, retain)
        except OutboxFull:
            print("no room for", name)

    def cycle(self):
        self.say("temperature", read_temperature())
        try:
            self.wifi.connect_now()
        except OSError:
            print("no network;", len(self.outbox.messages), "messages wait")
            return
        stats = wake(NAME, BROKER, int(PORT), subscribe=[(NAME + "/set/#", 1)], on_message=self.obey,
                     outbox=self.outbox, timeout_ms=5000)
        print("delivered", stats.delivered, "kept", stats.kept, "received", stats.received,
              "error", stats.error, "ms", self.wifi.connect_ms, "+", stats.total_ms)


sensor = Sensor()
sensor.cycle()
machine.deepsleep(sensor.interval_s * 1000)
