"""A link with delay, jitter, loss and outages between a board and a broker, and what went over it.
Knows bytes and TCP's ways, nothing of MQTT.

It is a proxy in user space between two real TCP connections on this machine, so no segment is ever lost in truth: TCP
below the proxy hides that from both ends. What a board on a real link notices of a lost segment is that it comes
later, by a retransmission's wait, and so this is what is modelled:

- what one write of an end brings is cut into segments of `mss` bytes; each is lost at the link's rate, and each time
  it is sent again after a time-out that doubles (RFC 6298); what is behind it waits for it, as TCP's order demands;
- the proxy can't hold up TCP's handshake, which the kernel has made before it hears of it: its round trip (and lost
  SYNs) are added to the first bytes. A board sees `connect()` done at once and the answer to its CONNECT later by that;
- in an outage all is lost. A connection made in it reaches the broker after it, if the board still waits then;
- a board that sleeps loses its TCP state: what it hadn't got across when it closed is never sent again, and the broker
  may keep a connection that is dead, until the board's next one: then it is reset, as by a board that has rebooted;
- with `nagle` a small segment waits until what was sent before is acknowledged (lwIP's default). Delayed
  acknowledgements, congestion windows and a rate aren't modelled: few bytes at a time, as boards send, meet none of
  them but the first, which would make programs of many small writes slower still.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

# Ethernet's: 1500 less IP's and TCP's headers (ESP-IDF's CONFIG_LWIP_TCP_MSS is 1440).
MSS = 1460

# Of a retransmission, doubled each time: Linux's upper bound (TCP_RTO_MAX).
RTO_MAX_S = 120.0

# What the proxy takes from an end before what it took is across: a board's send buffer (ESP-IDF: 5760) is smaller,
# but the kernel's below us isn't.
HELD_BYTES_MAX = 65_536


@dataclass(frozen=True, slots=True)
class Conditions:
    """*delay_s*: one way; *jitter_s*: added at random, 0 to this; *loss*: of a segment, 0 to 1."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    rto_s: float = 1.5  # the board's first time-out (ESP-IDF's CONFIG_LWIP_TCP_RTO_TIME)
    nagle: bool = False  # at the board; midge's client sets TCP_NODELAY where the port has it


@dataclass(slots=True)
class Traffic:
    """What went over a link, of one connection or of all; *up* is from the board."""

    opened: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    segments_up: int = 0  # with data, without those sent again
    segments_down: int = 0
    again: int = 0  # sent again, both ways
    round_trips: list[float] = field(default_factory=list)  # of each connection, where the delay isn't 0
    seconds: list[float] = field(default_factory=list)  # from its opening to the board's close

    def add(self, other: Traffic) -> None:
        self.opened += other.opened
        self.bytes_up += other.bytes_up
        self.bytes_down += other.bytes_down
        self.segments_up += other.segments_up
        self.segments_down += other.segments_down
        self.again += other.again
        self.round_trips += other.round_trips
        self.seconds += other.seconds


class Link:
    """One board's link to what listens at `host`, *target* (a port; both may change). `start` it, `close` it."""

    def __init__(
        self,
        target: int,
        conditions: Conditions,
        seed: int = 0,
        sleeps: bool = False,
        on_closed: Callable[[Traffic], None] = lambda traffic: None,
    ) -> None:
        """*sleeps*: the board's TCP ends with its connection; *on_closed* is called with each connection's traffic."""
        self.target = target
        self.host = "127.0.0.1"
        self.followers: list[Link] = []  # links whose target is that of this one: see run.py
        self.conditions = conditions
        self.sleeps = sleeps
        self.is_down = False  # in an outage; set and cleared by whoever runs the simulation
        self.traffic = Traffic()
        self.on_closed = on_closed
        self.random = random.Random(seed)
        self.port = 0
        self._server: asyncio.Server | None = None
        self.connections: set[_Connection] = set()

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self).board, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.reset()

    def reset(self) -> None:
        """All connections end, on both sides."""
        for connection in list(self.connections):
            connection.abort()

    def power_cut(self) -> None:
        """The board is gone without a word: the broker's ends stay, until it notices or the board comes back."""
        for connection in list(self.connections):
            connection.die()

    def is_lost(self) -> bool:
        return self.is_down or (self.conditions.loss > 0 and self.random.random() < self.conditions.loss)

    def delay_s(self) -> float:
        jitter_s = self.conditions.jitter_s
        return self.conditions.delay_s + (self.random.uniform(0, jitter_s) if jitter_s else 0.0)


