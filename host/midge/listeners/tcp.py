"""Plain TCP.
Knows how to listen, not what is said.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

# Connections that the kernel completes before we accept them: a fleet that reconnects after a power cut
# comes all at once. Mosquitto: 100.
BACKLOG = 1024


class ListeningSocket(socket.socket):
    """`accept` asks for family and type each time, and the standard library looks both up in their enumerations: more
    work than accepting. Here they are plain attributes."""

    __slots__ = ("family", "type")
    family: socket.AddressFamily
    type: socket.SocketKind

    def __init__(self, opened: socket.socket) -> None:
        """In place of *opened*; doesn't block."""
        family, kind, protocol = opened.family, opened.type, opened.proto
        super().__init__(family, kind, protocol, opened.detach())
        self.family, self.type = family, kind
        self.setblocking(False)


async def open_sockets(bind: str, port: int) -> list[ListeningSocket]:
    """Listening sockets on all addresses of *bind*, the same *port* for all (0: the system chooses). What they accept
    sends at once (TCP_NODELAY). OSError: it can't be."""
    found = await asyncio.get_running_loop().getaddrinfo(
        bind, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    opened: list[ListeningSocket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            place = (address[0], port, *address[2:])
            listening = ListeningSocket(socket.create_server(place, family=family, backlog=BACKLOG))
            opened.append(listening)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited, at least on Linux
            port = listening.getsockname()[1]
    except OSError:
        for listening in opened:
            listening.close()
        raise
    return opened


async def listen(bind: str, port: int, protocol: Callable[[], asyncio.Protocol]) -> tuple[asyncio.Server, int]:
    """Listen on *bind*:*port* (0: the system chooses), by the event loop's own means; the server and its port. OSError
    if it can't."""
    server = await asyncio.get_running_loop().create_server(protocol, bind, port, backlog=BACKLOG)
    return server, server.sockets[0].getsockname()[1]
