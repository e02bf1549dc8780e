"""The store in one SQLite file: batches are committed to a journal in it, and settled in its tables later.
Knows tables and rows; what they mean is the core's.

One row of the journal per batch is one write, however many messages are in it; nine of ten messages are
acknowledged before the tables would see them. Cost of a message that comes and goes, in us of CPU (SQLite
3.40, batches of 200): 10.1 with a row in each of two tables, 5 to 6 with one row, 1.2 with the journal.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from midge.core.changes import (
    Batch,
    QueueRow,
    QueueSummary,
    SessionRow,
    Snapshot,
    SubscriptionRow,
    WillRow,
)
from midge.core.history import HistoryRule
from midge.core.message import MessageRow
from midge.store import StoreError, plain_values
from midge.store.lock import FileLock
from midge.store.plain_values import Damaged
from midge.store.reader import SqliteReader
from midge.store.schema import APPLICATION_ID, MIGRATIONS, VERSION, retained_name
from midge.store.segments import Segments
from midge.store.unsettled import Unsettled

# FULL: SQLite waits for the disk at each commit, so a commit survives power loss. OFF: it survives the
# death of our process, not that of the machine (https://www.sqlite.org/pragma.html#pragma_synchronous).
_SYNCHRONOUS = {"commit": "FULL", "interval": "NORMAL", "none": "OFF"}

# Rows and bytes of payload in the journal before they are settled: the more, the more are gone by then, and
# the longer a commit may have to wait behind it (some 10 ms for 5,000 rows that are still there).
_SETTLE_ENTRIES = 5000
_SETTLE_BYTES = 4_000_000
# Payloads up to this size, in bytes, stand in the queue's own row: SQLite keeps rows up to a quarter of a
# page (4 KiB) whole in such a table (https://www.sqlite.org/withoutrowid.html).
_INLINE_MAX = 512
# Rows per statement: between two statements Python's lock is taken and given back, which costs more than
# the row when the event loop is busy. SQLite allows 32,766 values per statement.
_ROWS_PER_STATEMENT = 64
# Pages (4 KiB) in the write-ahead log before it is copied into the file. SQLite's default is 1,000; less
# often means that pages that are written again and again are copied once.
_CHECKPOINT_PAGES = 4000
# A disk that takes longer than this for a write, in s, is given smaller portions of all three, down to this part:
# else whoever waits for a small message waits seconds for others' large ones. On 8 MB/s and 200 writes a second
# (an SD card) a publisher beside one of 4 kB messages waited 3.5 s at the 99th percentile, and 0.5 s with it.
_SLOW_WRITE_S = 0.25
_PORTION_MIN = 1 / 16


_NOT_OPEN: Any = None


class SqliteStore:
    """One file, written by one process at a time: a second one is refused."""

    def __init__(self, path: Path, durability: str = "commit") -> None:
        """Open or make the file at *path*; *durability* is "commit", "interval" or "none" (see `_SYNCHRONOUS`).
        StoreError: the file can't be opened, isn't ours, is damaged, or belongs to a running broker."""
        self.path = path
        self.portion = _PORTION_MIN  # see _SLOW_WRITE_S; a fast disk is known after some dozen writes
        self._unsettled = Unsettled()
        self._lock: FileLock | None = None
        self._db: sqlite3.Connection = _NOT_OPEN
        self._reader: SqliteReader | None = None
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path.with_name(path.name + "-lock"))
        try:
            with self._explained():
                # One thread at a time uses the connection: the event loop's until `load` has returned, then
                # the writer's.
                self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1)
                self._open(_SYNCHRONOUS[durability])
                self._segments = Segments(self._db)
                self._replay()
                self._reader = SqliteReader(path)
        except StoreError:
            self.close()
            raise

    def _open(self, synchronous: str) -> None:
        db = self._db
        # Reading the schema tells a file that isn't a database, or is damaged, before anything is written.
        has_tables = bool(db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
        version: int = db.execute("PRAGMA user_version").fetchone()[0]
        application_id: int = db.execute("PRAGMA application_id").fetchone()[0]
        if has_tables and application_id != APPLICATION_ID:
            raise StoreError(f"{self.path} is a database of another program: give another path for the store")
        if version > VERSION:
            raise StoreError(
                f"{self.path} was written by a newer midge (store version {version}, this one knows "
                f"{VERSION}): upgrade midge, or give another path for the store"
            )
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={synchronous}")
        db.execute(f"PRAGMA wal_autocheckpoint={int(_CHECKPOINT_PAGES * self.portion)}")
        db.create_function("retained_name", 1, retained_name, deterministic=True)
        with self._transaction():
            for step in range(version + 1, VERSION + 1):
                for statement in MIGRATIONS[step]:
                    db.execute(statement)
            if version != VERSION:
                db.execute(f"PRAGMA application_id={APPLICATION_ID}")
                db.execute(f"PRAGMA user_version={VERSION}")

    def _replay(self) -> None:
        """Settle what the last process had only in the journal."""
        for number, data in self._db.execute("SELECT number, batch FROM journal ORDER BY number"):
            self._unsettled.merge(_batch_of(number, data))
        self._settle()
        self._unsettled.number = 0  # batches are numbered anew

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:  # SQLite has undone it itself when the disk is full
                db.execute("ROLLBACK")
            raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors as a StoreError that names the file."""
        try:
            yield
        except (OSError, sqlite3.Error, Damaged) as error:
            raise StoreError(_explain(self.path, error)) from error

    # -- reading --

    @property
    def reader(self) -> SqliteReader:
        assert self._reader is not None
        return self._reader

    def load(self) -> Snapshot:
        with self._explained():
            return self._load()

    def _load(self) -> Snapshot:
        select = self._db.execute
        count, size = select(
            "SELECT count(*), coalesce(sum(length(name) + length(payload)), 0) FROM retained"
        ).fetchone()
        snapshot = Snapshot(
            sessions=[SessionRow(*row) for row in select("SELECT * FROM sessions")],
            subscriptions=[
                SubscriptionRow(key, topic_filter, qos, bool(no_local), bool(as_published), identifier)
                for key, topic_filter, qos, no_local, as_published, identifier in select(
                    "SELECT * FROM subscriptions"
                )
            ],
            received=[
                (session_key, packet_id) for session_key, packet_id in select("SELECT * FROM received")
            ],
            wills=[
                WillRow(key, client_id, (0, topic, payload, qos, bool(retain), properties, expires), delay, due)
                for key, client_id, topic, payload, qos, retain, properties, expires, delay, due in select(
                    "SELECT * FROM wills"
                )
            ],
            retained_count=count,
            retained_bytes=size,
            next_message_key=select("SELECT coalesce(max(key), 0) + 1 FROM messages").fetchone()[0],
            positions={(key, name): after for key, name, after in select("SELECT * FROM positions")},
            last_kept=self._segments.last,
            kept_count=self._segments.count,
            kept_bytes=self._segments.bytes,
        )
        self._load_queues(snapshot)
        return snapshot

    def _load_queues(self, snapshot: Snapshot) -> None:
        for key, count, size, last in self._db.execute(
            "SELECT session_key, count(*), sum(size), max(position) FROM queue GROUP BY session_key"
        ):
            snapshot.queues[key] = QueueSummary(count, size, last)
            # What was sent comes before what wasn't, in any queue.
            after, in_flight = 0, snapshot.in_flight.setdefault(key, [])
            while rows := self.reader.queue(key, after):
                sent = [row for row in rows if row[1][5]]
                in_flight += sent
                after = rows[-1][0]
                if len(sent) < len(rows):
                    break
            for _, row in in_flight:
                snapshot.queues[key].count -= 1
                snapshot.queues[key].bytes -= len(row[0][1]) + len(row[0][2])

    # -- what is kept for replay --

    def set_histories(self, rules: list[HistoryRule]) -> None:
        """What is kept, and how long. Any thread may call it."""
        self._segments.configure(rules)

    @property
    def kept_size(self) -> tuple[int, int]:
        """Messages that are kept for replay, and bytes of their topic names and payloads."""
        return self._segments.count, self._segments.bytes

    @property
    def is_untidy(self) -> bool:
        return self._segments.is_untidy

    def tidy(self, now: float) -> bool:
        with self._explained(), self._segments_restored(), self._transaction():
            return self._segments.compact(now)

    @contextmanager
    def _segments_restored(self) -> Iterator[None]:
        """If the transaction fails, what is known of them is read anew."""
        try:
            yield
        except BaseException:
            self._segments.load()
            raise

    # -- writing --

    def write(self, batch: Batch) -> int:
        """Commit *batch*, and settle what was committed if it is time to; number of the last that is settled."""
        start = time.monotonic()
        with self._explained():
            # A transaction of its own.
            self._db.execute("INSERT INTO journal VALUES (?,?)", (batch.number, _data_of(batch)))
        unsettled = self._unsettled
        settled = unsettled.settled
        unsettled.merge(batch)
        portion = self.portion
        if unsettled.entries >= _SETTLE_ENTRIES * portion or unsettled.bytes >= _SETTLE_BYTES * portion:
            try:
                self._settle()
                settled = batch.number
            except (sqlite3.Error, Damaged):
                # It is committed all the same; most likely the disk is full, and the next commit says so.
                pass
        self._unsettled.settled = settled
        self._adapt(time.monotonic() - start)
        return settled

    def _adapt(self, seconds: float) -> None:
        """A write took so long: halve the portions quickly, or let them grow again slowly."""
        if seconds > _SLOW_WRITE_S:
            portion = max(_PORTION_MIN, self.portion / 2)
        elif seconds < _SLOW_WRITE_S / 4:
            portion = min(1.0, self.portion * 1.05)
        else:
            return
        if portion != self.portion:
            self.portion = portion
            self._db.execute(f"PRAGMA wal_autocheckpoint={int(_CHECKPOINT_PAGES * portion)}")

    def settle(self) -> int:
        """Settle all that is committed, now."""
        with self._explained():
            number = self._unsettled.number
            self._settle()
            self._unsettled.settled = number
            return number

    def _settle(self) -> None:
        """Into the tables with what is left of it. In this order: `messages` must not lose its last reference
        before it has a new one."""
        todo = self._unsettled
        with self._segments_restored(), self._transaction():
            self._segments.settle(todo.kept)
            self._settle_sessions(todo)
            self._settle_queue(todo)
            self._write_rows("retained", 5, _retained_values(todo.retained.items()))
            self._db.executemany(
                "DELETE FROM retained WHERE name=?",
                [(retained_name(topic),) for topic, row in todo.retained.items() if row is None],
            )
            self._db.execute("DELETE FROM journal WHERE number <= ?", (todo.number,))
        self._unsettled = Unsettled()
        self._unsettled.number = todo.number

    def _settle_sessions(self, todo: Unsettled) -> None:
        run = self._db.executemany
        ended = [(key,) for key in todo.ended]
        for table in ("queue", "subscriptions", "received", "positions"):
            run(f"DELETE FROM {table} WHERE session_key=?", ended)
        run("DELETE FROM sessions WHERE key=?", ended)
        run("INSERT OR REPLACE INTO sessions VALUES (?,?,?,?)", list(todo.sessions.values()))
        run(
            "INSERT OR REPLACE INTO subscriptions VALUES (?,?,?,?,?,?)",
            [row for row in todo.subscriptions.values() if row],
        )
        run(
            "DELETE FROM subscriptions WHERE session_key=? AND topic_filter=?",
            [key for key, row in todo.subscriptions.items() if row is None],
        )
        positions = todo.positions.items()
        run(
            "INSERT OR REPLACE INTO positions VALUES (?,?,?)",
            [(*key, after) for key, after in positions if after is not None],
        )
        run(
            "DELETE FROM positions WHERE session_key=? AND topic_filter=?",
            [key for key, after in positions if after is None],
        )
        received = todo.received.items()
        run("INSERT OR REPLACE INTO received VALUES (?,?)", [key for key, is_there in received if is_there])
        run(
            "DELETE FROM received WHERE session_key=? AND packet_id=?",
            [key for key, is_there in received if not is_there],
        )
        run("DELETE FROM wills WHERE session_key=?", [(key,) for key, row in todo.wills.items() if row is None])
        run("INSERT OR REPLACE INTO wills VALUES (?,?,?,?,?,?,?,?,?,?)", _will_values(todo.wills.values()))

    def _settle_queue(self, todo: Unsettled) -> None:
        waiting = Counter(row[0][0] for rows in todo.queue.values() for row in rows.values())
        shared: dict[int, MessageRow] = {}
        for rows in todo.queue.values():
            for row in rows.values():
                message = row[0]
                if waiting[message[0]] > 1 or len(message[2]) > _INLINE_MAX:
                    shared[message[0]] = message
        for key, message in shared.items():
            self._db.execute(
                "INSERT INTO messages VALUES (?,?,?,?,?,?,?,?) ON CONFLICT (key) DO UPDATE SET "
                "queued = queued + excluded.queued",
                (key, waiting[key], *message[1:]),
            )
        self._write_rows(
            "queue",
            16,
            [
                _queue_values(key, position, row, row[0][0] in shared)
                for key, rows in todo.queue.items()
                for position, row in rows.items()
            ],
        )
        self._db.executemany(
            "UPDATE queue SET packet_id=?, is_released=? WHERE session_key=? AND position=?",
            [
                (packet_id, is_released, key, position)
                for key, states in todo.states.items()
                for position, (packet_id, is_released) in states.items()
            ],
        )
        self._db.executemany(
            "DELETE FROM queue WHERE session_key=? AND position BETWEEN ? AND ?",
            [(key, first, last) for key, gone in todo.done.items() for first, last in _ranges(gone)],
        )

    def _write_rows(self, table: str, width: int, rows: list[tuple[Any, ...]]) -> None:
        values = f"({','.join('?' * width)})"
        at = 0
        while len(rows) - at >= _ROWS_PER_STATEMENT:
            statement = f"INSERT OR REPLACE INTO {table} VALUES {','.join([values] * _ROWS_PER_STATEMENT)}"
            flat = [value for row in rows[at : at + _ROWS_PER_STATEMENT] for value in row]
            self._db.execute(statement, flat)
            at += _ROWS_PER_STATEMENT
        self._db.executemany(f"INSERT OR REPLACE INTO {table} VALUES {values}", rows[at:])

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        if self._db is not _NOT_OPEN:
            self._db.close()
        if self._lock is not None:
            self._lock.release()


