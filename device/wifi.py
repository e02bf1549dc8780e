"""Wi-Fi for boards (ESP32, RP2040, RP2350): up, up again, and fast after deep sleep. A link for midge_client.
It must not know what uses the network."""
# Where the time goes (ESP32, glenn20/upy-esp32-experiments): 1,626 ms and 204 mC with a scan and DHCP, 774 ms and
# 109 mC with both left out, 40 ms of it MQTT. So the access point's BSSID and channel, and the address that DHCP gave,
# are remembered in a small file, which is written only when they change. If they don't hold any more (access point
# replaced, address taken back), that costs `fast_ms` once.

import asyncio
import json
import os
import time

import network

try:
    from time import sleep_ms, ticks_diff, ticks_ms
except ImportError:  # CPython, in tests
    def ticks_ms():
        return int(time.monotonic() * 1000)

    def ticks_diff(end, start):
        return end - start

    def sleep_ms(ms):
        time.sleep(ms / 1000)

_POLL_MS = 20


# power: "none", "performance" or "powersave", as network.WLAN.PM_...; None leaves the port's default. ESP32: powersave
# wakes the radio for the access point's beacons only, so that what comes waits up to 300 ms.
# address: (address, mask, gateway, DNS) if it is fixed. cache: the file's name; None: nothing is remembered.
# timeout_ms: for all of connect(), after which OSError(ETIMEDOUT) is raised.
class WiFi:
    def __init__(self, ssid, password=None, power=None, address=None, cache="wifi.json", hostname=None,
                 timeout_ms=15_000, fast_ms=3000):
        self.ssid = ssid
        self.password = password
        self.power = power
        self.address = address
        self.cache = cache
        self.timeout_ms = timeout_ms
        self.fast_ms = fast_ms
        self.connect_ms = 0  # what the last connect() took
        self.was_fast = False  # whether it could use what was remembered
        if hostname:
            network.hostname(hostname)
        self.wlan = network.WLAN(network.STA_IF)

    def isconnected(self):
        return self.wlan.isconnected()

    # For Client(link=...).
    async def connect(self):
        for _ in self._steps():
            await asyncio.sleep(_POLL_MS / 1000)

    # For a program without asyncio, before wake(). Gives the milliseconds that it took.
    def connect_now(self):
        for _ in self._steps():
            sleep_ms(_POLL_MS)
        return self.connect_ms

    # Before deep sleep: ESP32 switches the radio off by itself, RP2's doesn't.
    def off(self):
        self.wlan.disconnect()
        self.wlan.active(False)

    # ------------------------------------------------------------------------------------------------------

    # Yields while there is something to wait for.
    def _steps(self):
        start = ticks_ms()
        self.wlan.active(True)
        self._set_power()
        known = self._load()
        self.was_fast = False
        if known:
            self._begin(known)
            while not self.wlan.isconnected() and ticks_diff(ticks_ms(), start) < self.fast_ms:
                yield
            self.was_fast = self.wlan.isconnected()
            if not self.was_fast:
                self._forget()
        if not self.wlan.isconnected():
            self._begin(None)
            while not self.wlan.isconnected():
                if ticks_diff(ticks_ms(), start) > self.timeout_ms:
                    self.wlan.disconnect()
                    raise OSError(110)
                yield
        self.connect_ms = ticks_diff(ticks_ms(), start)
        self._save()

    def _begin(self, known):
        wlan = self.wlan
        # ESP32: connect() while another is in progress raises "Wifi Internal Error" (micropython#17661, #7139).
        try:
            wlan.disconnect()
        except OSError:
            pass
        address = self.address or (known and known["address"])
        if address:
            wlan.ifconfig(tuple(address))
        else:
            self._ask_dhcp()
        if known:
            bssid = bytes(known["bssid"])
            for options in ({"bssid": bssid, "channel": known["channel"]}, {"bssid": bssid}):
                try:
                    wlan.connect(self.ssid, self.password, **options)
                    return
                except (TypeError, ValueError):  # a channel is taken by the CYW43 driver (RP2), not by ESP32's
                    pass
        wlan.connect(self.ssid, self.password)

    def _ask_dhcp(self):
        try:
            self.wlan.ipconfig(dhcp4=True)  # MicroPython 1.24
        except (AttributeError, ValueError, TypeError):
            try:
                self.wlan.ifconfig("dhcp")
            except (ValueError, TypeError):
                pass  # RP2 before 1.24 does so by itself

    def _set_power(self):
        if self.power:
            self.wlan.config(pm=getattr(network.WLAN, "PM_" + self.power.upper()))

    def _load(self):
        try:
            with open(self.cache) as file:
                known = json.load(file)
            return known if known["ssid"] == self.ssid else None
        except (OSError, ValueError, KeyError, TypeError):  # none yet, or power went while it was written
            return None

    def _save(self):
        if not self.cache or self.was_fast:
            return
        try:
            now = {"ssid": self.ssid, "bssid": list(self._bssid()), "channel": self.wlan.config("channel"),
                   "address": list(self.wlan.ifconfig())}
        except (ValueError, OSError, AttributeError):  # a port that doesn't tell
            return
        try:
            with open(self.cache, "w") as file:
                json.dump(now, file)
        except OSError:
            pass  # no flash to write to: the next time is as slow as this one

    # Where config() doesn't tell it: the strongest of our name that a scan finds. That is once, it is remembered.
    def _bssid(self):
        try:
            return self.wlan.config("bssid")
        except (ValueError, TypeError):
            name = self.ssid.encode()
            found = [(entry[3], entry[1]) for entry in self.wlan.scan() if entry[0] == name]
            if not found:
                raise OSError("not found")
            return max(found)[1]

    def _forget(self):
        try:
            os.remove(self.cache)
        except OSError:
            pass
