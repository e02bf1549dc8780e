"""The simulator's board that is always on, by radio or on a serial cable. It says on stdout what the simulator counts.
What it is to do stands in the environment ($MIDGE_SIM, JSON); it knows nothing of links and power cuts."""

import asyncio
import json
import os
import time

from midge_client import Client, MQTTError

SETTINGS = json.loads(os.getenv("MIDGE_SIM"))


def say(*what):
    print("@" + json.dumps(what))


def make_client():
    options = {"keepalive": SETTINGS["keep_alive_s"], "clean": False}
    if not SETTINGS["device"]:
        return Client(SETTINGS["client_id"], "127.0.0.1", SETTINGS["port"], **options), None
    from midge_serial import Cable
    cable = Cable(open(SETTINGS["device"], "r+b"), name=SETTINGS["client_id"])
    return Client(SETTINGS["client_id"], "", dial=cable.dial, **options), cable


async def connect(client):
    while True:
        try:
            return await client.connect()
        except (OSError, MQTTError):
            await asyncio.sleep(1)


async def report(client):
    number = 0
    while True:
        for _ in range(SETTINGS["messages"]):
            name = "%d.%d" % (SETTINGS["boot"], number)
            number += 1
            payload = "%s %d " % (name, time.time_ns() // 1_000_000)
            payload += "x" * (SETTINGS["payload_bytes"] - len(payload))
            say("put", name, 0)
            try:
                await client.publish(SETTINGS["topic"], payload, SETTINGS["qos"])
            except MQTTError as error:
                say("failed", name, repr(error))
        await asyncio.sleep(SETTINGS["sleep_ms"] / 1000)


async def obey(client):
    async for _topic, payload, _retained in client:
        say("got", payload.decode())


async def nothing():
    pass


async def main():
    client, cable = make_client()
    carrying = asyncio.create_task(cable.run() if cable else nothing())
    await connect(client)
    await client.subscribe(SETTINGS["command_topic"], 1)
    say("ready")
    await asyncio.gather(carrying, report(client), obey(client))


try:
    asyncio.run(main())
except KeyboardInterrupt:
    pass
