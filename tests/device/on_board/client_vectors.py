"""midge_client and the shared test vectors: WHAT PORT. The server, which sends or checks them, is the test's.

Runs under MicroPython and CPython; prints one JSON list for each thing that happened.
"""

import asyncio
import json
import sys

ROOT = __file__.rsplit("/", 4)[0]
sys.path.insert(0, ROOT + "/device")

from midge_client import Client, MQTTError, MemoryOutbox  # noqa: E402

MemoryOutbox._last_id = 0  # identifiers begin at random, and the tests name them

PORT = int(sys.argv[2])


def say(*what):
    print(json.dumps(what))


def vectors(kind):
    with open(ROOT + "/tests/vectors/packets-3.1.1.json") as file:
        for vector in json.load(file):
            packet = vector.get("packet", {})
            if packet.get("type") == kind:
                yield packet


def from_hex(text):
    return bytes(int(text[i:i + 2], 16) for i in range(4, len(text), 2))  # "hex:..."


def make(**options):
    settings = {"keepalive": 60, "timeout": 5, "backoff_ms": (1, 1)}
    settings.update(options)
    return Client(settings.pop("client_id", "vectors"), "127.0.0.1", PORT, **settings)


async def connects():
    for packet in vectors("CONNECT"):
        if packet["protocol_level"] != 4 or packet.get("bridge"):
            continue
        will = packet.get("will")
        if will:
            will = (will["topic"], from_hex(will["payload"]), will["qos"], will["retain"])
        password = packet.get("password")
        client = make(client_id=packet["client_id"], user=packet.get("username"),
                      password=from_hex(password) if password is not None else None, keepalive=packet["keep_alive_s"],
                      clean=packet["clean_start"], will=will)
        try:
            await client.connect()
        except MQTTError as error:
            say(error.code)


# Each on a connection of its own, so that the packet identifier may be what the vector says.
async def sends():
    for packet in vectors("PUBLISH"):
        if not packet["dup"]:
            client = make()
            await client.connect()
            client.outbox._last_id = packet.get("packet_id", 1) - 1
            await client.publish(packet["topic"], from_hex(packet["payload"]), packet["qos"], packet["retain"])
            await client.disconnect()
    for kind in ("SUBSCRIBE", "UNSUBSCRIBE"):
        for packet in vectors(kind):
            filters = packet.get("subscriptions") or packet["filters"]
            if len(filters) == 1:
                client = make()
                await client.connect()
                client.outbox._last_id = packet["packet_id"] - 1
                if kind == "SUBSCRIBE":
                    await client.subscribe(filters[0]["filter"], filters[0]["qos"])
                else:
                    await client.unsubscribe(filters[0])
                await client.disconnect()


async def receives():
    client = make(max_packet=1024)
    await client.connect()
    async for topic, payload, retained in client:
        say(topic, "hex:" + "".join("%02x" % byte for byte in payload), retained)


async def rejects():
    client = make()
    await client.connect()
    say("connected")
    error = None
    while True:
        while not client.error or client.error is error:
            await asyncio.sleep(0)
        error = client.error
        say(type(error).__name__, str(error))


asyncio.run(globals()[sys.argv[1]]())
