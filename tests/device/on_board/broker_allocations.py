# What the broker allocates per forwarded message: the collector is off, and a message to `measure` prints it.
# Runs from the project's root.
import asyncio
import gc
import os
import sys

sys.path.insert(0, os.getenv("MIDGE_DEVICE") or "device")

import midge_broker

broker = midge_broker.Broker(0, "127.0.0.1")
last = [0, 0, 0]  # heap, messages received, measurements


def measure(topic, payload, retained):
    heap = gc.mem_alloc()
    messages = broker._counts[0]
    last[2] += 1
    print("allocation %d: %s" % (last[2], (heap - last[0]) / max(1, messages - last[1])))
    gc.collect()
    last[0] = gc.mem_alloc()
    last[1] = messages


broker.subscribe("measure", measure)
broker.listen()
gc.collect()
gc.disable()
last[0] = gc.mem_alloc()
print("listening on mqtt://%s:%d" % (broker.bind, broker.port))
asyncio.run(broker.run())
