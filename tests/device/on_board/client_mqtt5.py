"""What a board's program does with midge_mqtt5: SCENARIO PORT. The server is the test's; see client_scenarios.py."""

import asyncio
import json
import sys

sys.path.insert(0, __file__.rsplit("/", 4)[0] + "/device")

import midge_mqtt5
from midge_client import MQTTError, MemoryOutbox

MemoryOutbox._last_id = 0  # identifiers begin at random, and the tests name them

PORT = int(sys.argv[2])


def say(*what):
    print(json.dumps(what))


async def connected(**options):
    settings = {"keepalive": 30, "timeout": 5, "patience": 5, "backoff_ms": (10, 50)}
    settings.update(options)
    client = midge_mqtt5.Client("board", "127.0.0.1", PORT, **settings)
    await client.connect()
    say("connected", client.session_present)
    return client


async def attempt(name, awaitable):
    try:
        say(name, await awaitable)
    except MQTTError as error:
        say(name, type(error).__name__, error.code)


async def publish():
    client = await connected(clean=False, will=("w", b"gone", 1, False))
    for _ in range(2):
        await attempt("published", client.publish("topic", b"x", 1, expiry=60))
    await attempt("published", client.publish("other", b"y", 2, response_topic="r", correlation=b"c"))
    await client.disconnect()


async def window():
    client = await connected()
    await asyncio.gather(*[client.publish("t", str(i), 1) for i in range(5)])
    say("published")


async def subscribe():
    client = await connected()
    await attempt("subscribed", client.subscribe("a", 1))
    await attempt("subscribed", client.subscribe("b", 2))
    await client.unsubscribe("a")
    say("unsubscribed")
    async for topic, payload, retained in client:
        say("received", topic, payload.decode(), retained)


async def refused():
    await attempt("connected", connected())


async def errors():
    client = await connected(on_message=lambda *_: None, backoff_ms=(1, 1))
    error = None
    while True:
        while not client.error or client.error is error:
            await asyncio.sleep(0)
        error = client.error
        say(type(error).__name__, str(error), getattr(error, "code", 0))


# Against a real broker: requests of one's own, answered by one's own handler, and by nobody.
async def request():
    client = await connected()

    def double(payload):
        return str(2 * int(payload))

    await client.serve("double", double)
    for i in range(5):
        say("reply", (await client.request("double", str(i))).decode())
    replies = await asyncio.gather(*[client.request("double", str(i)) for i in range(10, 15)])
    say("replies", [reply.decode() for reply in replies])
    await attempt("nobody", client.request("nobody", b"", timeout=0.2))
    await client.disconnect()


# What the loop has got, with the properties that came with it.
async def properties():
    client = await connected()
    await client.publish("t", b"ready", 1)
    await asyncio.sleep(0.2)  # all of it is in the inbox before the first is taken
    async for topic, payload, _retained in client:
        found = client.properties
        say(topic, payload.decode(), [[number, str(found[number])] for number in sorted(found)])
        if payload == b"last":
            break
    client.on_message = lambda topic, *_: say("called", topic, str(client.properties.get(midge_mqtt5.RESPONSE_TOPIC)))
    await client.publish("t", b"on", 1)
    await asyncio.sleep(60)


async def respond():
    client = midge_mqtt5.Client("board", "127.0.0.1", PORT, keepalive=30)

    @client.responds("double")
    def double(payload):
        return str(2 * int(payload))

    @client.responds("slow/double")
    async def slowly(payload):
        await asyncio.sleep(0.01)
        return double(payload)

    await client.connect()
    say("connected")
    async for topic, payload, _retained in client:
        say("received", topic, payload.decode())


# Chosen at construction, a program's one import does.
async def version():
    from midge_client import Client

    client = Client("board", "127.0.0.1", PORT, keepalive=30, version=5)
    say(isinstance(client, midge_mqtt5.Client), isinstance(Client("board", "127.0.0.1", PORT), midge_mqtt5.Client))
    await client.connect()
    await client.publish("t", b"x", 1, expiry=9)
    await client.disconnect()


async def real_broker():
    client = await connected(clean=False)
    for qos in (0, 1, 2):
        await client.subscribe("in/%d" % qos, qos)
    for qos in (0, 1, 2):
        for i in range(6):
            await client.publish("in/%d" % qos, "%d" % i, qos)
        for i in range(6):
            async for topic, payload, _retained in client:
                say("received", topic, payload.decode())
                break
    await client.disconnect()


asyncio.run(globals()[sys.argv[1]]())
