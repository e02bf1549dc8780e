"""Our own TCP transports: what arrives, what leaves, who is slow, how it ends."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from midge.core.broker import Broker
from midge.core.limits import Limits
from midge.listeners import sockets, tcp
from midge.listeners.sockets import SocketListener, SocketTransport
from midge.listeners.turns import Turns

pytestmark = pytest.mark.skipif(not sockets.IS_AVAILABLE, reason="this system has no epoll")

_LONG_S = 20.0


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run


class Recorder(asyncio.Protocol):
    """A protocol that notes what it is told."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.data = b""
        self.is_paused = False
        self.pauses = 0
        self.ends: list[Exception | None] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, SocketTransport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data

    def pause_writing(self) -> None:
        self.is_paused = True
        self.pauses += 1

    def resume_writing(self) -> None:
        self.is_paused = False

    def connection_lost(self, error: Exception | None) -> None:
        self.ends.append(error)


class Place:
    """A listener, and the protocols of its connections in the order in which they came."""

    listener: SocketListener

    def __init__(self, kind: type[Recorder] = Recorder) -> None:
        self.protocols: list[Recorder] = []
        self.turns_ended = 0
        self._kind = kind

    async def __aenter__(self) -> Place:
        turns = Turns(Broker(Limits()), lambda connection: None, self._turn_ended)
        turns.start(asyncio.get_running_loop())
        self.listener = await sockets.listen("127.0.0.1", 0, self._make, turns)
        return self

    async def __aexit__(self, *error: object) -> None:
        self.listener.close()
        for protocol in self.protocols:
            protocol.transport.abort()
        await asyncio.sleep(0)
        self.listener.stop()

    def _turn_ended(self) -> None:
        self.turns_ended += 1

    def _make(self, address: str) -> asyncio.Protocol:
        self.protocols.append(self._kind(address))
        return self.protocols[-1]

    def dial(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.listener.port), _LONG_S)

    async def meet(self) -> tuple[socket.socket, Recorder]:
        """A new connection, both ends."""
        count = len(self.protocols)
        client = self.dial()
        await until(lambda: len(self.protocols) > count)
        return client, self.protocols[-1]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(_LONG_S):
        while not condition():
            await asyncio.sleep(0.001)


@in_loop
async def test_bytes_go_both_ways_and_the_address_is_known() -> None:
    async with Place() as place:
        client, protocol = await place.meet()
        assert protocol.address == "{}:{}".format(*client.getsockname())
        assert protocol.transport.get_extra_info("peername") == client.getsockname()
        client.sendall(b"ping")
        await until(lambda: protocol.data == b"ping")
        protocol.transport.write(b"pong")
        assert client.recv(10) == b"pong"
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) is not None
        with socket.socket(fileno=os.dup(protocol.transport.fd)) as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        client.close()


@in_loop
async def test_what_is_ready_together_is_one_turn() -> None:
    async with Place() as place:
        clients = [(await place.meet())[0] for _ in range(5)]
        before = place.turns_ended
        for client in clients:
            client.sendall(b"x")
        await until(lambda: all(protocol.data for protocol in place.protocols))
        assert place.turns_ended == before + 1
        for client in clients:
            client.close()


@in_loop
async def test_many_that_come_at_once_are_accepted_in_a_few_turns() -> None:
    async with Place() as place:
        clients = [place.dial() for _ in range(150)]
        await until(lambda: len(place.protocols) == 150)
        assert place.turns_ended <= 3  # 100 are accepted in one
        for client in clients:
            client.close()
        await until(lambda: all(protocol.ends == [None] for protocol in place.protocols))


@in_loop
async def test_a_slow_reader_pauses_its_writer_and_gets_every_byte_in_order() -> None:
    async with Place() as place:
        client, protocol = await place.meet()
        protocol.transport.set_write_buffer_limits(high=1000)
        sent = b""
        while not protocol.is_paused:
            piece = struct.pack("!Q", len(sent)) * 5000
            protocol.transport.write(piece)
            sent += piece
        protocol.transport.write(b"the end")  # a paused writer may still write
        assert protocol.transport.get_write_buffer_size() > 1000
        received = b""
        client.settimeout(0)
        while len(received) < len(sent) + 7:
            try:
                received += client.recv(1 << 20)
            except BlockingIOError:
                await asyncio.sleep(0)
        assert received == sent + b"the end"
        assert (protocol.pauses, protocol.is_paused) == (1, False)
        assert protocol.transport.get_write_buffer_size() == 0
        client.close()


