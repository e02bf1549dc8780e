"""The store in one SQLite file: one transaction per batch, on disk before it is acknowledged.
Knows tables and rows; what they mean is the core's.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from midge.core.changes import Batch, MessageRow, QueueRow, SessionRow, Snapshot, SubscriptionRow
from midge.protocol.properties import decode_properties, encode_properties
from midge.store import StoreError

# The version of the tables, in SQLite's own `user_version`. Each change of them adds a step to
# _MIGRATIONS; a file of a later version is refused, never guessed at.
SCHEMA_VERSION = 1

# "midg" in SQLite's `application_id`: tells our file from another program's database.
_APPLICATION_ID = 0x6D69_6467

_SCHEMA_1 = """
CREATE TABLE sessions (
    key INTEGER PRIMARY KEY, client_id TEXT NOT NULL UNIQUE, expiry_s INTEGER NOT NULL, ended_at REAL
);
CREATE TABLE subscriptions (
    session_key INTEGER NOT NULL, topic_filter TEXT NOT NULL, qos INTEGER NOT NULL,
    no_local INTEGER NOT NULL, retain_as_published INTEGER NOT NULL, identifier INTEGER NOT NULL,
    PRIMARY KEY (session_key, topic_filter)
) WITHOUT ROWID;
CREATE TABLE messages (
    key INTEGER PRIMARY KEY, topic TEXT NOT NULL, payload BLOB NOT NULL, qos INTEGER NOT NULL,
    retain INTEGER NOT NULL, properties BLOB, expires_at REAL
);
CREATE TABLE queue (
    session_key INTEGER NOT NULL, position INTEGER NOT NULL, message_key INTEGER NOT NULL,
    qos INTEGER NOT NULL, retain INTEGER NOT NULL, identifiers TEXT,
    packet_id INTEGER NOT NULL, is_released INTEGER NOT NULL,
    PRIMARY KEY (session_key, position)
) WITHOUT ROWID;
CREATE TABLE received (
    session_key INTEGER NOT NULL, packet_id INTEGER NOT NULL, PRIMARY KEY (session_key, packet_id)
) WITHOUT ROWID;
CREATE TABLE retained (topic TEXT PRIMARY KEY, message_key INTEGER NOT NULL) WITHOUT ROWID;
"""
_MIGRATIONS = {1: _SCHEMA_1}  # what leads to each version from the one before

# FULL: SQLite waits for the disk at each commit, so a commit survives power loss. OFF: it survives the
# death of our process, not that of the machine (https://www.sqlite.org/pragma.html#pragma_synchronous).
_SYNCHRONOUS = {"commit": "FULL", "interval": "NORMAL", "none": "OFF"}

# For each table: how a row is written, how it is deleted by its key.
_STATEMENTS = {
    "sessions": ("INSERT OR REPLACE INTO sessions VALUES (?,?,?,?)", "DELETE FROM sessions WHERE key=?"),
    "subscriptions": (
        "INSERT OR REPLACE INTO subscriptions VALUES (?,?,?,?,?,?)",
        "DELETE FROM subscriptions WHERE session_key=? AND topic_filter=?",
    ),
    "messages": (
        "INSERT OR REPLACE INTO messages VALUES (?,?,?,?,?,?,?)",
        "DELETE FROM messages WHERE key=?",
    ),
    "queue": (
        "INSERT OR REPLACE INTO queue VALUES (?,?,?,?,?,?,?,?)",
        "DELETE FROM queue WHERE session_key=? AND position=?",
    ),
    "received": (
        "INSERT OR REPLACE INTO received VALUES (?,?)",
        "DELETE FROM received WHERE session_key=? AND packet_id=?",
    ),
    "retained": ("INSERT OR REPLACE INTO retained VALUES (?,?)", "DELETE FROM retained WHERE topic=?"),
}


class SqliteStore:
    """One file, written by one process at a time: a second one is refused."""

    def __init__(self, path: Path, durability: str = "commit") -> None:
        """Open or make the file at *path*; *durability* is "commit", "interval" or "none" (see `_SYNCHRONOUS`).
        StoreError: the file can't be opened, isn't ours, is damaged, or belongs to a running broker."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # One thread at a time uses the connection: the event loop's until `load` has returned, then
            # the writer's.
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1)
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._open(_SYNCHRONOUS[durability])
        except (OSError, sqlite3.Error) as error:
            raise StoreError(self._explain(error)) from error

    def _open(self, synchronous: str) -> None:
        db = self._db
        # Reading the schema tells a file that isn't a database, or is damaged, before anything is written.
        has_tables = bool(db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
        version: int = db.execute("PRAGMA user_version").fetchone()[0]
        application_id: int = db.execute("PRAGMA application_id").fetchone()[0]
        if has_tables and application_id != _APPLICATION_ID:
            raise StoreError(f"{self.path} is a database of another program: give another path for the store")
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{self.path} was written by a newer midge (store version {version}, this one knows "
                f"{SCHEMA_VERSION}): upgrade midge, or give another path for the store"
            )
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={synchronous}")
        # The write that takes the exclusive lock: a second broker on the same file fails here.
        db.execute("BEGIN IMMEDIATE")
        for step in range(version + 1, SCHEMA_VERSION + 1):
            for statement in _MIGRATIONS[step].split(";"):
                db.execute(statement)
        db.execute(f"PRAGMA application_id={_APPLICATION_ID}")
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        db.execute("COMMIT")

    def _explain(self, error: Exception) -> str:
        text = str(error)
        if "locked" in text:
            return f"{self.path} is in use by another process: stop that broker, or give another path for the store"
        if "malformed" in text or "not a database" in text:
            return f"{self.path} is damaged ({text}): move it away to start empty, or restore a copy"
        return f"{self.path}: {text}"

    def load(self) -> Snapshot:
        try:
            return self._load()
        except (sqlite3.Error, ValueError, KeyError) as error:
            raise StoreError(self._explain(error)) from error

    def _load(self) -> Snapshot:
        select = self._db.execute
        return Snapshot(
            sessions=[SessionRow(*row) for row in select("SELECT * FROM sessions")],
            subscriptions=[
                SubscriptionRow(key, topic_filter, qos, bool(no_local), bool(as_published), identifier)
                for key, topic_filter, qos, no_local, as_published, identifier in select(
                    "SELECT * FROM subscriptions"
                )
            ],
            messages=[
                MessageRow(
                    key,
                    topic,
                    payload,
                    qos,
                    bool(retain),
                    None if properties is None else decode_properties(properties, "PUBLISH"),
                    expires_at,
                )
                for key, topic, payload, qos, retain, properties, expires_at in select(
                    "SELECT * FROM messages"
                )
            ],
            queue=[
                QueueRow(
                    session_key,
                    position,
                    message_key,
                    qos,
                    bool(retain),
                    tuple(json.loads(identifiers)) if identifiers else (),
                    packet_id,
                    bool(is_released),
                )
                for session_key, position, message_key, qos, retain, identifiers, packet_id, is_released in select(
                    "SELECT * FROM queue ORDER BY session_key, position"
                )
            ],
            received=[
                (session_key, packet_id) for session_key, packet_id in select("SELECT * FROM received")
            ],
            retained=[(topic, key) for topic, key in select("SELECT * FROM retained")],
        )

    def write(self, batch: Batch) -> None:
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            try:
                self._write(batch)
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreError(self._explain(error)) from error

    def _write(self, batch: Batch) -> None:
        self._write_table("sessions", batch.sessions)
        self._write_table("subscriptions", batch.subscriptions)
        self._write_table(
            "messages", {key: row and _message_values(row) for key, row in batch.messages.items()}
        )
        self._write_table("queue", {key: row and _queue_values(row) for key, row in batch.queue.items()})
        self._write_table("received", batch.received)
        self._write_table("retained", batch.retained)

    def _write_table(self, table: str, rows: Mapping[Any, tuple[Any, ...] | None]) -> None:
        if not rows:
            return
        insert, delete = _STATEMENTS[table]
        gone = [key if isinstance(key, tuple) else (key,) for key, row in rows.items() if row is None]
        self._db.executemany(delete, gone)
        self._db.executemany(insert, [row for row in rows.values() if row is not None])

    def close(self) -> None:
        self._db.close()


def _message_values(row: MessageRow) -> tuple[object, ...]:
    properties = None if row.properties is None else encode_properties(row.properties, "PUBLISH")
    return (row.key, row.topic, row.payload, row.qos, row.retain, properties, row.expires_at)


def _queue_values(row: QueueRow) -> tuple[object, ...]:
    identifiers = json.dumps(row.identifiers) if row.identifiers else None
    return (*row[:5], identifiers, row.packet_id, row.is_released)
