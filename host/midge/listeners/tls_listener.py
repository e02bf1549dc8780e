"""TCP with TLS: connections are handed on once the handshake is done; who fails at it is told of in the log.
Knows sockets and handshakes, no certificate's meaning. (The event loop's own servers end such connections in silence.)
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine

from midge.listeners.tcp import ListeningSocket, open_sockets
from midge.logs import about

log = logging.getLogger("midge.connection")

# s until we accept again when the system has no room for another connection.
_NO_ROOM_WAIT_S = 0.1


class TlsListener:
    """`start`, then `close`; both once."""

    def __init__(
        self, protocol: Callable[[], asyncio.Protocol], context: ssl.SSLContext, handshake_timeout_s: float
    ) -> None:
        self._protocol = protocol
        self._context = context
        self._timeout_s = handshake_timeout_s
        self._sockets: list[ListeningSocket] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, bind: str, port: int) -> int:
        """Listen on *bind*:*port* (0: the system chooses); the port. OSError if it can't."""
        self._sockets = await open_sockets(bind, port)
        for listening in self._sockets:
            self._begin(self._accept(listening))
        return int(self._sockets[0].getsockname()[1])

    def close(self) -> None:
        """No new connections; those whose handshake isn't done end."""
        for task in self._tasks:
            task.cancel()
        for listening in self._sockets:
            listening.close()

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listening)
            except OSError as error:
                log.error("can't accept a connection: %s", error)
                await asyncio.sleep(_NO_ROOM_WAIT_S)
                continue
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._begin(self._shake_hands(connection, f"{address[0]}:{address[1]}"))

    async def _shake_hands(self, connection: socket.socket, address: str) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol, connection, ssl=self._context, ssl_handshake_timeout=self._timeout_s
            )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            log.info("TLS handshake failed: %s", _reason(error), extra=about(None, address, event="refused"))


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")  # "PEER_DID_NOT_RETURN_A_CERTIFICATE"
    return str(error) or "it took too long"
