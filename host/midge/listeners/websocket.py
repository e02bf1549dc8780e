"""WebSocket (MQTT 5.0 §6): the binary messages of one are the bytes of a connection.
Knows aiohttp, which is imported only where such a listener is asked for; not what the bytes mean.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from midge.listeners.tcp import BACKLOG

if TYPE_CHECKING:
    from aiohttp import web

# [MQTT-6.0.0-3]; the second is what clients of 3.1 ask for.
_SUBPROTOCOLS = ("mqtt", "mqttv3.1")
# s that the other side has for its half of the closing handshake.
_CLOSE_TIMEOUT_S = 2.0
# bytes of output that wait when no other limit is set; asyncio's own.
_HIGH_WATER = 64 * 1024


class WebSocketTransport(asyncio.Transport):
    """A transport on one WebSocket: `run` reads until the end; writing is done by a task while there is
    something to write."""

    def __init__(self, socket: web.WebSocketResponse, request: web.BaseRequest) -> None:
        super().__init__()
        self._socket = socket
        self._request = request
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
        if self._request.transport is not None:
            self._request.transport.abort()

    def is_closing(self) -> bool:
        return self._is_closing

    def pause_reading(self) -> None:
        self._may_read.clear()

    def resume_reading(self) -> None:
        self._may_read.set()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high or _HIGH_WATER

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._request.get_extra_info(name, default)


class WebSocketListener:
    """An HTTP server with one path."""

    def __init__(self, protocol: Callable[[], asyncio.Protocol], path: str, message_max: int) -> None:
        """*message_max*: bytes of one WebSocket message, which may hold several packets or a part of one."""
        from aiohttp import web

        self._protocol = protocol
        self._message_max = message_max
        app = web.Application()
        app.router.add_get(path, self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)

    async def start(self, bind: str, port: int, context: ssl.SSLContext | None) -> int:
        """The port. OSError if it can't listen."""
        from aiohttp import web

        await self._runner.setup()
        site = web.TCPSite(self._runner, bind, port, ssl_context=context, backlog=BACKLOG)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        socket = web.WebSocketResponse(
            protocols=_SUBPROTOCOLS,
            max_msg_size=self._message_max,
            compress=False,
            timeout=_CLOSE_TIMEOUT_S,
            decode_text=True,
        )
        ready = socket.can_prepare(request)
        if not ready or ready.protocol is None:
            raise web.HTTPBadRequest(text="this is an MQTT broker: a WebSocket with the subprotocol mqtt\n")
        await socket.prepare(request)
        await WebSocketTransport(socket, request).run(self._protocol())
        return socket
