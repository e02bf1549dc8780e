"""How a bridge reaches the other broker: one dialler for each scheme of address, each gives the protocol a transport.
Knows addresses, TLS and WebSockets, nothing of MQTT; who has the serial cables is the server's to say.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

from midge.config import Address, parse_address
from midge.config import Bridge as Section

# Connects a protocol over the cable that a listener has open on a device. OSError: there is none.
ConnectCable = Callable[[str, asyncio.Protocol], object]


class Dialler:
    """Connects one bridge; `path` makes the paths in its section absolute."""

    def __init__(
        self, section: Section, path: Callable[[str], Path], cable: ConnectCable | None = None
    ) -> None:
        self._section = section
        self._cable = cable
        self._path = path
        self._context: ssl.SSLContext | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # of WebSockets, so that nobody collects them

    async def connect(self, address: str, protocol: asyncio.Protocol) -> None:
        """Returns once `connection_made` was called. OSError (ssl.SSLError and socket.gaierror are some): the broker
        can't be reached."""
        await _DIALLERS[parse_address(address).scheme](self, parse_address(address), protocol)

    async def _tcp(self, address: Address, protocol: asyncio.Protocol) -> None:
        context = self._tls_context() if address.is_tls else None
        error: OSError | None = None
        for host in await _hosts(address.host):
            try:
                await asyncio.get_running_loop().create_connection(
                    lambda: protocol,
                    host,
                    address.port,
                    ssl=context,
                    server_hostname=address.host if context is not None else None,
                )
                return
            except OSError as failure:
                error = failure
        raise error or OSError(f"nobody knows where {address.host} is")

    async def _websocket(self, address: Address, protocol: asyncio.Protocol) -> None:
        import aiohttp  # only where a bridge has such an address

        from midge.websocket import SUBPROTOCOLS, WebSocketTransport

        (host, *_) = await _hosts(address.host)
        host = f"[{host}]" if ":" in host else host
        url = f"{address.scheme}://{host}:{address.port}{address.path}"
        session = aiohttp.ClientSession()
        try:
            socket = await session.ws_connect(
                url,
                protocols=SUBPROTOCOLS,
                max_msg_size=0,  # MQTT has its own limit of a packet
                ssl=self._tls_context() if address.is_tls else True,
                server_hostname=address.host if address.is_tls else None,
            )
        except aiohttp.ClientError as error:
            await session.close()
            raise OSError(None, str(error) or type(error).__name__) from None
        except BaseException:
            await session.close()
            raise
        transport = WebSocketTransport(socket, socket.get_extra_info("transport"))

        async def run() -> None:
            try:
                await transport.run(protocol)
            finally:
                await session.close()

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.sleep(0)  # `run` begins, and with it the connection

    async def _serial(self, address: Address, protocol: asyncio.Protocol) -> None:
        if self._cable is None:
            raise OSError(f"no listener has the cable {address.host}")
        self._cable(address.host, protocol)

    def _tls_context(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = tls_context(self._section, self._path)
        return self._context


def tls_context(section: Section, path: Callable[[str], Path]) -> ssl.SSLContext:
    """TLS 1.2 and 1.3, with the bridge's files. OSError: one can't be used."""

    def file(name: str | None) -> Path | None:
        if name is None:
            return None
        path(name).open("rb").close()  # its error names the file, OpenSSL's doesn't
        return path(name)

    cafile, certfile, keyfile = file(section.cafile), file(section.certfile), file(section.keyfile)
    try:
        context = ssl.create_default_context(cafile=cafile)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = section.check_hostname
        if certfile is not None:
            context.load_cert_chain(certfile, keyfile, password=lambda: b"")
    except ssl.SSLError as error:
        raise OSError(None, f"not usable for TLS: {error.reason or error}", section.cafile) from None
    return context


async def _hosts(host: str) -> list[str]:
    """*host*, or its addresses where it ends in .local and the system doesn't know it: not every one asks by mDNS."""
    if not host.endswith(".local"):
        return [host]
    try:
        await asyncio.get_running_loop().getaddrinfo(host, None)
        return [host]
    except OSError:
        from midge.mdns import resolve

        found = await resolve(host)
        if not found:
            raise OSError(f"{host} isn't known to the system, nor does it answer by mDNS") from None
        return found


_DIALLERS: dict[str, Callable[[Dialler, Address, asyncio.Protocol], Awaitable[None]]] = {
    "mqtt": Dialler._tcp,
    "mqtts": Dialler._tcp,
    "serial": Dialler._serial,
    "ws": Dialler._websocket,
    "wss": Dialler._websocket,
}