@in_loop
async def test_who_is_not_read_from_is_read_from_later() -> None:
    async with Place() as place:
        client, protocol = await place.meet()
        protocol.transport.pause_reading()
        client.sendall(b"later")
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert protocol.data == b""
        protocol.transport.resume_reading()
        await until(lambda: protocol.data == b"later")
        client.close()


@in_loop
async def test_the_reset_of_who_is_not_read_from_wakes_nobody_until_it_is_read_from() -> None:
    async with Place() as place:
        client, protocol = await place.meet()
        protocol.transport.pause_reading()
        before = place.turns_ended
        reset(client)
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert place.turns_ended - before <= 1
        assert protocol.ends == []
        protocol.transport.resume_reading()
        await until(lambda: protocol.ends)
        assert isinstance(protocol.ends[0], ConnectionResetError)


@in_loop
async def test_the_reset_of_a_slow_reader_ends_it_though_it_is_not_read_from() -> None:
    async with Place() as place:
        client, protocol = await place.meet()
        protocol.transport.pause_reading()
        while not protocol.transport.get_write_buffer_size():
            protocol.transport.write(bytes(100_000))
        reset(client)
        await until(lambda: protocol.ends)
        assert isinstance(protocol.ends[0], OSError)


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@in_loop
async def test_closing_writes_what_is_pending_and_tells_once_and_not_at_once() -> None:
    async with Place() as place:
        client, protocol = await place.meet()
        written = 0
        while not protocol.transport.get_write_buffer_size():
            protocol.transport.write(bytes(100_000))
            written += 100_000
        protocol.transport.close()
        protocol.transport.close()
        protocol.transport.write(b"too late")
        assert protocol.transport.is_closing()
        assert protocol.ends == []
        client.sendall(b"not read any more")
        client.settimeout(0)
        received = 0
        with pytest.raises(ConnectionResetError):  # what it had sent was not read
            while received <= written:
                try:
                    received += len(client.recv(1 << 20))
                except BlockingIOError:
                    await asyncio.sleep(0)
                if received == written:
                    await until(lambda: protocol.ends)
        assert received == written
        assert protocol.ends == [None]


@in_loop
async def test_an_idle_connection_that_is_closed_or_aborted_is_told_soon() -> None:
    async with Place() as place:
        for end in (SocketTransport.close, SocketTransport.abort):
            client, protocol = await place.meet()
            end(protocol.transport)
            assert protocol.ends == []  # not from within its own call
            await until(lambda protocol=protocol: protocol.ends == [None])
            assert client.recv(10) == b""
            end(protocol.transport)
            await asyncio.sleep(0)
            assert protocol.ends == [None]
            client.close()


@in_loop
async def test_the_end_of_the_stream_and_a_reset_end_the_connection() -> None:
    async with Place() as place:
        client, protocol = await place.meet()
        client.sendall(b"bye")
        client.close()
        await until(lambda: protocol.ends == [None])
        assert protocol.data == b"bye"
        client, protocol = await place.meet()
        reset(client)
        await until(lambda: protocol.ends)
        assert isinstance(protocol.ends[0], ConnectionResetError)


class Closer(Recorder):
    """Ends all others as soon as it is sent something."""

    others: list[Recorder]

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        for other in self.others:
            if other is not self:
                other.transport.abort()


@in_loop
async def test_whom_another_has_ended_in_the_same_turn_is_not_read_from() -> None:
    async with Place(Closer) as place:
        Closer.others = place.protocols
        clients = [(await place.meet())[0] for _ in range(3)]
        for client in clients:
            client.sendall(b"x")
        newcomer = place.dial()  # is given a file descriptor that has just become free
        await until(lambda: len(place.protocols) == 4 and sum(len(one.ends) for one in place.protocols) >= 2)
        assert [one.data for one in place.protocols].count(b"x") == 1
        assert [one.ends for one in place.protocols].count([None]) == 2
        assert place.protocols[3].data == b""
        for client in (*clients, newcomer):
            client.close()


