"""Reads what is kept for replay back, in order, however many histories it is in.
Knows the tables of `segments`; uses the event loop's connection, so that each call is short.
"""

from __future__ import annotations

import sqlite3
from operator import itemgetter

from midge.core.changes import KeptRow
from midge.protocol.topics import matches, overlap
from midge.store.segments import names_of, rows_of

# Decoded segments that are remembered (some 200 kB each), for those who read several histories at once, or the same.
_CACHED = 8
# Segments that one call looks at, where none has a topic name that matches.
_LOOKED_AT = 20


class SegmentReader:
    """See `midge.core.changes.Reader`."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._cache: dict[tuple[int, int], list[KeptRow]] = {}  # by the first number and the count

    def kept(self, topic_filter: str, after: int, end: int) -> tuple[list[KeptRow], int]:
        for _ in range(_LOOKED_AT):
            rows, upto = self._next(topic_filter, after, end)
            if rows or upto >= end:
                return rows, upto
            after = upto
        return [], after

    def kept_since(self, topic_filter: str, since: float) -> int | None:
        found = []
        for key in self._histories(topic_filter):
            segment = self._db.execute(
                "SELECT first, count FROM segments WHERE history=? AND last_at>=? ORDER BY last LIMIT 1", (key, since)
            ).fetchone()
            if segment is not None:
                found += [row[0] for row in self._rows(*segment) if row[1] >= since][:1]
        return min(found, default=None)

    def _histories(self, topic_filter: str) -> list[int]:
        found = self._db.execute("SELECT key, filter FROM histories").fetchall()
        return [key for key, name in found if overlap(name, topic_filter)]

    def _next(self, topic_filter: str, after: int, end: int) -> tuple[list[KeptRow], int]:
        """Of each history the next segment; of them, what no later segment can come before."""
        segments = []
        for key in self._histories(topic_filter):
            found = self._db.execute(
                "SELECT first, last, count FROM segments WHERE history=? AND last>? ORDER BY last LIMIT 2", (key, after)
            ).fetchall()
            if found and found[0][0] <= end:
                segments.append(found[0])
                if len(found) > 1:
                    end = min(end, found[0][1])
        rows: list[KeptRow] = []
        for first, _, count in segments:
            if first <= end:
                rows += [row for row in self._matching(first, count, topic_filter) if after < row[0] <= end]
        if len(segments) > 1:
            rows.sort(key=itemgetter(0))
        return rows, end

    def _matching(self, first: int, count: int, topic_filter: str) -> list[KeptRow]:
        found = self._db.execute("SELECT topics FROM segments WHERE first=?", (first,)).fetchone()
        if found is None:
            return []  # its time was over
        names = names_of(found[0])
        wanted = {name for name in names if matches(topic_filter, name)}
        if not wanted:
            return []
        rows = self._rows(first, count)
        return rows if len(wanted) == len(names) else [row for row in rows if row[2][1] in wanted]

    def _rows(self, first: int, count: int) -> list[KeptRow]:
        rows = self._cache.get((first, count))
        if rows is None:
            found = self._db.execute("SELECT topics, messages FROM segments WHERE first=?", (first,)).fetchone()
            if found is None:
                return []
            rows = rows_of(*found)
            while len(self._cache) >= _CACHED:
                del self._cache[next(iter(self._cache))]
            self._cache[first, count] = rows
        return rows
