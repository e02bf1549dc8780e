"""What a board's program does with midge_client, one function for each scenario; the server is the test's.

Runs under MicroPython and CPython: SCENARIO PORT [ARGUMENT]. Prints one JSON list for each thing that happened.
"""

import asyncio
import json
import sys

sys.path.insert(0, __file__.rsplit("/", 4)[0] + "/device")

import midge_client
from midge_client import Client, MQTTError, MemoryOutbox

MemoryOutbox._last_id = 0  # identifiers begin at random, and the tests name them

PORT = int(sys.argv[2])
MICROPYTHON = sys.implementation.name == "micropython"


def say(*what):
    print(json.dumps(what))


def make(**options):
    settings = {"keepalive": 30, "timeout": 10, "patience": 30, "backoff_ms": (10, 50)}
    settings.update(options)
    return Client("board", "127.0.0.1", PORT, **settings)


async def connected(**options):
    client = make(**options)
    await client.connect()
    say("connected", client.session_present)
    return client


async def publish_and_say(client, name, qos, **options):
    try:
        await client.publish("t", name, qos=qos, **options)
        say("published", name)
    except MQTTError as error:
        say("failed", name, type(error).__name__)


async def read(client, count=1000):
    async for topic, payload, retained in client:
        say("received", topic, payload.decode(), retained)
        count -= 1
        if not count:
            return
    say("ended")


# The test says "go on" by a message on topic "go", so that no scenario needs to sleep and hope.
async def wait_for_go(client):
    async for topic, _payload, _retained in client:
        if topic == "go":
            return


async def connect():
    try:
        await connected(timeout=0.5)
    except (MQTTError, OSError) as error:
        say(type(error).__name__, str(error), getattr(error, "code", 0))


async def publish_each_qos():
    client = await connected()
    for qos in (0, 1, 2):
        await publish_and_say(client, "q%d" % qos, qos)
    await client.disconnect()
    say("disconnected")


async def publish_three():
    client = await connected(clean=False)
    await asyncio.gather(*[publish_and_say(client, name, qos) for name, qos in (("a", 1), ("b", 2), ("c", 1))])
    await client.disconnect()


async def subscribe():
    client = await connected(clean=len(sys.argv) < 4)
    say("granted", await client.subscribe("a/+", 1))
    try:
        await client.subscribe("secret", 1)
    except MQTTError as error:
        say("refused", error.code)
    await client.subscribe("b/#", 2)
    await client.unsubscribe("a/+")
    say("unsubscribed")
    await read(client)


async def receive():
    await read(await connected(clean=False))


async def receive_slowly():
    client = await connected(clean=False, inbox=4)
    await wait_for_go(client)
    say("going")
    await read(client)


async def not_reading():
    client = await connected(inbox=4)
    await publish_and_say(client, "ready", 1)
    await asyncio.sleep(0.6)
    await read(client, 2000)


async def echo():
    client = await connected(inbox=2)
    async for _topic, payload, _retained in client:
        await publish_and_say(client, "re:" + payload.decode(), 1)


async def stay():
    await connected(keepalive=2)
    await asyncio.sleep(60)


async def busy():
    client = await connected(keepalive=2, timeout=10)
    for i in range(12):
        await publish_and_say(client, str(i), 1)
        await asyncio.sleep(0.2)
    await client.disconnect()


async def chatter():
    client = await connected(keepalive=1)
    while True:
        await client.publish("t", b"x")
        await asyncio.sleep(0.1)


async def lost_puback():
    client = await connected(timeout=1.5, keepalive=5, patience=30)
    await publish_and_say(client, "a", 1)
    await client.disconnect()


async def identifiers():
    client = await connected()
    client.outbox._last_id = 0xFFFD
    tasks = [asyncio.create_task(publish_and_say(client, name, 1)) for name in ("a", "b")]
    await wait_for_go(client)
    await publish_and_say(client, "c", 1)
    client.outbox._last_id = 0xFFFD
    tasks += [asyncio.create_task(publish_and_say(client, name, 1)) for name in ("d", "e")]
    await asyncio.gather(*tasks)


# ticks_ms comes round to 0 every 12.4 days (2**30 ms); here a second after the start.
async def ticks_wrap():
    real = midge_client.ticks_ms
    shift = 0x40000000 - 1000 - real()
    midge_client.ticks_ms = lambda: (real() + shift) & 0x3FFFFFFF
    await busy()


async def cancel():
    client = await connected(window=2)
    sent = asyncio.create_task(client.publish("t", b"sent", qos=2))
    await wait_for_go(client)
    sent.cancel()
    try:
        await sent
    except asyncio.CancelledError:
        say("cancelled", len(client.outbox.messages))
    await publish_and_say(client, "next", 1)
    await wait_for_go(client)
    say("left", len(client.outbox.messages))


