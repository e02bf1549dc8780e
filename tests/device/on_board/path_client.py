"""The client at the board's end of a path whose broker dies and comes back: publish|subscribe PORT QOS TOPIC.

Prints a number once publish() has returned for it, or as it arrives; "ready" once it is subscribed; "done" at the end,
for which a message to "stop" asks.
"""

import asyncio
import sys

sys.path.insert(0, __file__.rsplit("/", 4)[0] + "/device")

from midge_client import Client

WHAT, PORT, QOS, TOPIC = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
is_stopped = False


async def read(client):
    global is_stopped
    async for topic, payload, _ in client:
        if topic == "stop":
            is_stopped = True
        else:
            print(int(payload))


async def publish(client):
    pending = []  # the window: number, what publish() returned
    number = 0
    while pending or not is_stopped:
        while len(pending) < 10 and not is_stopped:
            pending.append((number, client.publish(TOPIC, str(number), QOS)))
            number += 1
        first, answer = pending.pop(0)
        await answer
        print(first)
        await asyncio.sleep(0.002)  # a board doesn't flood the others while they come back


async def main():
    # A session that lasts; patience longer than anything here takes.
    client = Client("board", "127.0.0.1", PORT, clean=False, patience=600, backoff_ms=(20, 100))
    await client.connect()
    await client.subscribe("stop", 1)
    if WHAT == "subscribe":
        await client.subscribe(TOPIC, QOS)
    reading = asyncio.create_task(read(client))
    print("ready")
    if WHAT == "publish":
        await publish(client)
    while not is_stopped:
        await asyncio.sleep(0.05)
    print("done")
    await client.disconnect()
    await reading


asyncio.run(main())
