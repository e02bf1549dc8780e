"""Whoever does a connection's I/O, as the core sees it.
Knows no socket.
"""

from __future__ import annotations

from typing import Final, Protocol


class Owner(Protocol):
    """Whoever does a connection's I/O."""

    def flush(self) -> None:
        """Write what `data_to_send` gives; if `is_closing` and `is_drained`, close."""
        ...

    def hold_reading(self, hold: bool) -> None:
        """Stop reading, or go on; called by `Connection.hold` alone."""
        ...


class _Gone:
    """The owner of a connection that is lost."""

    def flush(self) -> None: ...

    def hold_reading(self, hold: bool) -> None: ...


GONE: Final[Owner] = _Gone()
