"""mDNS (RFC 6762) and service discovery (RFC 6763): announce a broker, look for brokers, ask for a .local name.
Knows zeroconf, which is imported only when it is needed, and nothing of MQTT.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zeroconf.asyncio import AsyncServiceInfo

# The registered service names of MQTT (IANA), without and with TLS.
PLAIN, SECURE = "_mqtt._tcp.local.", "_secure-mqtt._tcp.local."

# s that a name may take. A board that sleeps between beacons answers within two or three of them (102 ms each);
# zeroconf asks again after 1 s.
RESOLVE_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Service:
    """A broker that is announced: `instance` is its name for people, `host` for machines (`laptop.local`)."""

    instance: str
    host: str
    addresses: tuple[str, ...]
    port: int
    is_tls: bool
    properties: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def url(self) -> str:
        host = self.host or (self.addresses[0] if self.addresses else "?")
        return f"{'mqtts' if self.is_tls else 'mqtt'}://{host}:{self.port}"


class Announcement:
    """Services of this machine. `start`, then `stop`."""

    def __init__(self, services: Iterable[tuple[str, bool, int]], interfaces: list[str]) -> None:
        """*services*: (instance, whether TLS, port); *interfaces*: this machine's addresses on which to announce,
        empty: all but the loopback."""
        self._services = list(services)
        self._interfaces = interfaces
        self._zeroconf: Any = None
        self.names: list[str] = []  # as they were registered; another machine may have had ours

    async def start(self) -> None:
        """OSError: there is no network that could be told."""
        from zeroconf import InterfaceChoice
        from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

        addresses = self._interfaces or _own_addresses()
        if not addresses:
            raise OSError("no network to announce on")
        host = socket.gethostname().partition(".")[0]
        infos = []
        self._zeroconf = AsyncZeroconf(interfaces=self._interfaces or InterfaceChoice.Default)
        for instance, is_tls, port in self._services:
            kind = SECURE if is_tls else PLAIN
            info = AsyncServiceInfo(
                kind,
                f"{instance}.{kind}",
                port=port,
                server=f"{host}.local.",
                parsed_addresses=addresses,
                properties={"software": "midge"},
            )
            infos.append(info)
        # Another machine with our name: "name-2", as RFC 6762 §9 has it. Asking whether there is one takes a second.
        await asyncio.gather(*(self._register(info) for info in infos))
        self.names = [info.name for info in infos]

    async def _register(self, info: AsyncServiceInfo) -> None:
        await (await self._zeroconf.async_register_service(info, allow_name_change=True))

    async def stop(self) -> None:
        """Says goodbye, so that nobody looks for us any more."""
        if self._zeroconf is not None:
            await self._zeroconf.async_unregister_all_services()
            await self._zeroconf.async_close()
            self._zeroconf = None


async def find(wait_s: float, interfaces: list[str] | None = None) -> list[Service]:
    """The brokers that answer within *wait_s*. OSError: there is no network to ask."""
    from zeroconf import InterfaceChoice, ServiceStateChange
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

    zeroconf = AsyncZeroconf(interfaces=interfaces or InterfaceChoice.Default)
    seen: dict[str, AsyncServiceInfo] = {}

    def on_change(name: str, service_type: str, state_change: ServiceStateChange, **_: Any) -> None:
        if state_change is ServiceStateChange.Removed:
            seen.pop(name, None)
        else:
            seen[name] = AsyncServiceInfo(service_type, name)

    browser = AsyncServiceBrowser(zeroconf.zeroconf, [PLAIN, SECURE], handlers=[on_change])
    try:
        await asyncio.sleep(wait_s)
        infos = list(seen.values())
        await asyncio.gather(*(info.async_request(zeroconf.zeroconf, 1000) for info in infos))
    finally:
        await browser.async_cancel()
        await zeroconf.async_close()
    return sorted((_service(info) for info in infos if info.port), key=lambda each: (each.instance, each.port))


def _service(info: AsyncServiceInfo) -> Service:
    properties = {
        name.decode("utf-8", "replace"): (value or b"").decode("utf-8", "replace")
        for name, value in info.properties.items()
    }
    return Service(
        info.name.removesuffix("." + info.type),
        (info.server or "").rstrip("."),
        tuple(info.parsed_addresses()),
        info.port or 0,
        info.type == SECURE,
        properties,
    )


async def resolve(
    host: str, timeout_s: float = RESOLVE_TIMEOUT_S, interfaces: list[str] | None = None
) -> list[str]:
    """The addresses of *host*, a name that ends in .local; empty if nobody answers."""
    from zeroconf import AddressResolver, InterfaceChoice  # type: ignore[attr-defined]
    from zeroconf.asyncio import AsyncZeroconf

    try:
        zeroconf = AsyncZeroconf(interfaces=interfaces or InterfaceChoice.Default)
    except OSError:
        return []  # no network
    resolver = AddressResolver(host.rstrip(".") + ".")
    try:
        await resolver.async_request(zeroconf.zeroconf, timeout_s * 1000)
        return list(resolver.parsed_addresses())
    finally:
        await zeroconf.async_close()


def _own_addresses() -> list[str]:
    """This machine's addresses, without the loopback's: of the interfaces that lead to the multicast group."""
    import ifaddr

    found = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            address = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            if not address.startswith(("127.", "169.254.", "fe80:")) and address != "::1":
                found.append(address)
    return found
