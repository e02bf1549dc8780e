"""Large payloads, TLS, links and umqtt.simple's face on the board: SCENARIO PORT [...]. The server is the test's.

Runs under MicroPython and CPython; prints a JSON list for each thing that happened.
"""

import asyncio
import json
import sys

sys.path.insert(0, __file__.rsplit("/", 4)[0] + "/device")

from midge_client import Client, MQTTError, MemoryOutbox, wake

MemoryOutbox._last_id = 0  # identifiers begin at random, and the tests name them

PORT = int(sys.argv[2])
SETTINGS = {"keepalive": 30, "timeout": 5, "patience": 5, "backoff_ms": (10, 50)}


def say(*what):
    print(json.dumps(what))


# A payload that is never in memory: byte i is i * 7 & 0xFF.
class Endless:
    def __init__(self, size):
        self.size, self.at = size, 0

    def readinto(self, buffer):
        n = min(len(buffer), self.size - self.at)
        for i in range(n):
            buffer[i] = (self.at + i) * 7 & 0xFF
        self.at += n
        return n

    def seek(self, offset, whence=0):
        self.at = self.at + offset if whence else offset
        return self.at


class Checker:
    def __init__(self):
        self.good = True

    def __call__(self, topic, chunk, offset, total):
        for i in range(0, len(chunk), 97):
            if chunk[i] != (offset + i) * 7 & 0xFF:
                self.good = False
        if offset == 0 or offset + len(chunk) == total:
            say("chunk", topic, offset == 0, offset + len(chunk) == total, total, self.good)


class Counting(Client):
    writes = written = 0

    def _flush(self):
        before = len(self._tx)
        super()._flush()
        self.writes += 1
        self.written += before - len(self._tx)


async def large_client(**options):
    import midge_large

    client = midge_large.Client("board", "127.0.0.1", PORT, on_chunk=Checker(), clean=False, **SETTINGS, **options)
    await client.connect()
    return client


# Its own large messages, through the broker: SIZE QOS.
async def large_round():
    size, qos = int(sys.argv[3]), int(sys.argv[4])
    client = await large_client()
    await client.subscribe("big", qos)
    sending = asyncio.create_task(client.publish_from("big", Endless(size), size, qos))
    small = asyncio.create_task(client.publish("big", b"small", qos))
    await asyncio.gather(sending, small)
    async for _topic, payload, _retained in client:
        say("received", payload.decode())
        break
    while client.received < 2:
        await asyncio.sleep(0.01)
    say("left", len(client.outbox.messages))
    await client.disconnect()


async def large_resend():
    client = await large_client()
    await client.publish_from("big", Endless(3000), 3000, 1)
    say("published")
    await client.disconnect()


async def large_receive():
    client = await large_client()
    say("connected")
    async for topic, payload, _retained in client:
        say("received", topic, payload.decode())


def context():
    import ssl

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if sys.argv[3] != "none":
        tls.verify_mode = ssl.CERT_REQUIRED
        if sys.implementation.name == "micropython":
            with open(sys.argv[3], "rb") as file:
                tls.load_verify_locations(cadata=file.read())
        else:
            tls.load_verify_locations(sys.argv[3])
    if len(sys.argv) > 5:
        tls.load_cert_chain(sys.argv[4], sys.argv[5])
    return tls


# PORT CA [CERTIFICATE KEY]
async def tls():
    client = Client("board", "localhost", PORT, tls=context(), user="u", password="p", **SETTINGS)
    try:
        await client.connect()
    except (OSError, MQTTError) as error:
        say("refused", type(error).__name__)
        return
    await client.subscribe("in", 1)
    for i in range(20):
        await client.publish("in", str(i) * 100, 1)
    for i in range(20):
        async for _topic, payload, _retained in client:
            if payload.decode() != str(i) * 100:
                say("wrong", i)
            break
    await client.disconnect()
    say("came round")


def tls_wake():
    got = []
    for _ in range(2):
        stats = wake("sleeper", "localhost", PORT, tls=context(), publish=[("in", b"x" * 500, 1)],
                     subscribe=[("in", 1)], on_message=lambda *message: got.append(message))
        say(str(stats.error) if stats.error else None, stats.delivered, len(got))


# The network comes and goes: the test says so over the first connection.
class Link:
    def __init__(self):
        self.up = False
        self.connects = 0

    def isconnected(self):
        return self.up

    async def connect(self):
        self.connects += 1
        await asyncio.sleep(0.01)
        self.up = True


async def link():
    network = Link()
    client = Client("board", "127.0.0.1", PORT, link=network, **SETTINGS)
    await client.connect()
    say("connected", network.connects)
    network.up = False
    while client.connected:
        await asyncio.sleep(0.01)
    say("lost", str(client.error))
    await client.publish("t", b"back", 1)
    say("published", network.connects)
    await client.disconnect()


async def dead_link():
    class Dead(Link):
        async def connect(self):
            await asyncio.sleep(100)

    client = Client("board", "127.0.0.1", PORT, link=Dead(), patience=0.2)
    try:
        await client.connect()
    except MQTTError as error:
        say(type(error).__name__)


