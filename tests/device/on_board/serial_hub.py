"""A board with a broker and a serial cable: PORT. Publishes on button/count, and prints what is published on set/#."""

import asyncio
import sys

from midge_broker import Broker
from midge_serial import Cable


async def main():
    broker = Broker(port=0, bind="127.0.0.1", max_clients=4)
    broker.subscribe("set/#", lambda topic, payload, retained: print(topic, payload.decode()))
    cable = Cable(open(sys.argv[1], "r+b"), name="hub", on_channel=broker.attach)
    running = [asyncio.create_task(cable.run()), asyncio.create_task(broker.run())]
    count = 0
    while True:
        broker.publish("button/count", str(count), qos=1, retain=True)
        count += 1
        await asyncio.sleep(0.2)
        if any(task.done() for task in running):
            raise SystemExit("it ended")


asyncio.run(main())
