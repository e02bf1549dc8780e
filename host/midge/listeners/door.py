"""What the connections of one listener share: who is asked about them, and how many there may be.
Knows neither configuration nor packets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from midge.access import CertificateAccess, ListenerAccess
from midge.core.limits import Limits

# Whom a client's certificate names; None: nobody.
Identify = Callable[[asyncio.BaseTransport], str | None]


class Door:
    """A reload changes `max_connections`, `limits` and what `access` says."""

    def __init__(
        self, access: ListenerAccess, max_connections: int | None = None, identify: Identify | None = None
    ) -> None:
        self.access = access
        self.max_connections = max_connections  # None: only the limit of all listeners together
        self.limits: Limits | None = None  # of its connections; None: the broker's
        self._identify = identify
        self.connections = 0

    def access_of(self, transport: asyncio.BaseTransport) -> ListenerAccess:
        if self._identify is None:
            return self.access
        return CertificateAccess(self.access.desk, self.access.rules, self._identify(transport))
