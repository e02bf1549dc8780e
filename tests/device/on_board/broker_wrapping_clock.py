# The broker on the clock of a 32-bit board, one second before ticks_ms wraps around. Runs from the project's root.
import asyncio
import os
import sys

sys.path.insert(0, os.getenv("MIDGE_DEVICE") or "device")

import midge_broker

PERIOD = 1 << 30
now = midge_broker._ticks_ms
start = now()


def ticks_ms():
    return (PERIOD - 1000 + now() - start) & (PERIOD - 1)


def ticks_diff(end, start):
    return ((end - start + PERIOD // 2) & (PERIOD - 1)) - PERIOD // 2


midge_broker._ticks_ms = ticks_ms
midge_broker._ticks_diff = ticks_diff


class Time:  # what midge_broker_v5 takes of the module
    ticks_ms = staticmethod(ticks_ms)
    ticks_diff = staticmethod(ticks_diff)


if sys.implementation.name == "micropython":  # the other's clock doesn't wrap around
    midge_broker._v5.time = Time
broker = midge_broker.Broker(0, "127.0.0.1")
broker.listen()
print("listening on mqtt://%s:%d" % (broker.bind, broker.port))
asyncio.run(broker.run())
