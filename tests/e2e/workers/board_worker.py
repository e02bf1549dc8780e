"""A worker on a board, of docs/work-queues.md: PORT NAME SECONDS. Runs on the unix port; `device/` is on its path."""

import asyncio
import sys
import time

from midge_client import Client

port, name, seconds = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])


def encode(topic, payload, retained):
    time.sleep(seconds)
    print("done", payload.decode())  # when this returns, the client acknowledges


async def main():
    client = Client(name, "127.0.0.1", port)
    client.on_message = encode
    await client.connect()
    await client.subscribe("$queue/encode", qos=1)
    print("ready")
    while True:
        await asyncio.sleep(3600)


asyncio.run(main())
