"""What must last: takes batches of changes, gives everything back at the start.
Knows rows, not what a broker does with them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from midge.core.changes import Batch, Reader, Snapshot
from midge.core.history import HistoryRule


class Store(Protocol):
    """`load` is called once, at the start; `write` and `settle` from one thread at a time, never the event
    loop's; the reader from the event loop's."""

    portion: float  # 1, or the part of a usual batch that a slow disk should be given at once

    def load(self) -> Snapshot:
        """What the broker must know at its start. StoreError if it can't be read."""
        ...

    @property
    def reader(self) -> Reader:
        """Gives single queues and retained messages back, as far as they are settled."""
        ...

    def write(self, batch: Batch) -> int:
        """Keep *batch*, all of it or nothing; when it returns, it lasts. The number of the last batch that is
        settled. StoreError: nothing of it is kept."""
        ...

    def settle(self) -> int:
        """Settle all that was written; the number of the last batch."""
        ...

    def set_histories(self, rules: list[HistoryRule]) -> None:
        """What is kept for replay, and how long. Any thread may call it."""
        ...

    @property
    def kept_size(self) -> tuple[int, int]:
        """Messages that are kept for replay, and bytes of their topic names and payloads. For any thread."""
        ...

    @property
    def is_untidy(self) -> bool:
        """More is kept for replay than may be: `tidy` should be called."""
        ...

    def tidy(self, now: float) -> bool:
        """Forget, in a short step, some of what is too old (*now*: s since the epoch) or too much; True: there may be
        more of it. By the thread that writes. StoreError: nothing was forgotten."""
        ...

    def close(self) -> None: ...


class StoreError(Exception):
    """The store can't be opened, read or written; the message names the file and what to do."""


def open_store(path: str, durability: str, directory: Path) -> Store | None:
    """The store at *path* (relative to *directory*); None for ":memory:", where nothing is to last."""
    if path == ":memory:":
        return None
    from midge.store.sqlite import SqliteStore

    return SqliteStore(directory / path, durability)
