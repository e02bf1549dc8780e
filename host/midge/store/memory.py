"""A store in memory, for tests and simulations: everything is settled as soon as it is written.
Lasts as long as the object does; what a crash leaves is a copy made at that moment.
"""

from __future__ import annotations

from midge.core.changes import Batch, KeptRow, QueueRow, QueueSummary, Snapshot
from midge.core.history import HistoryRule
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

    def set_histories(self, rules: list[HistoryRule]) -> None:
        pass  # nothing is forgotten

    @property
    def kept_size(self) -> tuple[int, int]:
        rows = [row for kept in self._kept.kept.values() for row in kept]
        return len(rows), sum(len(row[2][1]) + len(row[2][2]) for row in rows)

    @property
    def is_untidy(self) -> bool:
        return False

    def tidy(self, now: float) -> bool:
        return False

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
        kept_rows = [row for rows in kept.kept.values() for row in rows]
        snapshot.positions = {key: after for key, after in kept.positions.items() if after is not None}
        snapshot.last_kept = max([row[0] for row in kept_rows], default=0)
        snapshot.kept_count = len(kept_rows)
        snapshot.kept_bytes = sum(len(row[2][1]) + len(row[2][2]) for row in kept_rows)
        keys = [0, *(row[0] for row in retained), *(row[2][0] for row in kept_rows)]
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

    def kept(self, topic_filter: str, after: int, end: int) -> tuple[list[KeptRow], int]:
        rows = sorted(row for rows in self._kept.kept.values() for row in rows if after < row[0] <= end)
        if len(rows) > _ROWS_MAX:
            end = rows[_ROWS_MAX - 1][0]
        return [row for row in rows[:_ROWS_MAX] if matches(topic_filter, row[2][1])], end

    def kept_since(self, topic_filter: str, since: float) -> int | None:
        found = [row[0] for rows in self._kept.kept.values() for row in rows if row[1] >= since]
        return min(found, default=None)
