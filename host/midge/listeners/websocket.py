"""WebSocket listeners: an HTTP server with one path, whose connections are transports like all others.
Knows aiohttp, which is imported only where such a listener is asked for; not what the bytes mean.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

from midge.listeners.tcp import BACKLOG
from midge.websocket import SUBPROTOCOLS, WebSocketTransport

if TYPE_CHECKING:
    from aiohttp import web

# s that the other side has for its half of the closing handshake.
_CLOSE_TIMEOUT_S = 2.0


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
        self._site = web.TCPSite(self._runner, bind, port, ssl_context=context, backlog=BACKLOG)
        await self._site.start()
        return int(self._runner.addresses[0][1])

    async def close(self) -> None:
        """No new connections."""
        await self._site.stop()

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        socket = web.WebSocketResponse(
            protocols=SUBPROTOCOLS,
            max_msg_size=self._message_max,
            compress=False,
            timeout=_CLOSE_TIMEOUT_S,
            decode_text=True,
        )
        ready = socket.can_prepare(request)
        if not ready or ready.protocol is None:
            raise web.HTTPBadRequest(text="this is an MQTT broker: a WebSocket with the subprotocol mqtt\n")
        await socket.prepare(request)
        await WebSocketTransport(socket, request.transport).run(self._protocol())
        return socket