def _explain(path: Path, error: Exception) -> str:
    text = str(error)
    if isinstance(error, BlockingIOError) or "locked" in text:
        return f"{path} is in use by another process: stop that broker, or give another path for the store"
    if "disk is full" in text:
        return f"{path}: the disk is full"
    if "malformed" in text or "not a database" in text or isinstance(error, Damaged):
        return f"{path} is damaged ({text}): move it away to start empty, or restore a copy"
    return f"{path}: {text}"


# -- rows and values --


def _data_of(batch: Batch) -> bytes:
    """*batch* as it stands in the journal: each message once, however often it is referred to."""
    parts = (
        {key: tuple(row) for key, row in batch.sessions.items()},
        {key: row and tuple(row) for key, row in batch.subscriptions.items()},
        batch.queue,
        batch.states,
        batch.done,
        batch.received,
        batch.retained,
        {key: row and tuple(row) for key, row in batch.wills.items()},
        batch.ended,
        batch.kept,
        batch.positions,
    )
    return plain_values.encode(parts)


def _batch_of(number: int, data: bytes) -> Batch:
    parts = plain_values.decode(data, f"batch {number} of the journal")
    try:
        sessions, subscriptions, queue, states, done, received, retained, wills, ended, *later = parts
        kept, positions = later or ({}, {})  # since version 3
        return Batch(
            number,
            {key: SessionRow(*row) for key, row in sessions.items()},
            {key: row and SubscriptionRow(*row) for key, row in subscriptions.items()},
            queue,
            states,
            done,
            received,
            retained,
            {key: row and WillRow(*row) for key, row in wills.items()},
            ended,
            kept,
            positions,
        )
    except Exception as error:  # whatever else is there
        raise Damaged(f"batch {number} of the journal: {error!r}") from error


