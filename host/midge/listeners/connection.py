"""One client's transport: hands chunks to the core, writes once per turn, slows down who reads or writes too fast.
Knows no packet.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, cast

from midge.core import admission
from midge.core.broker import Broker
from midge.core.connection import Connection
from midge.core.timers import Timer
from midge.listeners.door import Door
from midge.listeners.sockets import SocketTransport
from midge.listeners.turns import Turns
from midge.logs import Line, about
from midge.protocol.reasons import ReasonCode

log: Final = logging.getLogger("midge.connection")

# bytes that the transport buffers before it says that the peer reads too slowly. One full window of
# ordinary messages fits; asyncio's own default is 64 KiB.
_WRITE_BUFFER_HIGH: Final = 256 * 1024

# Pieces of output (acknowledgements, mostly) that wait for a peer that doesn't read, before we stop
# reading from it. Messages have bounds of their own; acknowledgements are bounded only by this.
_UNREAD_MAX: Final = 10_000

# s that a closing connection may take to read our last packets.
_CLOSE_TIMEOUT_S: Final = 5.0


class ClientConnection:
    """The asyncio side of one `midge.core.connection.Connection`: has the methods of `asyncio.Protocol`, and is
    none of its subclasses, so that it can be compiled."""

    __slots__ = (
        "_address",
        "_broker",
        "_close_timer",
        "_core",
        "_is_held",
        "_is_reading",
        "_stream",
        "_transport",
        "_turns",
        "access",
        "door",
    )

    def __init__(self, broker: Broker, turns: Turns, door: Door, address: str | None = None) -> None:
        """*address*: of the client, where the transport knows only a proxy's."""
        self._broker = broker
        self._turns = turns
        self.door = door
        self._address = address
        self._is_held = False  # the store can't keep up; set and cleared by the server
        self._is_reading = True
        self._close_timer: Timer | None = None  # set when we close

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        now = self._turns.begin()  # its end arms the deadline for CONNECT
        # uvloop's transports have the methods of asyncio.Transport without being its subclasses.
        self._transport = cast(asyncio.Transport, transport)
        # The same if it is our own, called without a detour when compiled; else None.
        own: object = transport
        self._stream: SocketTransport | None = own if isinstance(own, SocketTransport) else None
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_HIGH)
        self.access = self.door.access_of(transport)
        access = None if self.access.is_open else self.access
        address = self._address or address_of(transport)
        self._core = self._broker.open(address, self, now, access, self.door.limits)
        self._broker.counters.sockets += 1
        self.door.connections += 1
        limit = self.door.max_connections
        if limit is not None:
            admission.bound(self._core, "max_connections", self.door.connections, limit, ReasonCode.SERVER_BUSY)

    def data_received(self, data: bytes) -> None:
        core = self._core
        core.receive_data(data, self._turns.begin())
        if core.is_paused and core.unread > _UNREAD_MAX:
            self._update_reading()

    def eof_received(self) -> bool:
        return False  # the transport closes itself

    def connection_lost(self, exc: Exception | None) -> None:
        core = self._core
        if self._broker.on_admitted is not None:  # else nobody wants to know who comes and goes
            reason = core.close_reason or (f"connection lost: {exc}" if exc else "connection closed by the client")
            client = None if core.session is None else core.session.client_id
            log.handle(Line(log, reason, about(client, core.address, event="disconnected")))
        if self._close_timer is not None:
            self._close_timer.cancel()  # else it would keep all of this connection for its whole time
        self.door.connections -= 1
        core.lost(self._turns.begin())

    def flush(self) -> None:
        core = self._core
        if not core.is_paused:
            data = core.data_to_send()
            if data:
                written = data[0] if len(data) == 1 else b"".join(data)
                counters = self._broker.counters
                counters.bytes_sent += len(written)
                counters.messages_sent += len(data)
                if self._stream is not None:
                    self._stream.write(written)
                else:
                    self._transport.write(written)
        if core.is_closing:
            self._close()

    def _close(self) -> None:
        """Once all is written."""
        core, transport = self._core, self._transport
        if core.is_paused:
            transport.abort()  # it doesn't read, so there is nothing to wait for
        elif core.is_drained and not transport.is_closing():
            transport.close()
            if self._stream is None or self._stream.fd >= 0:  # it may still have something to write
                # A timer of ours: one of the event loop's costs as much as the rest of the closing.
                self._close_timer = self._broker.timers.at(self._turns.now() + _CLOSE_TIMEOUT_S, self._close_due)

    def _close_due(self, now: float) -> None:
        self._transport.abort()

    def abort(self) -> None:
        """Cut the connection, whatever is unsent."""
        self._transport.abort()

    def pause_writing(self) -> None:
        self._core.is_paused = True

    def resume_writing(self) -> None:
        core = self._core
        core.is_paused = False
        self.flush()
        self._update_reading()
        if core.session is not None and core.session.readings is not None:
            core.session.wake_readings(self._turns.begin())

    def hold_reading(self, hold: bool) -> None:
        self._is_held = hold
        self._update_reading()

    def _update_reading(self) -> None:
        core = self._core
        is_unread = core.is_paused and core.unread > _UNREAD_MAX
        should_read = not (self._is_held or is_unread)
        if should_read == self._is_reading or self._transport.is_closing():
            return
        self._is_reading = should_read
        if should_read:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()


_VERSIONS = {3: "3.1", 4: "3.1.1", 5: "5.0"}


def is_told() -> bool:
    """Whether there is to be a line for each client that comes, and for each that goes. Asked once at the start: asking
    costs as much as a packet."""
    return log.isEnabledFor(logging.INFO)


def log_admitted(connection: Connection) -> None:
    """`Broker.on_admitted`, if such lines are wanted."""
    if not isinstance(connection.owner, ClientConnection):
        return
    session = connection.session
    assert session is not None
    user, keep_alive_s = connection.identity.username, connection.keep_alive_s
    version = _VERSIONS.get(connection.decoder.version or 4, "")
    fields = about(
        session.client_id,
        connection.address,
        event="connected",
        mqtt=version,
        user=user,
        keep_alive_s=keep_alive_s,
        is_bridge=connection.is_bridge,
    )
    bridge = ", a bridge" if connection.is_bridge else ""
    who = "" if user is None else f", user {user}"
    log.handle(Line(log, f"connected, MQTT {version}{bridge}, keep alive {keep_alive_s} s{who}", fields))


def address_of(transport: asyncio.BaseTransport) -> str:
    """Of the peer: `192.0.2.1:50123`, `[2001:db8::1]:50123`, `unix:PATH`."""
    peer = transport.get_extra_info("peername")
    if isinstance(peer, tuple):
        return f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"
    return f"unix:{transport.get_extra_info('sockname') or ''}"
