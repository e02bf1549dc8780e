"""A board whose session the server still has, and which knows nothing of it: publishes one message at QoS 2.

Runs under MicroPython and CPython: PORT.
"""

import asyncio
import sys

sys.path.insert(0, __file__.rsplit("/", 4)[0] + "/device")

from midge_client import Client


async def main():
    client = Client("board", "127.0.0.1", int(sys.argv[1]), clean=False)
    await client.connect()
    await client.publish("t", b"second", qos=2)
    await client.disconnect()


asyncio.run(main())
