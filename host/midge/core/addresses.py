"""Which addresses belong together, and how many connections each such network has.
Knows addresses as texts, no socket.
"""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address


def network_of(address: str) -> str | None:
    """*address* ("192.0.2.1:1234", "[2001:db8::1]:1234") without its port; of IPv6 the /64, since whoever has
    one address there has all of them. None: this machine, by its loopback or a Unix socket."""
    if address.startswith("127."):
        return None
    host = address.rpartition(":")[0]
    if ":" not in host:
        return None if not host[:1].isdigit() or host.startswith("127.") else host
    try:
        parsed = ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    assert isinstance(parsed, IPv6Address)
    mapped = parsed.ipv4_mapped
    if parsed.is_loopback or (mapped is not None and mapped.is_loopback):
        return None
    return parsed.exploded[:19] if mapped is None else str(mapped)


class ConnectionCounts:
    """Open connections by network. This machine's own aren't counted: whoever runs programs here can do worse,
    and a proxy without the PROXY protocol stands for many."""

    def __init__(self) -> None:
        self._by_network: dict[str, int] = {}

    def add(self, address: str) -> int:
        """How many there are now, with this one; 0 if they aren't counted."""
        network = network_of(address)
        if network is None:
            return 0
        count = self._by_network[network] = self._by_network.get(network, 0) + 1
        return count

    def remove(self, address: str) -> None:
        network = network_of(address)
        if network is None:
            return
        count = self._by_network.pop(network, 1) - 1
        if count > 0:
            self._by_network[network] = count
