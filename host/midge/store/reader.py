"""Reads single queues and retained messages back, beside the writer, through a connection of its own.
Knows the tables; sees what is settled in them, not the journal.

The event loop's thread calls it: 100 rows of a queue take it 0.3 ms, a retained message 10 us.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from midge.core.changes import KeptRow, QueueRow, ReadError
from midge.core.message import MessageRow
from midge.store.plain_values import Damaged
from midge.store.retained_names import matching
from midge.store.schema import retained_name
from midge.store.segment_reader import SegmentReader

# What one call gives at most: no more than the loop can handle in a millisecond or two.
_ROWS_MAX = 200
_BYTES_MAX = 1_000_000

_QUEUE = """
SELECT position, q.qos, q.retain, identifiers, shared, packet_id, is_released, message_key,
    coalesce(m.topic, q.topic), coalesce(m.payload, q.payload), coalesce(m.qos, message_qos),
    coalesce(m.retain, message_retain), coalesce(m.properties, q.properties),
    coalesce(m.expires_at, q.expires_at)
FROM queue q LEFT JOIN messages m ON m.key = message_key
WHERE session_key = ? AND position > ? ORDER BY position LIMIT ?
"""


class SqliteReader:
    """See `midge.core.changes.Reader`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False, timeout=1
        )

        self._segments = SegmentReader(self._db)

    def close(self) -> None:
        self._db.close()

    def kept(self, topic_filter: str, after: int, end: int) -> tuple[list[KeptRow], int]:
        with self._errors_named():
            return self._segments.kept(topic_filter, after, end)

    def kept_since(self, topic_filter: str, since: float) -> int | None:
        with self._errors_named():
            return self._segments.kept_since(topic_filter, since)

    def queue(self, session_key: int, after: int) -> list[tuple[int, QueueRow]]:
        with self._errors_named():
            return self._queue(session_key, after)

    def retained(self, topic_filter: str, after: bytes | None) -> tuple[list[MessageRow], bytes | None]:
        with self._errors_named():
            return self._retained(topic_filter, after)

    def retained_message(self, topic: str) -> MessageRow | None:
        with self._errors_named():
            found = self._db.execute("SELECT * FROM retained WHERE name = ?", (retained_name(topic),)).fetchone()
        return None if found is None else _retained(found)

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, Damaged) as error:
            raise ReadError(f"{self._path} can't be read: {error}") from error

    def _queue(self, session_key: int, after: int) -> list[tuple[int, QueueRow]]:
        rows: list[tuple[int, QueueRow]] = []
        size = 0
        found = self._db.execute(_QUEUE, (session_key, after, _ROWS_MAX))
        for (
            position, qos, retain, identifiers, shared, packet_id, is_released,
            key, topic, payload, message_qos, message_retain, properties, expires_at,
        ) in found:  # fmt: skip
            message = (key or 0, topic, payload, message_qos, bool(message_retain), properties, expires_at)
            wanted = tuple(json.loads(identifiers)) if identifiers else ()
            rows.append(
                (position, (message, qos, bool(retain), wanted, shared or "", packet_id, bool(is_released)))
            )
            size += len(payload)
            if size >= _BYTES_MAX:
                found.close()
                break
        return rows

    def _retained(self, topic_filter: str, after: bytes | None) -> tuple[list[MessageRow], bytes | None]:
        rows: list[MessageRow] = []
        size = 0
        at: bytes | None = after or b""
        while at is not None:
            match, at = matching(topic_filter, at, self._seek)
            if match is None:
                return rows, at
            found = self._db.execute(
                "SELECT * FROM retained WHERE name >= ? AND name < ? ORDER BY name LIMIT ?",
                (*match, _ROWS_MAX - len(rows)),
            )
            for values in found:
                rows.append(_retained(values))
                size += len(values[1])
                if size >= _BYTES_MAX or len(rows) >= _ROWS_MAX:
                    found.close()
                    return rows, values[0] + b"\0"
        return rows, None

    def _seek(self, name: bytes) -> bytes | None:
        row = self._db.execute("SELECT name FROM retained WHERE name >= ? ORDER BY name LIMIT 1", (name,)).fetchone()
        return None if row is None else row[0]


def _retained(values: tuple[Any, ...]) -> MessageRow:
    name, payload, qos, properties, expires_at = values
    return (0, name.replace(b"\0", b"/").decode(), payload, qos, True, properties, expires_at)