class _Connection:
    def __init__(self, link: Link) -> None:
        self.link = link
        self.traffic = Traffic(opened=1)
        self.loop = asyncio.get_running_loop()
        self.opened_at = self.loop.time()
        self.last_up_at = self.opened_at  # when the board sent last
        self.board = _End(self, "up")
        self.broker = _End(self, "down")
        self.board.other, self.broker.other = self.broker, self.board
        self._tasks: list[asyncio.Task[None]] = []
        self.is_dead = False  # the board's TCP is no more: set by die()
        self._is_counted = False

    def made(self) -> None:
        # What the board left behind when it slept: its next packet would be answered with a reset.
        for old in list(self.link.connections):
            if self.link.sleeps or old.is_dead:
                old.abort()
        self.link.connections.add(self)
        self._tasks.append(asyncio.create_task(self._run()))

    async def _run(self) -> None:
        """TCP's handshake, then what the board sends: the broker hears of it after one way, the board after two."""
        link = self.link
        await self._send_syn()
        back_at = self.loop.time() + link.delay_s()
        try:
            await self.loop.create_connection(lambda: self.broker, link.host, link.target)
        except OSError:  # nobody listens there
            self.abort()
            return
        self._tasks.append(asyncio.create_task(self.broker.carry()))
        await asyncio.sleep(max(0.0, back_at - self.loop.time()))
        await self.board.carry()

    async def _send_syn(self) -> None:
        link = self.link
        rto_s = link.conditions.rto_s
        while link.is_lost():
            self.traffic.again += 1
            await asyncio.sleep(rto_s)
            rto_s = min(2 * rto_s, RTO_MAX_S)
        await asyncio.sleep(link.delay_s())

    def board_closed(self) -> None:
        """The board's FIN has come, or its reset."""
        self.count()
        if self.link.sleeps and (self.board.is_held_up or not self.board.queue.empty()):
            # Asleep, it won't send again what is lost. The broker hears nothing of it.
            self.die()
            return
        self.board.queue.put_nowait(b"")

    def count(self) -> None:
        if self._is_counted:
            return
        self._is_counted = True
        delay_s = self.link.conditions.delay_s + self.link.conditions.jitter_s / 2
        if delay_s:
            # The handshake has cost one, see `_run`.
            self.traffic.round_trips.append((self.last_up_at - self.opened_at) / (2 * delay_s))
        self.traffic.seconds.append(self.loop.time() - self.opened_at)
        self.link.traffic.add(self.traffic)
        self.link.on_closed(self.traffic)

    def die(self) -> None:
        self.count()
        self.is_dead = True
        self.board.cancel()
        for task in self._tasks:
            task.cancel()
        if self.board.transport is not None:
            self.board.transport.abort()
        if self.broker.transport is None:  # it never heard of us
            self.abort()

    def abort(self) -> None:
        self.count()
        self.link.connections.discard(self)
        for end in (self.board, self.broker):
            end.reset()
        for task in self._tasks:
            task.cancel()

    def ended(self) -> None:
        if self.board.is_over and self.broker.is_over:
            self.abort()