async def cancel_unsent():
    client = await connected(backoff_ms=(200, 200))
    await wait_for_go(client)
    while client.connected:
        await asyncio.sleep(0.01)
    unsent = asyncio.create_task(client.publish("t", b"unsent", qos=1))
    kept = asyncio.create_task(publish_and_say(client, "kept", 1))
    await asyncio.sleep(0.02)
    unsent.cancel()
    try:
        await unsent
    except asyncio.CancelledError:
        say("cancelled", len(client.outbox.messages))
    await kept


async def impatient():
    client = await connected(patience=0.3, timeout=5)
    await asyncio.gather(publish_and_say(client, "a", 1), publish_and_say(client, "b", 2))
    say("in flight", len(client.outbox.messages))
    await wait_for_go(client)
    say("in flight", len(client.outbox.messages))


async def window():
    client = await connected(window=3)
    await asyncio.gather(*[publish_and_say(client, str(i), 1) for i in range(8)])
    await client.disconnect()


async def disconnect_while_waiting():
    client = await connected()
    publishing = asyncio.create_task(publish_and_say(client, "a", 1))
    reading = asyncio.create_task(read(client))
    await asyncio.sleep(0.05)
    await client.disconnect()
    await asyncio.gather(publishing, reading)
    try:
        await client.publish("t", b"x")
    except MQTTError:
        say("refused after disconnect")


# At each of the turns in which a lost connection is closed.
async def disconnect_while_closing():
    for turns in range(8):
        client = await connected(backoff_ms=(20_000, 20_000))
        await client.publish("t", b"up")
        while client.connected:
            await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.wait_for(client.disconnect(), 10)
        say("disconnected", client.connected)


async def without_awaiting():
    client = await connected()
    results = [client.publish("t", str(i), qos=1) for i in range(3)]
    await wait_for_go(client)  # acknowledged by now
    await client.publish("t", b"3", qos=1)
    for result in results:
        await result
    await asyncio.wait_for(client.publish("t", b"4", qos=1), 2)
    await asyncio.gather(client.publish("t", b"5"), client.publish("t", b"6", qos=1))
    say("all published")
    await client.disconnect()


async def reconnect():
    client = await connected()
    while client.connected:
        await asyncio.sleep(0.01)
    say("lost", str(client.error))
    await publish_and_say(client, "back", 0)
    await publish_and_say(client, "back", 1)
    await client.disconnect()


async def fail():
    client = await connected(max_packet=64)
    await publish_and_say(client, "x" * 200, 0)  # what we send may be larger
    while client.connected:
        await asyncio.sleep(0.01)
    say("lost", str(client.error))


# A stream of our own, as for TLS or a serial cable: counts the writes.
async def count_writes():
    writes = []

    if MICROPYTHON:
        import io
        import select

        class Counting(io.IOBase):
            def __init__(self, stream):
                self.stream = stream
                self.poller = select.poll()
                self.poller.register(stream, 5)

            def readinto(self, buffer):
                return self.stream.readinto(buffer)

            def write(self, buffer):
                writes.append(bytes(buffer))
                return self.stream.write(buffer)

            def ioctl(self, request, argument):
                if request == 3:  # MP_STREAM_POLL
                    for _, events in self.poller.ipoll(0):
                        return events & argument
                return 0

            def close(self):
                self.stream.close()
    else:
        class Counting:
            def __init__(self, stream):
                self.stream = stream

            def __getattr__(self, name):
                return getattr(self.stream, name)

            def write(self, buffer):
                writes.append(bytes(buffer))
                return self.stream.write(buffer)

    def dial(host, port):
        return Counting(midge_client.dial(host, port))

    client = await connected(dial=dial)
    await asyncio.gather(*[publish_and_say(client, str(i), i % 3) for i in range(6)])
    await client.disconnect()
    say("writes", [len(data) for data in writes])


# What a program without the host's help would see against a real broker: the argument says what to do.
async def real_broker():
    client = Client("real", "127.0.0.1", PORT, keepalive=5, clean=False, will=("will", b"gone", 1, False),
                    backoff_ms=(20, 100))
    await client.connect()
    say("connected", client.session_present)
    for qos in (0, 1, 2):
        await client.subscribe("in/%d" % qos, qos)
    say("subscribed")
    for qos in (0, 1, 2):
        for i in range(20):
            await client.publish("in/%d" % qos, "%d" % i, qos=qos)
        for i in range(20):
            async for topic, payload, _retained in client:
                say("received", topic, payload.decode())
                break
    async for topic, payload, _retained in client:
        say("received", topic, payload.decode(), client.session_present)
        if payload == b"stop":
            break
    await client.disconnect()
    say("disconnected")


try:
    asyncio.run(globals()[sys.argv[1]]())
except KeyboardInterrupt:
    pass
