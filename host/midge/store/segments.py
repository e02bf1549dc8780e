"""Messages that are kept for replay, in segments: some hundreds of one history's messages as one row.
Knows tables and limits; who reads is not its business.

A row per segment is what makes a history cheap to forget: its oldest part goes as one row, and what it leaves free is
used again. Limits therefore hold to within a segment, which is at most a sixteenth of any of them.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from midge.core.changes import KeptRow
from midge.core.history import HistoryRule
from midge.store import plain_values

# Messages, and bytes of topic names and payloads, of one segment: what is read, decoded (0.2 ms) and held in memory for
# one reader at a time.
_MESSAGES_MAX = 256
_BYTES_MAX = 128_000
# A segment is at most this part of what its history may hold.
_PART = 16
# Segments that one step of `compact` removes at most: some milliseconds, for which a commit may have to wait.
_STEP = 16


@dataclass(slots=True)
class _Open:
    """A history's last segment, to which more may be added."""

    rows: list[KeptRow]
    bytes: int


class _Log:
    """What is in the store of one history, and its limits."""

    def __init__(self, key: int, rule: HistoryRule) -> None:
        self.key = key
        self.rule = rule
        self.count = 0
        self.bytes = 0
        self.last = 0  # number of the last message
        self.open: _Open | None = None  # not read back yet if there is one in the store

    def is_full(self, rows: list[KeptRow], size: int, row: KeptRow) -> bool:
        """Whether *row* has to begin another segment than that of *rows*, which have *size* bytes."""
        rule = self.rule
        return (
            len(rows) >= min(_MESSAGES_MAX, max(1, rule.max_messages // _PART))
            or size + size_of(row) > min(_BYTES_MAX, rule.max_bytes // _PART)
            or row[1] - rows[0][1] > rule.age_s / _PART
        )


class Segments:
    """The writer's side; uses the writer's connection, in its transactions."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._logs: dict[str, _Log] = {}  # by topic filter, also of histories that the configuration has no more
        self.is_untidy = False  # some history holds more than it may; set by `settle`, cleared by `compact`
        self._configured: list[HistoryRule] | None = None
        self._new_rules: list[HistoryRule] | None = None  # of these, what is still to be taken over
        self.load()

    def configure(self, rules: list[HistoryRule]) -> None:
        """From another thread: they are taken over with what is written next."""
        self._configured = self._new_rules = rules

    def load(self) -> None:
        """Read what there is, at the start and after a transaction that failed."""
        self._logs = {}
        self._new_rules = self._configured
        found = self._db.execute(
            "SELECT key, filter, age_s, max_messages, max_bytes, last, (SELECT coalesce(sum(count), 0) FROM segments "
            "WHERE history = key), (SELECT coalesce(sum(bytes), 0) FROM segments WHERE history = key) FROM histories"
        )
        for key, name, age_s, max_messages, max_bytes, last, count, size in found:
            log = self._logs[name] = _Log(key, HistoryRule(name, age_s, max_messages, max_bytes))
            log.last, log.count, log.bytes = last, count, size

    @property
    def last(self) -> int:
        return max((log.last for log in self._logs.values()), default=0)

    @property
    def count(self) -> int:
        return sum(log.count for log in list(self._logs.values()))

    @property
    def bytes(self) -> int:
        return sum(log.bytes for log in list(self._logs.values()))

    def _take_rules(self) -> None:
        """A history that is in the configuration no more keeps the last limits that it had."""
        rules, self._new_rules = self._new_rules, None
        for rule in rules or ():
            log = self._log(rule.topic_filter)
            log.rule = rule
            self._db.execute(
                "UPDATE histories SET age_s=?, max_messages=?, max_bytes=? WHERE key=?", (*rule[1:], log.key)
            )
            self.is_untidy = True

    def _log(self, name: str) -> _Log:
        log = self._logs.get(name)
        if log is None:
            forever = HistoryRule(name, 1e12, 2**62, 2**62)  # until its limits are known
            key = self._db.execute(
                "INSERT INTO histories (filter, last, age_s, max_messages, max_bytes) VALUES (?,0,?,?,?)", forever
            ).lastrowid
            assert key is not None
            log = self._logs[name] = _Log(key, forever)
        return log

    # -- writing --

    def settle(self, kept: dict[str, list[KeptRow]]) -> None:
        if self._new_rules is not None:
            self._take_rules()
        for name, rows in kept.items():
            self._append(self._log(name), rows)

    def _append(self, log: _Log, rows: list[KeptRow]) -> None:
        segment = log.open or self._read_open(log)
        is_new = False  # there is something in `segment` that isn't written
        for row in rows:
            if segment.rows and log.is_full(segment.rows, segment.bytes, row):
                if is_new:
                    self._write(log, segment)
                segment = _Open([], 0)
            segment.rows.append(row)
            size = size_of(row)
            segment.bytes += size
            log.bytes += size
            is_new = True
        self._write(log, segment)
        log.open = segment
        log.count += len(rows)
        log.last = rows[-1][0]
        self._db.execute("UPDATE histories SET last=? WHERE key=?", (log.last, log.key))
        if log.count > log.rule.max_messages or log.bytes > log.rule.max_bytes:
            self.is_untidy = True

    def _read_open(self, log: _Log) -> _Open:
        found = self._db.execute(
            "SELECT topics, messages, bytes FROM segments WHERE history=? ORDER BY last DESC LIMIT 1", (log.key,)
        ).fetchone()
        if found is None:
            return _Open([], 0)
        try:
            return _Open(rows_of(found[0], found[1]), found[2])
        except plain_values.Damaged:
            return _Open([], 0)  # whoever reads it is told; what comes is kept all the same

    def _write(self, log: _Log, segment: _Open) -> None:
        rows = segment.rows
        topics: dict[str, int] = {}
        values = []
        for sequence, at, (_, topic, payload, qos, retain, properties, expires_at) in rows:
            number = topics.setdefault(topic, len(topics))
            values.append((sequence, at, number, payload, qos, retain, properties, expires_at))
        self._db.execute(
            "INSERT OR REPLACE INTO segments VALUES (?,?,?,?,?,?,?,?)",
            (
                rows[0][0],
                log.key,
                rows[-1][0],
                max([row[1] for row in rows]),
                len(rows),
                segment.bytes,
                "\0".join(topics).encode(),  # no topic name contains NUL
                plain_values.encode(values),
            ),
        )

    def compact(self, now: float) -> bool:
        """Remove what is older than it may be, or more than there may be: the oldest segments, a few at a time. True:
        there may be more of them. *now*: s since the epoch."""
        if self._new_rules is not None:
            self._take_rules()
        self.is_untidy = False
        for log in self._logs.values():
            self.is_untidy |= self._compact(log, now)
        return self.is_untidy

    def _compact(self, log: _Log, now: float) -> bool:
        rule, gone = log.rule, 0
        for first, last, last_at, count, size in self._db.execute(
            "SELECT first, last, last_at, count, bytes FROM segments WHERE history=? ORDER BY last LIMIT ?",
            (log.key, _STEP),
        ).fetchall():
            is_old = last_at < now - rule.age_s
            if not (is_old or log.count > rule.max_messages or log.bytes > rule.max_bytes):
                break
            self._db.execute("DELETE FROM segments WHERE first=?", (first,))
            log.count -= count
            log.bytes -= size
            gone += 1
            if last == log.last:
                log.open = _Open([], 0)
        return gone == _STEP


def rows_of(topics: bytes, messages: bytes) -> list[KeptRow]:
    """The messages of a segment; their keys are 0: nothing else refers to them."""
    names = names_of(topics)
    return [
        (sequence, at, (0, names[number], payload, qos, retain, properties, expires_at))
        for sequence, at, number, payload, qos, retain, properties, expires_at in plain_values.decode(
            messages, "a segment of a history"
        )
    ]


def names_of(topics: bytes) -> list[str]:
    """The topic names of a segment, each once."""
    return topics.decode().split("\0")


def size_of(row: KeptRow) -> int:
    """bytes that it is counted with."""
    return len(row[2][1]) + len(row[2][2])
