"""Plain TCP.
Knows how to listen, not what is said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# Connections that the kernel completes before we accept them: a fleet that reconnects after a power cut
# comes all at once. Mosquitto: 100.
BACKLOG = 1024


async def listen(
    bind: str,
    port: int,
    protocol: Callable[[], asyncio.Protocol],
) -> tuple[asyncio.Server, int]:
    """Listen on *bind*:*port* (0: the system chooses); the server and its port. OSError if it can't."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, bind, port, backlog=BACKLOG)
    return server, server.sockets[0].getsockname()[1]
