"""`network` where there is none: a radio with one access point. It takes as long as it is told, and fails as told.

`air` is the world outside: which access point there is, and how long things take.
"""

import json
import os
import time

STA_IF, AP_IF = 0, 1


def now_ms():
    return time.ticks_ms() if hasattr(time, "ticks_ms") else int(time.monotonic() * 1000)


def hostname(name):
    air.log.append(["hostname", name])


class Air:
    def __init__(self):
        self.ssid, self.password = "home", "secret"
        self.bssid, self.channel = b"\x02\x00\x00\x00\x00\x01", 6
        self.scan_ms, self.join_ms, self.dhcp_ms = 60, 20, 60
        self.is_up = True
        self.takes_channel = True  # as RP2; ESP32 doesn't
        self.tells_bssid = True
        self.log = []


air = Air()
# A program that a test starts is told its air by the environment.
if hasattr(os, "getenv") and os.getenv("MIDGE_AIR"):
    for name, value in json.loads(os.getenv("MIDGE_AIR")).items():
        setattr(air, name, value)


class WLAN:
    PM_NONE, PM_PERFORMANCE, PM_POWERSAVE = 0, 1, 2

    def __init__(self, interface):
        self._active = False
        self._ready_at = None
        self._address = None
        self._fixed = None

    def active(self, on=None):
        if on is None:
            return self._active
        self._active = on

    def connect(self, ssid, password=None, **options):
        if "channel" in options and not air.takes_channel:
            raise TypeError("extra keyword arguments given")
        air.log.append(["connect", sorted(options), self._fixed is not None])
        self._ready_at = None
        if not air.is_up or ssid != air.ssid or password != air.password:
            return
        if "bssid" in options and (options["bssid"] != air.bssid or options.get("channel", air.channel) != air.channel):
            return
        took = air.join_ms + (0 if "bssid" in options else air.scan_ms) + (0 if self._fixed else air.dhcp_ms)
        self._ready_at = now_ms() + took

    def disconnect(self):
        self._ready_at = None

    def isconnected(self):
        return self._active and air.is_up and self._ready_at is not None and now_ms() >= self._ready_at

    def ifconfig(self, address=None):
        if address is None:
            return self._fixed or ("192.168.1.7", "255.255.255.0", "192.168.1.1", "192.168.1.1")
        self._fixed = None if address == "dhcp" else address

    def ipconfig(self, dhcp4):
        self._fixed = None

    def config(self, name=None, **options):
        if options:
            air.log.append(["config", options])
        elif name == "channel":
            return air.channel
        elif name == "bssid" and air.tells_bssid:
            return air.bssid
        else:
            raise ValueError("unknown config param")

    def scan(self):
        return [(b"other", b"\x02\x00\x00\x00\x00\x02", 1, -40, 3, False),
                (b"home", air.bssid, air.channel, -60, 3, False)]
