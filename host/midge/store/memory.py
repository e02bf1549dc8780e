"""A store in memory, for tests and simulations: everything is settled as soon as it is written.
Lasts as long as the object does; what a crash leaves is a copy made at that moment.
"""

from __future__ import annotations

from midge.core.changes import Batch, QueueRow, QueueSummary, Snapshot
from midge.core.message import MessageRow
from midge.protocol.topics import matches
from midge.store.unsettled import Unsettled

# What one call of the reader gives at most: few, so that tests meet the end of a portion.
_ROWS_MAX = 20


class MemoryStore:
    """See `midge.store.Store`; it is its own reader."""

    def __init__(self) -> None:
        self._kept = Unsettled()
        self.portion = 1.0

    @property
    def reader(self) -> MemoryStore:
        return self

    def write(self, batch: Batch) -> int:
        self._kept.merge(batch)
        return batch.number

    def settle(self) -> int:
        return self._kept.number

    def close(self) -> None:
        pass

    def load(self) -> Snapshot:
        kept = self._kept
        retained = [row for row in kept.retained.values() if row is not None]
        snapshot = Snapshot(
            sessions=list(kept.sessions.values()),
            subscriptions=[row for row in kept.subscriptions.values() if row is not None],
            received=[key for key, is_there in kept.received.items() if is_there],
            wills=[row for row in kept.wills.values() if row is not None],
            retained_count=len(retained),
            retained_bytes=sum(len(row[1]) + len(row[2]) for row in retained),
        )
        keys = [0, *(row[0] for row in retained)]
        for session_key, rows in kept.queue.items():
            if rows:
                in_order = sorted(rows.items())
                snapshot.in_flight[session_key] = [row for row in in_order if row[1][5]]
                unsent = [row[0] for _, row in in_order if not row[5]]
                size = sum(len(row[1]) + len(row[2]) for row in unsent)
                snapshot.queues[session_key] = QueueSummary(len(unsent), size, in_order[-1][0])
                keys += [row[0][0] for row in rows.values()]
        snapshot.next_message_key = max(keys) + 1
        return snapshot

    def queue(self, session_key: int, after: int) -> list[tuple[int, QueueRow]]:
        rows = self._kept.queue.get(session_key, {})
        return [(position, rows[position]) for position in sorted(rows) if position > after][:_ROWS_MAX]

    def retained(self, topic_filter: str, after: bytes | None) -> tuple[list[MessageRow], bytes | None]:
        rows = sorted(row for row in self._kept.retained.values() if row is not None)
        rows = [row for row in rows if matches(topic_filter, row[1])]
        at = int(after or b"0")
        return rows[at : at + _ROWS_MAX], b"%d" % (at + _ROWS_MAX) if at + _ROWS_MAX < len(rows) else None

    def retained_message(self, topic: str) -> MessageRow | None:
        return self._kept.retained.get(topic)
