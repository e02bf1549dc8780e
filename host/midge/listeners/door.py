"""What the connections of one listener share: who is asked about them, and how many there may be.
Knows neither configuration nor packets.
"""

from __future__ import annotations

import asyncio
from typing import Any

from midge.access import CertificateAccess, ListenerAccess
from midge.core.limits import Limits


class Door:
    """A reload changes `max_connections`, `limits` and what `access` says."""

    def __init__(
        self, access: ListenerAccess, max_connections: int | None = None, uses_identity: bool = False
    ) -> None:
        self.access = access
        self.max_connections = max_connections  # None: only the limit of all listeners together
        self.limits: Limits | None = None  # of its connections; None: the broker's
        self._uses_identity = uses_identity  # the certificate's common name is the user name
        self.connections = 0

    def access_of(self, transport: asyncio.BaseTransport) -> ListenerAccess:
        if not self._uses_identity:
            return self.access
        return CertificateAccess(self.access.desk, self.access.rules, common_name(transport.get_extra_info("peercert")))


def common_name(certificate: Any) -> str | None:
    """Of a certificate as `ssl.SSLSocket.getpeercert` gives it."""
    for part in (certificate or {}).get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return str(value)
    return None