def _queue_values(session_key: int, position: int, row: QueueRow, is_shared: bool) -> tuple[Any, ...]:
    message, qos, retain, identifiers, shared, packet_id, is_released = row
    key, topic, payload, message_qos, message_retain, properties, expires_at = message
    head = (
        session_key,
        position,
        qos,
        retain,
        json.dumps(identifiers) if identifiers else None,
        shared or None,
        packet_id,
        is_released,
        len(topic) + len(payload),
    )
    if is_shared:
        return (*head, key, None, None, None, None, None, None)
    return (*head, None, topic, payload, message_qos, message_retain, properties, expires_at)


def _retained_values(rows: Iterable[tuple[str, MessageRow | None]]) -> list[tuple[Any, ...]]:
    """In the table's order: so each of its pages is written once, which is most of the work."""
    return sorted(
        (retained_name(topic), row[2], row[3], row[5], row[6]) for topic, row in rows if row is not None
    )


def _will_values(rows: Iterable[WillRow | None]) -> list[tuple[Any, ...]]:
    return [
        (row.session_key, row.client_id, *row.message[1:], row.delay_s, row.due)
        for row in rows
        if row is not None
    ]


def _ranges(positions: list[int]) -> list[tuple[int, int]]:
    """The positions as ranges without gaps: one statement deletes what was acknowledged in one go."""
    ranges: list[tuple[int, int]] = []
    for position in sorted(positions):
        if ranges and position == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], position)
        else:
            ranges.append((position, position))
    return ranges