class _End(asyncio.Protocol):
    """One side of a connection: takes what its peer sends, and carries it over to the other side."""

    other: _End

    def __init__(self, connection: _Connection, direction: str) -> None:
        self.connection = connection
        self.is_board = direction == "up"
        self.transport: asyncio.Transport | None = None
        self.queue: asyncio.Queue[bytes] = asyncio.Queue()  # what came from this side's peer; b"": it has closed
        self.held_bytes = 0
        self.is_held_up = False  # a segment was lost and waits to be sent again; set and cleared by `_send`
        self.is_over = False  # nothing more comes from here; set by connection_lost
        self._arrives_at = 0.0  # of the last segment
        self._timers: set[asyncio.TimerHandle] = set()

    # -- asyncio.Protocol --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._acknowledge()
        if self.is_board:
            self.connection.made()

    def data_received(self, data: bytes) -> None:
        if self.connection.is_dead:
            return
        self._acknowledge()
        if self.is_board:
            self.connection.last_up_at = self.connection.loop.time()
        self.queue.put_nowait(data)
        self.held_bytes += len(data)
        if self.held_bytes > HELD_BYTES_MAX and self.transport is not None:
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        if self.is_board:
            self.connection.board_closed()
        elif self.connection.is_dead:
            self.connection.abort()
        else:
            self.queue.put_nowait(b"")
        return True  # what comes from the other side can still be written

    def connection_lost(self, error: Exception | None) -> None:
        self.is_over = True
        if self.connection.is_dead:
            if not self.is_board:
                self.connection.abort()
        elif error is not None and self.is_board and self.connection.link.sleeps:
            self.connection.board_closed()  # a program that ended with something unread: the board sleeps now
        elif error is not None:
            self.connection.abort()
        self.connection.ended()

    def _acknowledge(self) -> None:
        """At once, so that Nagle's algorithm in the kernel doesn't gather what the program wrote piece by piece."""
        quick = getattr(socket, "TCP_QUICKACK", None)
        if quick is not None and self.transport is not None:
            with contextlib.suppress(OSError):
                self.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, quick, 1)

    # -- over the link --

    def cancel(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def reset(self) -> None:
        """RST, not FIN, unless both have closed already."""
        self.cancel()
        if self.transport is not None:
            with contextlib.suppress(OSError):
                sock = self.transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()

    async def carry(self) -> None:
        waiting = b""
        nagle = self.is_board and self.connection.link.conditions.nagle
        acknowledged_at = 0.0  # all that was sent
        while True:
            data = await self.queue.get()
            is_end = not data
            waiting += data
            while nagle and not is_end and len(waiting) < MSS:
                left_s = acknowledged_at - self.connection.loop.time()
                if left_s <= 0:
                    break
                with contextlib.suppress(TimeoutError):
                    more = await asyncio.wait_for(self.queue.get(), left_s)
                    is_end = not more
                    waiting += more
            while waiting:
                segment, waiting = waiting[:MSS], waiting[MSS:]
                await self._send(segment)
                acknowledged_at = self._arrives_at + self.connection.link.delay_s()
            if is_end:
                await self._send(b"")
                return

    async def _send(self, segment: bytes) -> None:
        connection = self.connection
        link, traffic = connection.link, connection.traffic
        if segment:
            self._count(segment)
        rto_s = link.conditions.rto_s if self.is_board else 0.2 + 2 * link.conditions.delay_s  # Linux's TCP_RTO_MIN
        while link.is_lost():
            traffic.again += 1
            self.is_held_up = True
            await asyncio.sleep(rto_s)
            rto_s = min(2 * rto_s, RTO_MAX_S)
        self.is_held_up = False
        self._arrives_at = max(self._arrives_at + 1e-6, connection.loop.time() + link.delay_s())
        timer = connection.loop.call_at(self._arrives_at, self._arrive, segment)
        self._timers.add(timer)
        self._timers = {one for one in self._timers if one.when() >= connection.loop.time() and not one.cancelled()}

    def _count(self, segment: bytes) -> None:
        traffic = self.connection.traffic
        # After the board has closed it hears nothing; what a broker still says to it counts for nobody.
        if self.is_board:
            traffic.segments_up += 1
            traffic.bytes_up += len(segment)
        else:
            traffic.segments_down += 1
            traffic.bytes_down += len(segment)

    def _arrive(self, segment: bytes) -> None:
        target = self.other.transport
        self.held_bytes -= len(segment)
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()
        if target is None or target.is_closing():
            return
        if segment:
            target.write(segment)
        elif self.is_board:
            with contextlib.suppress(OSError):  # reset meanwhile, and not noticed yet
                target.write_eof()
        else:
            target.close()
            if self.transport is not None:
                self.transport.close()
