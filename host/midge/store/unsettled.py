"""What is committed but not yet in the tables: batches merged into one.
Knows rows, not what keeps them.
"""

from __future__ import annotations

from typing import Any

from midge.core.changes import Batch, KeptRow, QueueRow, SessionRow, SubscriptionRow, WillRow
from midge.core.message import MessageRow


class Unsettled:
    """Several batches as one. What came and went within them is in none of its parts."""

    def __init__(self) -> None:
        self.number = 0  # of the last batch in it
        self.entries = 0  # how many rows were merged: a measure of the work, never lowered
        self.bytes = 0  # of payloads, the same
        self.sessions: dict[int, SessionRow] = {}
        self.subscriptions: dict[tuple[int, str], SubscriptionRow | None] = {}
        self.queue: dict[int, dict[int, QueueRow]] = {}
        self.states: dict[int, dict[int, tuple[int, bool]]] = {}
        self.done: dict[int, list[int]] = {}
        self.received: dict[tuple[int, int], bool] = {}
        self.retained: dict[str, MessageRow | None] = {}
        self.wills: dict[int, WillRow | None] = {}
        self.ended: list[int] = []
        self.kept: dict[str, list[KeptRow]] = {}
        self.positions: dict[tuple[int, str], int | None] = {}
        self.settled = 0  # number of the last batch that is in the tables

    def merge(self, batch: Batch) -> None:
        self.number = batch.number
        self.sessions.update(batch.sessions)
        self.subscriptions.update(batch.subscriptions)
        self.received.update(batch.received)
        self.wills.update(batch.wills)
        self.retained.update(batch.retained)
        self.entries += len(batch.sessions) + len(batch.subscriptions) + len(batch.received)
        self.entries += len(batch.wills) + len(batch.retained)
        self.bytes += sum(len(row[2]) for row in batch.retained.values() if row is not None)
        for key, rows in batch.queue.items():
            mine = self.queue.get(key)
            if mine is None:
                self.queue[key] = dict(rows)
            else:
                mine.update(rows)
            self.entries += len(rows)
            self.bytes += sum([len(row[0][2]) for row in rows.values()])
        self.positions.update(batch.positions)
        for name, kept in batch.kept.items():
            self.kept.setdefault(name, []).extend(kept)
            self.entries += len(kept)
            self.bytes += sum([len(row[2][2]) for row in kept])
        for key, states in batch.states.items():
            self._merge_states(key, states)
        for key, positions in batch.done.items():
            self._merge_done(key, positions)
        for key in batch.ended:
            self._end(key)

    def _merge_states(self, key: int, states: dict[int, tuple[int, bool]]) -> None:
        rows = self.queue.get(key)
        stored = self.states.setdefault(key, {})
        for position, state in states.items():
            row = rows.get(position) if rows else None
            if row is None:
                stored[position] = state
            else:
                rows[position] = (*row[:5], *state)  # type: ignore[index]
        self.entries += len(states)

    def _merge_done(self, key: int, positions: list[int]) -> None:
        rows, states = self.queue.get(key), self.states.get(key)
        gone = self.done.get(key)
        for position in positions:
            if rows and rows.pop(position, None) is not None:
                continue
            if states:
                states.pop(position, None)
            if gone is None:
                gone = self.done[key] = []
            gone.append(position)
        self.entries += len(positions)

    def _end(self, key: int) -> None:
        self.ended.append(key)
        self.sessions.pop(key, None)
        tables: tuple[dict[int, Any], ...] = (self.queue, self.states, self.done)
        for table in tables:
            table.pop(key, None)
        for subscription in [name for name in self.subscriptions if name[0] == key]:
            del self.subscriptions[subscription]
        for position in [name for name in self.positions if name[0] == key]:
            del self.positions[position]
        for received in [name for name in self.received if name[0] == key]:
            del self.received[received]