class Faulty(Recorder):
    is_faulty_at_once = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.is_faulty_at_once:
            raise RuntimeError("a bug")

    def data_received(self, data: bytes) -> None:
        if data == b"bug":
            raise RuntimeError("a bug")
        super().data_received(data)


@in_loop
async def test_a_bug_at_the_beginning_ends_that_connection_and_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context["exception"]))
    monkeypatch.setattr(Faulty, "is_faulty_at_once", True)
    async with Place(Faulty) as place:
        client = place.dial()
        await until(lambda: place.protocols and place.protocols[0].ends)
        assert client.recv(10) == b"" and [str(error) for error in reported] == ["a bug"]
        client.close()


@in_loop
async def test_a_bug_ends_its_own_connection_and_is_reported() -> None:
    reported: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context["exception"]))
    async with Place(Faulty) as place:
        (first, one), (second, other) = await place.meet(), await place.meet()
        first.sendall(b"bug")
        second.sendall(b"fine")
        await until(lambda: one.ends and other.data)
        assert isinstance(one.ends[0], RuntimeError)
        assert (other.data, other.ends) == (b"fine", [])
        assert [str(error) for error in reported] == ["a bug"]
        first.close()
        second.close()


@in_loop
async def test_without_file_descriptors_it_accepts_again_once_there_are_some(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sockets, "_ACCEPT_AGAIN_S", 0.05)
    failures = [OSError(errno.EMFILE, "Too many open files")] * 3
    accept = tcp.ListeningSocket._accept

    def failing(self: tcp.ListeningSocket) -> tuple[int, object]:
        if failures:
            raise failures.pop()
        return accept(self)

    monkeypatch.setattr(tcp.ListeningSocket, "_accept", failing, raising=False)
    async with Place() as place:
        client, _ = await place.meet()
        client.close()
    told = [record.getMessage() for record in caplog.records]
    assert told == ["can't accept connections: Too many open files; trying again in 0.05 s"] * 3


@in_loop
async def test_all_who_wait_are_accepted_in_one_turn() -> None:
    async with Place() as place:
        clients = [socket.create_connection(("127.0.0.1", place.listener.port), _LONG_S) for _ in range(30)]
        await until(lambda: place.protocols)
        assert len(place.protocols) == 30 and place.turns_ended <= 1
        for client in clients:
            client.close()


@in_loop
async def test_who_sends_much_is_read_from_in_larger_pieces() -> None:
    class Counting(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.sizes: list[int] = []

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.sizes.append(len(data))

    async with Place(Counting) as place:
        client, protocol = await place.meet()
        assert isinstance(protocol, Counting)
        sent = bytes(range(250)) * 200
        client.sendall(sent)
        await until(lambda: len(protocol.data) == len(sent))
        assert protocol.data == sent and protocol.sizes[0] < 1000 < protocol.sizes[1]
        client.close()


@in_loop
async def test_the_listener_leaves_no_connection_open() -> None:
    place = await Place().__aenter__()
    client, protocol = await place.meet()
    place.listener.close()
    place.listener.stop()
    assert protocol.ends == [None] and client.recv(10) == b""
    client.close()


class OnAnyTransport(Recorder):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"welcome")


@in_loop
async def test_where_there_is_no_epoll_the_event_loop_does_it() -> None:
    protocol = OnAnyTransport("")
    server, port = await tcp.listen("127.0.0.1", 0, lambda: protocol)
    client = socket.create_connection(("127.0.0.1", port), _LONG_S)
    client.sendall(b"hello")
    await until(lambda: protocol.data == b"hello")
    assert client.recv(10) == b"welcome"
    client.close()
    await until(lambda: protocol.ends == [None])
    server.close()
    await server.wait_closed()


@in_loop
async def test_a_port_in_use_is_refused_and_a_closed_listener_accepts_nobody() -> None:
    async with Place() as place:
        port = place.listener.port
        with pytest.raises(OSError, match="Address already in use"):
            await tcp.open_sockets("127.0.0.1", port)
        client, protocol = await place.meet()
        place.listener.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), _LONG_S)
        client.sendall(b"who is there stays")
        await until(lambda: protocol.data == b"who is there stays")
        client.close()
