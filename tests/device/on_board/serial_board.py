"""A board on a serial cable: PORT COUNT. Publishes COUNT messages to up/1 at QoS 1 and to up/2 at QoS 2, and prints
what it is sent on down/#."""

import asyncio
import sys

from midge_client import Client, MQTTError
from midge_serial import Cable

PORT, COUNT = sys.argv[1], int(sys.argv[2])


async def receive(client):
    async for topic, payload, _ in client:
        print(topic, payload.decode())


async def main():
    cable = Cable(open(PORT, "r+b"), name="pico")
    running = asyncio.create_task(cable.run())
    client = Client("pico", "", dial=cable.dial, keepalive=20, clean=False)
    cable.log("started")
    await client.connect()
    await client.subscribe("down/#", qos=2)
    receiving = asyncio.create_task(receive(client))
    print("ready")
    for i in range(COUNT):
        for qos in (1, 2):
            while True:
                try:
                    await client.publish("up/%d" % qos, "%d %s" % (i, "." * 60), qos=qos)
                    break
                except MQTTError as error:  # out of time: it stays in flight, so it mustn't be published again
                    print("slow", error)
                    break
    print("published")
    await asyncio.gather(running, receiving)


asyncio.run(main())
