# The broker in a program that has streams of its own on the same event loop: a server that answers in capitals, a
# client of it, waits that are cut short. Prints what came of them. Runs from the project's root.
import asyncio
import os
import sys

sys.path.insert(0, os.getenv("MIDGE_DEVICE") or "device")

import midge_broker

broker = midge_broker.Broker(0, "127.0.0.1")
ports = iter(range(20000 + os.urandom(1)[0] * 40, 60000))
served = []


async def answer(reader, writer):
    while True:
        line = await reader.readline()
        if not line:
            break
        served.append(line)
        writer.write(line.upper())
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def serve():
    while True:
        port = next(ports)
        try:
            await asyncio.start_server(answer, "127.0.0.1", port)
            return port
        except OSError:
            pass


async def ask(port, number):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    late = 0
    for turn in range(20):
        try:
            await asyncio.wait_for(reader.readline(), 0.01)  # nothing comes: the wait is cancelled
        except asyncio.TimeoutError:
            late += 1
        line = b"question %d of %d\n" % (turn, number)
        writer.write(line)
        await writer.drain()
        if await reader.readline() != line.upper():
            return "wrong answer"
    writer.close()
    await writer.wait_closed()
    return late


async def main():
    port = await serve()
    running = asyncio.create_task(broker.run())
    await asyncio.sleep(0)
    print("listening on mqtt://%s:%d" % (broker.bind, broker.port))
    started = asyncio.Event()
    broker.subscribe("start", lambda topic, payload, retained: started.set())
    await started.wait()
    results = await asyncio.gather(*[ask(port, number) for number in range(4)])
    print("waits cut short:", results, "lines served:", len(served))
    broker.publish("done", b"%d" % len(served))
    await running


asyncio.run(main())
