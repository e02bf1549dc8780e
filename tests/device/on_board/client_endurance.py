"""Many messages through a broker, from .mpy in a small heap: PORT COUNT FOLDER. Prints the bytes in use, as JSON."""

import asyncio
import gc
import json
import sys

sys.path.insert(0, sys.argv[3])

from midge_client import Client


async def publish(client, n):
    for i in range(n):
        await client.publish("in", "%08d" % i, i % 3)


async def read(client):
    async for _ in client:
        pass


async def main():
    client = Client("board", "127.0.0.1", int(sys.argv[1]), timeout=60, patience=300)
    await client.connect()
    await client.subscribe("in", 2)
    reading = asyncio.create_task(read(client))
    used = []
    for _ in range(10):
        # Each message goes out and comes back: counted twice.
        await asyncio.gather(publish(client, int(sys.argv[2]) // 40), publish(client, int(sys.argv[2]) // 40))
        gc.collect()
        used.append(gc.mem_alloc())
    print(json.dumps([client.received, used]))
    reading.cancel()
    await client.disconnect()


asyncio.run(main())
