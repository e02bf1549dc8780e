"""The PROXY protocol, version 2: behind a proxy, who the client really is.
Knows the header's bytes (https://www.haproxy.org/download/1.8/doc/proxy-protocol.txt §2.2), nothing after it.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import cast

from midge.listeners.connection import address_of
from midge.logs import about

log = logging.getLogger("midge.connection")

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_HEADER = struct.Struct("!12sBBH")
_VERSION_2, _LOCAL, _PROXY = 0x20, 0x0, 0x1
_IPV4, _IPV6 = 0x1, 0x2
# bytes behind the fixed part: addresses and what else a proxy tells. 65,535 would be legal; HAProxy's
# with a client's certificate is below 1 kB.
_LENGTH_MAX = 4096


class ProxyError(Exception):
    """It isn't such a header."""


def parse_header(data: bytes) -> tuple[str | None, int] | None:
    """The client's address (None: the proxy's own connection) and where the header ends; None: more is to
    come. ProxyError: it isn't one."""
    if not data.startswith(_SIGNATURE[: len(data)]):
        raise ProxyError("no PROXY protocol header, version 2")
    if len(data) < _HEADER.size:
        return None
    _, version_command, family, length = _HEADER.unpack_from(data)
    if version_command & 0xF0 != _VERSION_2 or version_command & 0x0F > _PROXY or length > _LENGTH_MAX:
        raise ProxyError("a PROXY protocol header that we don't understand")
    end = _HEADER.size + length
    if len(data) < end:
        return None
    body = data[_HEADER.size : end]
    if version_command & 0x0F == _LOCAL:
        return None, end
    return _address(family >> 4, body), end


def _address(family: int, body: bytes) -> str | None:
    size = {_IPV4: 4, _IPV6: 16}.get(family)
    if size is None:
        return None  # unspecified, or a Unix socket
    if len(body) < 2 * size + 4:
        raise ProxyError("a PROXY protocol header that is too short for its addresses")
    source = IPv4Address(body[:4]) if family == _IPV4 else IPv6Address(body[:16])
    (port,) = struct.unpack_from("!H", body, 2 * size)
    return f"{source}:{port}"


class ProxyHeader(asyncio.Protocol):
    """Takes the header, then hands the transport to what *protocol* makes for the client's address."""

    def __init__(self, protocol: Callable[[str | None], asyncio.Protocol], timeout_s: float) -> None:
        self._protocol = protocol
        self._timeout_s = timeout_s
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._timeout_s, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        self._received += data
        try:
            found = parse_header(self._received)
        except ProxyError as error:
            peer = address_of(self._transport)
            log.info("refused: %s", error, extra=about(None, peer, event="refused"))
            self._transport.abort()
            return
        if found is None:
            return
        address, end = found
        self._timer.cancel()
        client = self._protocol(address)
        self._transport.set_protocol(client)
        client.connection_made(self._transport)
        if len(self._received) > end:
            client.data_received(self._received[end:])

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
