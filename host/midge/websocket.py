"""A WebSocket as a transport (MQTT 5.0 §6): its binary messages are the bytes of a connection. Listeners and bridges
share it. Knows aiohttp's two kinds of socket, a server's and a client's; not what the bytes mean.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from aiohttp import ClientWebSocketResponse, web

    Socket = web.WebSocketResponse | ClientWebSocketResponse

# [MQTT-6.0.0-3]; the second is what clients of 3.1 ask for.
SUBPROTOCOLS = ("mqtt", "mqttv3.1")
# bytes of output that wait when no other limit is set; asyncio's own.
_HIGH_WATER = 64 * 1024


class WebSocketTransport(asyncio.Transport):
    """A transport on one WebSocket: `run` reads until the end; writing is done by a task while there is
    something to write."""

    def __init__(self, socket: Socket, transport: asyncio.BaseTransport | None) -> None:
        """*transport*: what is beneath, to be asked for addresses and to be cut."""
        super().__init__()
        self._socket = socket
        self._beneath = transport
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._high = _HIGH_WATER
        self._is_paused = False  # our protocol was told to pause writing
        self._writing: asyncio.Task[None] | None = None
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._is_closing = False

    async def run(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol
        protocol.connection_made(self)
        error: Exception | None = None
        try:
            await self._read()
        except ConnectionError as failure:
            error = failure
        finally:
            self._is_closing = True
            if self._writing is not None:
                self._writing.cancel()
            protocol.connection_lost(error)

    async def _read(self) -> None:
        from aiohttp import WSMsgType

        async for message in self._socket:
            if message.type is not WSMsgType.BINARY:  # [MQTT-6.0.0-1]
                await self._socket.close(code=1003, message=b"MQTT is binary")
                return
            self._protocol.data_received(message.data)
            await self._may_read.wait()

    async def _write(self) -> None:
        try:
            while self._pending:
                data, self._pending, self._pending_bytes = b"".join(self._pending), [], 0
                await self._socket.send_bytes(data)  # waits while the other side doesn't read
                if self._is_paused:
                    self._is_paused = False
                    self._protocol.resume_writing()
            if self._is_closing:
                await self._socket.close()
        except ConnectionError:
            self.abort()
        finally:
            self._writing = None

    # -- asyncio.Transport --

    def write(self, data: Any) -> None:
        if self._is_closing:
            return
        self._pending.append(data)
        self._pending_bytes += len(data)
        self._write_soon()
        if self._pending_bytes > self._high and not self._is_paused:
            self._is_paused = True
            self._protocol.pause_writing()

    def _write_soon(self) -> None:
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write())

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._may_read.set()
            self._write_soon()

    def abort(self) -> None:
        self._is_closing = True
        self._may_read.set()
        if self._beneath is not None:
            cast(asyncio.WriteTransport, self._beneath).abort()

    def is_closing(self) -> bool:
        return self._is_closing

    def pause_reading(self) -> None:
        self._may_read.clear()

    def resume_reading(self) -> None:
        self._may_read.set()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high or _HIGH_WATER

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default if self._beneath is None else self._beneath.get_extra_info(name, default)
