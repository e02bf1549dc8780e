"""TCP, plain or with TLS.
Knows how to listen, not what is said.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

# Connections that the kernel completes before we accept them: a fleet that reconnects after a power cut
# comes all at once. Mosquitto: 100.
BACKLOG = 1024


async def listen(
    bind: str,
    port: int,
    protocol: Callable[[], asyncio.Protocol],
    context: ssl.SSLContext | None = None,
    handshake_timeout_s: float = 5.0,
) -> tuple[asyncio.Server, int]:
    """Listen on *bind*:*port* (0: the system chooses); the server and its port. OSError if it can't."""
    loop = asyncio.get_running_loop()
    timeout_s = handshake_timeout_s if context else None
    server = await loop.create_server(
        protocol, bind, port, backlog=BACKLOG, ssl=context, ssl_handshake_timeout=timeout_s
    )
    return server, server.sockets[0].getsockname()[1]
