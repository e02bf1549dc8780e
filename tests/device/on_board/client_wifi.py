"""wifi.py with a stand-in for `network`: CACHE. Runs under MicroPython and CPython; prints JSON for each step."""

import asyncio
import json
import sys

ROOT = __file__.rsplit("/", 4)[0]
sys.path.insert(0, ROOT + "/host/midge/sim/on_board")
sys.path.insert(0, ROOT + "/device")

from network import air  # noqa: E402
from wifi import WiFi  # noqa: E402

CACHE = sys.argv[1]


def attempt(name, **options):
    air.log.clear()
    settings = {"power": "powersave", "cache": CACHE, "timeout_ms": 1500, "fast_ms": 300}
    settings.update(options)
    wifi = WiFi("home", "secret", **settings)
    try:
        wifi.connect_now()
    except OSError as error:
        print(json.dumps([name, "OSError", error.args[0]]))
        return wifi
    connects = [entry[1:] for entry in air.log if entry[0] == "connect"]
    print(json.dumps([name, wifi.was_fast, connects, wifi.isconnected()]))
    return wifi


attempt("first")
wifi = attempt("again")
print(json.dumps(["power", ["config", {"pm": 2}] in air.log]))
air.takes_channel = False
attempt("esp32")
air.bssid, air.channel = b"\x02\x00\x00\x00\x00\x09", 11
attempt("replaced")
air.tells_bssid = False
air.takes_channel = True
attempt("replaced, again")
attempt("fixed", address=("10.0.0.9", "255.0.0.0", "10.0.0.1", "10.0.0.1"))
attempt("no cache", cache=None)
with open(CACHE, "w") as file:
    file.write('{"ssid": "ho')
attempt("cut cache")
wifi = WiFi("home", "secret", cache=CACHE)
asyncio.run(wifi.connect())
print(json.dumps(["async", wifi.isconnected()]))
air.is_up = False
print(json.dumps(["gone", wifi.isconnected()]))
attempt("nobody", timeout_ms=400)
