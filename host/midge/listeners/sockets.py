"""Plain TCP where the system has epoll: accepted, read and written by us, all connections that are ready in one go.
Knows sockets and flow control, not what is said.

The event loop sees one file, our epoll. Its own transports do the same for us wherever bytes are more than bytes (TLS,
WebSocket) or there is no epoll; but what they are made of costs more than everything else about a short connection,
and libuv accepts one connection in a turn of its loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Any, Final, cast

from midge.listeners.tcp import ListeningSocket, open_sockets
from midge.listeners.turns import Turns

log = logging.getLogger("midge.connection")

IS_AVAILABLE = hasattr(select, "epoll")
# EPOLLIN, EPOLLOUT: by number, since other systems' modules lack the names.
_IN: Final = 0x001
_OUT: Final = 0x004

# bytes that are read at once; what is left is read in the next turn, so that nobody waits for one who sends much. Below
# what malloc would ask the system for each time (128 KiB). Most connections never send more at once than the smaller
# one, for which Python has a place at hand (512 bytes with what each object has): the first chunk that fills it makes
# it the larger one.
_READ_FIRST: Final = 448
_READ_MAX: Final = 100_000
# Connections accepted in one turn: a fleet that comes all at once must not hold up who is there. asyncio: the backlog.
_ACCEPT_MAX: Final = 100
# How many wait to be accepted: Linux tells it of a listening socket in the place of the segments that weren't
# acknowledged (tcp_get_info in net/ipv4/tcp.c). To accept until there are none costs more, an exception with its text.
_TCP_INFO: Final = 11
_WAITING: Final = struct.Struct("=24xI")
# s without accepting once the system has no more file descriptors; asyncio's own.
_ACCEPT_AGAIN_S = 1.0
# bytes of output that wait when no other limit is set; asyncio's own.
_HIGH_WATER: Final = 64 * 1024

# What a transport has pending while it has nothing: never changed, shared by all.
_NOTHING: Final = bytearray()

# A connection is a file descriptor and no more: making a `socket.socket` of it, and closing that, costs as much as
# all that is decided about a short connection.
_read: Final = os.read
_write: Final = os.write
_close: Final = os.close
_set_blocking: Final = os.set_blocking


class SocketTransport:
    """One connection: has the methods of `asyncio.Transport` that are used here, and is none of its subclasses, so
    that it can be compiled."""

    __slots__ = (
        "_events",
        "_high",
        "_is_closing",
        "_is_full",
        "_is_reading",
        "_listener",
        "_pending",
        "_protocol",
        "_read_max",
        "fd",
    )

    def __init__(self, listener: SocketListener, fd: int) -> None:
        self._listener = listener
        self._protocol: asyncio.Protocol | None = None  # set by `begin`, cleared once it was told of the end
        self.fd = fd  # -1 once it is closed: then the system gives the number to another connection
        self._read_max = _READ_FIRST
        self._events = _IN  # what the epoll looks for
        self._pending = _NOTHING  # output that the kernel hasn't taken yet
        self._high = _HIGH_WATER
        self._is_full = False  # our protocol was told to pause writing
        self._is_reading = True
        self._is_closing = False

    # -- from the listener --

    def begin(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol
        protocol.connection_made(cast(asyncio.BaseTransport, self))

    def on_ready(self, events: int) -> None:
        if events & _OUT and self._pending:
            self._send_pending()
        if self._is_reading and events & ~_OUT:
            self._receive()

    def _receive(self) -> None:
        try:
            data = _read(self.fd, self._read_max)
        except BlockingIOError:
            return  # what was ready was a connection that had this file descriptor before
        except OSError as error:
            self._end(error)
            return
        if len(data) == _READ_FIRST:
            self._read_max = _READ_MAX
        protocol = self._protocol
        if protocol is None:
            return
        if data:
            protocol.data_received(data)
        elif not protocol.eof_received():
            self.close()

    def _send_pending(self) -> None:
        try:
            sent = _write(self.fd, self._pending)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error)
            return
        if sent == len(self._pending):
            self._pending = _NOTHING
        else:
            del self._pending[:sent]
        if self._is_full and len(self._pending) <= self._high // 4 and self._protocol is not None:
            self._is_full = False
            self._protocol.resume_writing()  # which may write
        if self._pending:
            return
        if self._is_closing:
            self._end(None)
        else:
            self._watch()

    def fail(self, error: Exception) -> None:
        """A bug: it must not end the others' connections too."""
        self._listener.report(error)
        self._end(error)

    def tell_lost(self, error: Exception | None) -> None:
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            protocol.connection_lost(error)

    # -- asyncio.Transport --

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name not in ("peername", "sockname") or self.fd < 0:
            return default
        with socket.socket(fileno=os.dup(self.fd)) as twin:
            return twin.getpeername() if name == "peername" else twin.getsockname()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.Protocol, protocol)

    def set_write_buffer_limits(self, high: int) -> None:
        self._high = high

    def get_write_buffer_size(self) -> int:
        return len(self._pending)

    def is_closing(self) -> bool:
        return self._is_closing

    def write(self, data: bytes) -> None:
        if self._is_closing:
            return
        if self._pending:
            self._pending += data
        else:
            try:
                sent = _write(self.fd, data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._end(error)
                return
            if sent == len(data):
                return
            self._pending = bytearray(data[sent:])
            self._watch()
        if len(self._pending) > self._high and not self._is_full and self._protocol is not None:
            self._is_full = True
            self._protocol.pause_writing()

    def pause_reading(self) -> None:
        self._is_reading = False
        self._watch()

    def resume_reading(self) -> None:
        self._is_reading = True
        self._watch()

    def close(self) -> None:
        """Once all is written."""
        if self._is_closing:
            return
        if not self._pending:
            self._end(None)
            return
        self._is_closing = True
        self._is_reading = False
        self._watch()

    def abort(self) -> None:
        self._end(None)

    # -- the epoll --

    def _watch(self) -> None:
        """Look for what there is something to do about. For nothing: not even for a reset, which it would tell of
        again and again."""
        if self.fd < 0:
            return
        events = (_IN if self._is_reading else 0) | (_OUT if self._pending else 0)
        if events != self._events:
            self._listener.watch(self.fd, self._events, events)
            self._events = events

    def _end(self, error: Exception | None) -> None:
        self._is_closing = True
        self._is_reading = False
        self._pending = _NOTHING
        fd, self.fd = self.fd, -1
        if fd >= 0:
            _close(fd)  # and with that it has left the epoll
            self._listener.lose(self, fd, error)


class SocketListener:
    """Listening sockets, and the connections that came by them."""

    def __init__(
        self, listening: list[ListeningSocket], make: Callable[[str], asyncio.Protocol], turns: Turns
    ) -> None:
        """*make* is given the client's address, `192.0.2.1:50123`."""
        self._listening = {one.fileno(): one for one in listening}
        self._make = make
        self._turns = turns
        self._transports: dict[int, SocketTransport] = {}
        self._lost: list[tuple[SocketTransport, Exception | None]] = []  # to be told so
        self._is_at_work = False
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._register = self._epoll.register
        for fd in self._listening:
            self._epoll.register(fd, _IN)
        self._loop.add_reader(self._epoll.fileno(), self._ready)

    @property
    def port(self) -> int:
        return int(next(iter(self._listening.values())).getsockname()[1])

    def close(self) -> None:
        """No new connections."""
        for one in self._listening.values():
            one.close()
        self._listening.clear()

    def stop(self) -> None:
        """After the connections have ended, all that have sent CONNECT."""
        for transport in list(self._transports.values()):
            transport.abort()
        self._tell_lost()
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _ready(self) -> None:
        """A turn: all that is ready is read, then all that this led to is written."""
        self._is_at_work = True
        self._turns.open()
        try:
            self._read()
            self._turns.end()
            while self._lost:
                self._turns.open()
                self._tell_lost()
                self._turns.end()
        finally:
            self._is_at_work = False
            if self._lost:
                self._loop.call_soon(self._tell_lost)

    def _read(self) -> None:
        transports = self._transports
        for fd, events in self._epoll.poll(0):
            transport = transports.get(fd)
            if transport is not None:
                try:
                    transport.on_ready(events)
                except Exception as error:  # noqa: BLE001 — as an event loop's own transports
                    transport.fail(error)
            elif fd in self._listening:
                self._accept(self._listening[fd])

    def _accept(self, listening: ListeningSocket) -> None:
        info = listening.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _WAITING.size)
        waiting: int = _WAITING.unpack(info)[0] if len(info) == _WAITING.size else 1
        for _ in range(min(max(waiting, 1), _ACCEPT_MAX)):
            try:
                fd, address = listening._accept()  # type: ignore[attr-defined]  # the part of `accept` that makes no object
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # no more file descriptors, or no memory
                log.error("can't accept connections: %s; trying again in %s s", error.strerror, _ACCEPT_AGAIN_S)
                self._epoll.unregister(listening.fileno())
                self._loop.call_later(_ACCEPT_AGAIN_S, self._accept_again, listening)
                return
            self._begin(fd, address[0], address[1])

    def _begin(self, fd: int, host: str, port: int) -> None:
        _set_blocking(fd, False)
        transport = self._transports[fd] = SocketTransport(self, fd)
        self._register(fd, _IN)
        try:
            transport.begin(self._make(f"[{host}]:{port}" if ":" in host else f"{host}:{port}"))
        except Exception as error:  # noqa: BLE001 — as in `_read`
            transport.fail(error)

    def _accept_again(self, listening: ListeningSocket) -> None:
        if listening.fileno() in self._listening:
            self._epoll.register(listening.fileno(), _IN)

    # -- from the transports --

    def watch(self, fd: int, before: int, events: int) -> None:
        if not events:
            self._epoll.unregister(fd)
        elif before:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)

    def lose(self, transport: SocketTransport, fd: int, error: Exception | None) -> None:
        """It has closed its socket, *fd*; its protocol is told soon, but not from within its own call."""
        del self._transports[fd]
        if not (self._lost or self._is_at_work):
            self._loop.call_soon(self._tell_lost)
        self._lost.append((transport, error))

    def _tell_lost(self) -> None:
        lost, self._lost = self._lost, []
        for transport, error in lost:
            try:
                transport.tell_lost(error)
            except Exception as bug:  # noqa: BLE001 — so that the others are told all the same
                self.report(bug)

    def report(self, error: Exception) -> None:
        self._loop.call_exception_handler({"message": "a connection's protocol failed", "exception": error})


async def listen(bind: str, port: int, make: Callable[[str], asyncio.Protocol], turns: Turns) -> SocketListener:
    """Listen on *bind*:*port* (0: the system chooses). OSError if it can't."""
    return SocketListener(await open_sockets(bind, port), make, turns)
