"""From a `[[listener]]` of the configuration to a socket that is listened to.
Knows each kind of listener, not what is done with a connection.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from midge.access import Desk, ListenerAccess, Rules
from midge.admitting import limits_of
from midge.config import Config, Listener
from midge.core.limits import Limits
from midge.listeners import proxy, sockets, tcp, tls, unix
from midge.listeners.door import Door, Identify
from midge.listeners.tls_listener import TlsListener
from midge.listeners.turns import Turns

if TYPE_CHECKING:
    from midge.listeners.serial import SerialCable
    from midge.listeners.websocket import WebSocketListener

# Makes the protocol of one connection; the address is given where the transport knows only a proxy's.
MakeProtocol = Callable[[Door, str | None], asyncio.Protocol]


class OpenListener:
    """One listener. `start`, any number of `reload`, `stop`."""

    def __init__(
        self,
        section: Listener,
        config: Config,
        desk: Desk,
        rules: Rules,
        make_protocol: MakeProtocol,
        turns: Turns,
    ) -> None:
        self.section = section
        self._turns = turns
        self._config = config
        self._make_protocol = make_protocol
        self._certificates: tls.Certificates | None = None
        self._server: asyncio.Server | TlsListener | None = None
        self._sockets: sockets.SocketListener | None = None
        self._websocket: WebSocketListener | None = None
        self.cable: SerialCable | None = None
        self.door = Door(
            ListenerAccess(desk, rules, allow_anonymous=False),
            section.max_connections,
            _identify(section),
        )
        self.address = ""  # once started: "mqtt://127.0.0.1:1883"

    async def start(self) -> None:
        """OSError: it can't listen, or a certificate can't be used."""
        section = self.section
        self._certificates = certificates_of(self._config, section)
        if section.type == "unix":
            path = self._config.path(section.path)
            self._server = await unix.listen(path, self._protocol)
            self.address = f"unix:{path}"
        elif section.type == "websocket":
            await self._start_websocket()
        elif section.type == "serial":
            self._start_cable()
        elif self._context is not None:
            self._server = TlsListener(self._protocol, self._context, self._limits.connect_timeout)
            port = await self._server.start(section.bind, section.port)
            self.address = f"mqtts://{host_of_url(section.bind)}:{port}"
        elif sockets.IS_AVAILABLE:
            make = self._protocol_of if section.proxy_protocol else partial(self._make_protocol, self.door)
            self._sockets = await sockets.listen(section.bind, section.port, make, self._turns)
            self.address = f"mqtt://{host_of_url(section.bind)}:{self._sockets.port}"
        else:
            self._server, port = await tcp.listen(section.bind, section.port, self._protocol)
            self.address = f"mqtt://{host_of_url(section.bind)}:{port}"

    async def _start_websocket(self) -> None:
        from midge.listeners.websocket import WebSocketListener

        section = self.section
        # A message holds what a client wrote at once: some packets, or a part of one.
        message_max = 2 * self._limits.max_packet_size + 65_536
        self._websocket = listener = WebSocketListener(self._protocol, section.path, message_max)
        port = await listener.start(section.bind, section.port, self._context)
        self.address = f"ws{'s' if self._context else ''}://{host_of_url(section.bind)}:{port}{section.path}"

    def _start_cable(self) -> None:
        from midge.listeners.serial import SerialCable

        make = partial(self._make_protocol, self.door)
        self.cable = SerialCable(self.section.device, self.section.baud, make)
        self.cable.start()
        self.address = f"serial:{self.section.device}"

    def _protocol(self) -> asyncio.Protocol:
        return self._protocol_of(None)

    def _protocol_of(self, address: str | None) -> asyncio.Protocol:
        """*address*: the other side's, None: its transport knows it."""
        if self.section.proxy_protocol:
            make = partial(self._make_protocol, self.door)
            return proxy.ProxyHeader(make, self._limits.connect_timeout)
        return self._make_protocol(self.door, address)

    @property
    def _context(self) -> ssl.SSLContext | None:
        return None if self._certificates is None else self._certificates.context

    @property
    def _limits(self) -> Limits:
        return limits_of(self._config, self.section)

    def reload(self, section: Listener, config: Config) -> None:
        """Certificates and limits as they are now. OSError: a file can't be used."""
        if self._certificates is not None:
            self._certificates.reload(_files(config, section))
        self.section, self._config = section, config
        self.door.max_connections = section.max_connections

    async def close(self) -> None:
        """No new connections."""
        if self._websocket is not None:
            await self._websocket.close()
        if self._sockets is not None:
            self._sockets.close()
        if self._server is not None:
            self._server.close()
            if self.section.type == "unix":
                self._config.path(self.section.path).unlink(missing_ok=True)

    async def stop(self) -> None:
        """After the connections have ended."""
        if self._websocket is not None:
            await self._websocket.stop()
        if self._sockets is not None:
            self._sockets.stop()
        if self.cable is not None:
            await self.cable.stop()


def certificates_of(config: Config, section: Listener) -> tls.Certificates | None:
    """None: the listener is without TLS. OSError: a file can't be used."""
    if section.certfile is None:
        return None
    return tls.Certificates(_files(config, section), section.require_certificate)


def _files(config: Config, section: Listener) -> tls.Files:
    assert section.certfile is not None and section.keyfile is not None
    asked = (config.path(name) if name else None for name in (section.cafile, section.crlfile))
    return tls.Files(config.path(section.certfile), config.path(section.keyfile), *asked)


def _identify(section: Listener) -> Identify | None:
    if section.use_subject_as_username:
        return tls.subject
    return tls.common_name if section.use_identity_as_username else None


def host_of_url(bind: str) -> str:
    return f"[{bind}]" if ":" in bind else bind


# What to do about it, by errno.
_ADVICE = {
    errno.EADDRINUSE: "another program listens there: stop it, or choose another port",
    errno.EACCES: "this user may not: ports below 1024 are root's; choose another port, or let systemd give the "
    "right (AmbientCapabilities=CAP_NET_BIND_SERVICE)",
    errno.EADDRNOTAVAIL: "this machine has no such address: bind one that it has, or 0.0.0.0 for all",
}


def cannot_listen(where: str, error: OSError) -> OSError:
    """*error* as a user reads it: where, why, what to do. *where* is an address or a socket's path."""
    if error.filename and error.filename != where:  # a certificate's
        return OSError(f"can't listen on {where}: {error.filename}: {error.strerror or error}")
    if isinstance(error, socket.gaierror):
        return OSError(f"can't listen on {where}: no address is known by that name: bind an address of this machine")
    return OSError(f"can't listen on {where}: {_ADVICE.get(error.errno or 0) or error.strerror or error}")
