"""Unix sockets.
Knows how to listen, not what is said.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from pathlib import Path

from midge.listeners.tcp import BACKLOG


async def listen(path: Path, protocol: Callable[[], asyncio.Protocol]) -> asyncio.Server:
    """Listen on *path*; a socket that a dead broker left there is replaced. OSError if it can't."""
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            else:
                raise OSError(errno.EADDRINUSE, "another program listens there", str(path))
    return await asyncio.get_running_loop().create_unix_server(protocol, str(path), backlog=BACKLOG)
