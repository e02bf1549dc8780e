"""The link of the simulation: real sockets through it, to a scripted server.

Times are compared with what the link was told to add; a busy machine only adds to them.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

from midge.sim.link import MSS, Conditions, Link

DEADLINE_S = 20


class Server:
    """Takes connections and what comes over them; answers by *answer*."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.times: list[float] = []
        self.ended = asyncio.Event()
        self.came = asyncio.Condition()
        self.connections = 0
        self.writer: asyncio.StreamWriter | None = None
        self.error: Exception | None = None

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writer = writer
        try:
            while data := await reader.read(65536):
                async with self.came:
                    self.received.append(data)
                    self.times.append(time.monotonic())
                    self.came.notify_all()
        except ConnectionError as error:
            self.error = error
        self.ended.set()
        writer.close()

    async def has(self, count: int) -> bytes:
        async with self.came:
            await self.came.wait_for(lambda: sum(map(len, self.received)) >= count)
        return b"".join(self.received)


@asynccontextmanager
async def _linked(conditions: Conditions, sleeps: bool = False) -> AsyncIterator[tuple[Link, Server]]:
    server = Server()
    listener = await asyncio.start_server(server.take, "127.0.0.1", 0)
    link = Link(listener.sockets[0].getsockname()[1], conditions, seed=1, sleeps=sleeps)
    await link.start()
    try:
        yield link, server
    finally:
        link.close()
        listener.close()


def _run(use: Callable[[], Coroutine[object, object, None]]) -> None:
    asyncio.run(asyncio.wait_for(use(), DEADLINE_S))


async def _open(link: Link) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", link.port)


def test_first_bytes_are_late_by_the_handshake_and_the_way_and_later_ones_by_the_way() -> None:
    async def use() -> None:
        async with _linked(Conditions(delay_s=0.05)) as (link, server):
            start = time.monotonic()
            reader, writer = await _open(link)
            writer.write(b"a")
            await server.has(1)
            assert server.times[0] - start >= 0.149
            assert server.writer is not None
            sent_at = time.monotonic()
            server.writer.write(b"answer")
            assert await reader.readexactly(6) == b"answer"
            assert time.monotonic() - sent_at >= 0.049
            writer.close()
            await server.ended.wait()
            traffic = link.traffic
            assert (traffic.opened, traffic.bytes_up, traffic.bytes_down) == (1, 1, 6)
            assert (traffic.segments_up, traffic.segments_down, traffic.again) == (1, 1, 0)

    _run(use)


def test_all_arrives_in_order_over_a_link_that_loses_and_what_was_sent_again_is_counted() -> None:
    data = bytes(range(256)) * 100

    async def use() -> None:
        async with _linked(Conditions(0.001, 0.002, loss=0.3, rto_s=0.01)) as (link, server):
            _, writer = await _open(link)
            writer.write(data)
            assert await server.has(len(data)) == data
            writer.close()
            await server.ended.wait()
            assert link.traffic.segments_up >= -(-len(data) // MSS)
            assert link.traffic.again > 0

    _run(use)


def test_outage_holds_up_what_is_sent_in_it_and_connections_that_are_made_in_it() -> None:
    async def use() -> None:
        async with _linked(Conditions(rto_s=0.05)) as (link, server):
            _, writer = await _open(link)
            writer.write(b"a")
            await server.has(1)
            link.is_down = True
            writer.write(b"b")
            _, other = await _open(link)
            other.write(b"c")
            await asyncio.sleep(0.2)
            assert (server.received, server.connections) == ([b"a"], 1)
            link.is_down = False
            assert sorted(await server.has(3)) == sorted(b"abc")
            assert server.connections == 2
            for one in (writer, other):
                one.close()

    _run(use)


def test_board_that_sleeps_in_an_outage_never_sends_it_again() -> None:
    async def use() -> None:
        async with _linked(Conditions(rto_s=0.03), sleeps=True) as (link, server):
            _, writer = await _open(link)
            writer.write(b"a")
            await server.has(1)
            link.is_down = True
            writer.write(b"b")
            await asyncio.sleep(0.02)
            writer.close()
            await asyncio.sleep(0.1)
            link.is_down = False
            await asyncio.sleep(0.15)
            assert server.received == [b"a"]
            assert not server.ended.is_set()  # the broker heard nothing
            _, writer = await _open(link)  # the board wakes: it knows nothing of the old connection
            writer.write(b"c")
            assert await server.has(2) == b"ac"
            await server.ended.wait()
            assert isinstance(server.error, ConnectionResetError)
            writer.close()

    _run(use)


def test_power_cut_leaves_the_brokers_end_until_the_board_is_back() -> None:
    async def use() -> None:
        async with _linked(Conditions()) as (link, server):
            _, writer = await _open(link)
            writer.write(b"a")
            await server.has(1)
            link.power_cut()
            await asyncio.sleep(0.05)
            assert not server.ended.is_set()
            _, writer = await _open(link)
            writer.write(b"b")
            await server.has(2)
            await server.ended.wait()
            assert isinstance(server.error, ConnectionResetError)
            writer.close()

    _run(use)


def test_small_writes_wait_for_an_acknowledgement_with_nagle() -> None:
    async def use() -> None:
        counts = []
        for nagle in (False, True):
            async with _linked(Conditions(delay_s=0.05, nagle=nagle)) as (link, server):
                _, writer = await _open(link)
                for _ in range(5):
                    writer.write(b"x")
                    await asyncio.sleep(0.005)
                await server.has(5)
                writer.close()
                await server.ended.wait()
                counts.append(link.traffic.segments_up)
        # The first goes alone, the rest together when it has been acknowledged.
        assert counts[1] < counts[0] <= 5

    _run(use)


def test_nobody_listening_is_a_reset() -> None:
    async def use() -> None:
        link = Link(1, Conditions())
        await link.start()
        try:
            reader, writer = await _open(link)
            writer.write(b"a")
            try:
                assert await reader.read() == b""
            except ConnectionResetError:
                pass
            assert not link.connections
        finally:
            link.close()

    _run(use)