# COUNT messages, each a while after the last, with linger and without: how many writes.
async def linger():
    for linger_ms in (0, 50):
        client = Counting("board", "127.0.0.1", PORT, linger_ms=linger_ms, **SETTINGS)
        await client.connect()
        await client.subscribe("in", 1)
        before = client.writes, client.written

        async def read(client=client):
            n = 0
            async for _ in client:
                n += 1
                if n == 20:
                    return

        reading = asyncio.create_task(read())
        tasks = []
        for i in range(20):
            tasks.append(asyncio.create_task(client.publish("in", "%04d" % i, 1)))
            await asyncio.sleep(0.004)
        await asyncio.gather(*tasks)
        await reading
        await asyncio.sleep(0.1)
        say(client.writes - before[0], client.written - before[1])
        await client.disconnect()


async def store():
    client = Client("board", "127.0.0.1", PORT, clean=False, **SETTINGS)
    for i in range(20):
        client.store("t", str(i), 1 + i % 2)  # before there is any connection
    await client.connect()
    while client.outbox.messages:
        await asyncio.sleep(0.01)
    say("stored and sent")
    await client.disconnect()


async def callback():
    got = []
    client = Client("board", "127.0.0.1", PORT, on_message=lambda *message: got.append(message), **SETTINGS)
    await client.connect()
    await client.subscribe("t/#", 2)
    for qos in (0, 1, 2):
        await client.publish("t/%d" % qos, b"x", qos)
    while len(got) < 3:
        await asyncio.sleep(0.01)
    say([[topic, payload.decode(), retained] for topic, payload, retained in got])
    await client.disconnect()


async def callback_error():
    def on_message(topic, payload, _retained):
        payload = payload.decode()
        say(topic, payload)
        if payload == "bad" and not errors:
            raise ValueError("not a number")

    errors = []
    client = Client("board", "127.0.0.1", PORT, clean=False, on_message=on_message, **SETTINGS)
    await client.connect()
    while client.connected:
        await asyncio.sleep(0.01)
    errors.append(client.error)
    say(str(client.error))
    while not client.connected:
        await asyncio.sleep(0.01)
    await client.publish("t", b"back", 1)
    await client.disconnect()


# Two clients, a broker, cut waits and a task that never sleeps in one program; who comes first is sys.argv[3].
async def company():
    import midge_broker

    async def spin():
        while not done:
            await asyncio.sleep(0)

    async def start_broker():
        tasks.append(asyncio.create_task(broker.run()))
        await asyncio.sleep(0)

    done = []
    tasks = []
    broker = midge_broker.Broker(0, "127.0.0.1", log=lambda *_: None)
    if sys.argv[3] == "broker":
        await start_broker()
    outer = Client("outer", "127.0.0.1", PORT, **SETTINGS)
    await outer.connect()
    if sys.argv[3] == "client":
        await start_broker()
    inner = Client("inner", "127.0.0.1", broker.port, **SETTINGS)
    for _ in range(2):
        await inner.connect()
        for client in (inner, outer):
            await client.subscribe("in", 2)
            try:
                await asyncio.wait_for(client.__anext__(), 0.01)
            except asyncio.TimeoutError:
                say("nothing yet")
        spinning = asyncio.create_task(spin())
        for client in (inner, outer):
            for qos in (0, 1, 2):
                await client.publish("in", "%d" % qos, qos)
            for _ in range(3):
                _topic, payload, _retained = await client.__anext__()
                say(client is inner, payload.decode())
        done.append(1)
        await spinning
        done.clear()
        await inner.disconnect()
    await outer.disconnect()
    tasks[0].cancel()


def umqtt_lost_puback():
    from midge_umqtt import MQTTClient

    client = MQTTClient(b"board", "127.0.0.1", PORT)
    client.timeout = 0.3
    client.connect()
    for _ in range(2):
        try:
            client.publish(b"t", b"x", qos=1)
            say("published")
        except OSError as error:
            say("OSError", error.args[0])
    client.disconnect()


def umqtt_half_open():
    from midge_umqtt import MQTTClient

    client = MQTTClient(b"board", "127.0.0.1", PORT, keepalive=1)
    client.set_callback(lambda topic, payload: say(topic.decode(), payload.decode()))
    client.connect()
    try:
        while True:
            client.wait_msg()
            say("waited")
    except OSError as error:
        say("OSError", error.args[0])


def umqtt_refused():
    from midge_umqtt import MQTTClient, MQTTException

    client = MQTTClient(b"board", "127.0.0.1", PORT, user=b"u", password=b"p")
    try:
        client.connect()
    except MQTTException as error:
        say("MQTTException", error.args[0])


scenario = globals()[sys.argv[1]]
if sys.argv[1] in ("tls_wake", "umqtt_lost_puback", "umqtt_half_open", "umqtt_refused"):
    scenario()
else:
    asyncio.run(scenario())
