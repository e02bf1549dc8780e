# The broker in a program that takes all memory that is left, when it is told to. Runs from the project's root.
import asyncio
import gc
import os
import sys

sys.path.insert(0, os.getenv("MIDGE_DEVICE") or "device")

import midge_broker

broker = midge_broker.Broker(0, "127.0.0.1")
taken = []


def take(topic, payload, retained):
    while True:
        try:
            taken.append(bytearray(512))
        except MemoryError:
            break
    del taken[-16:]  # what the broker lives on from now on
    gc.collect()


def give(topic, payload, retained):
    taken[:] = []
    gc.collect()


broker.subscribe("take", take)
broker.subscribe("give", give)
broker.listen()
print("listening on mqtt://%s:%d" % (broker.bind, broker.port))
asyncio.run(broker.run())
