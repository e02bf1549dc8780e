"""Tells the network which of our listeners it can reach.
Knows listeners and the configuration's [discovery]; how it is told is `midge.mdns`'.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket

from midge.config import Config
from midge.listening import OpenListener
from midge.mdns import Announcement

log = logging.getLogger("midge.discovery")


class Announcing:
    """`start` when the listeners are open, then `stop`. Nobody waits for either longer than for a goodbye."""

    def __init__(self, config: Config, listeners: list[OpenListener]) -> None:
        """*listeners*, which are open."""
        section = config.discovery
        name = section.name or f"midge on {socket.gethostname().partition('.')[0]}"
        services = [
            (name, listener.section.type == "tls", int(listener.address.rpartition(":")[2]))
            for listener in listeners
            if listener.section.type in ("tcp", "tls") and _is_reached(listener.section.bind, section.interfaces)
        ]
        self._announcement = Announcement(services, section.interfaces) if services and section.announce else None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._announcement is not None:
            self._task = asyncio.get_running_loop().create_task(self._start(self._announcement))

    async def _start(self, announcement: Announcement) -> None:
        try:
            await announcement.start()
        except OSError as error:
            log.warning("not announced by mDNS: %s", error.strerror or error)
            return
        log.info("announced by mDNS: %s", ", ".join(announcement.names))

    async def stop(self) -> None:
        if self._task is None or self._announcement is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._announcement.stop()


def _is_reached(bind: str, interfaces: list[str]) -> bool:
    """Whether a listener on *bind* can be reached from where it would be announced."""
    try:
        address = ipaddress.ip_address(bind)
    except ValueError:
        return bind != "localhost"
    if address.is_unspecified:
        return True
    return bind in interfaces if interfaces else not address.is_loopback
