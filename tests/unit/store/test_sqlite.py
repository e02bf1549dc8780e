"""The SQLite store: what was written is there again, all of a batch or nothing, and a bad file is refused."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from midge.core.changes import Batch, MessageRow, QueueRow, SessionRow, SubscriptionRow
from midge.protocol.packets import Properties
from midge.store import StoreError, open_store
from midge.store.sqlite import SqliteStore

PROPERTIES: Properties = {
    "payload_format_indicator": 1,
    "content_type": "text/plain",
    "response_topic": "r",
    "correlation_data": b"\x00\xff",
    "user_property": [("b", "2"), ("a", "1")],
}


def full_batch() -> Batch:
    batch = Batch(1)
    batch.sessions[1] = SessionRow(1, "one", 0xFFFF_FFFF, 12.5)
    batch.sessions[2] = SessionRow(2, "zwei/ä", 60, None)
    batch.subscriptions[1, "a/#"] = SubscriptionRow(1, "a/#", 2, True, False, 7)
    batch.messages[1] = MessageRow(1, "a/b", b"\x00payload", 2, True, PROPERTIES, 99.5)
    batch.messages[2] = MessageRow(2, "ü", b"", 1, False, None, None)
    batch.queue[1, 10] = QueueRow(1, 10, 2, 1, False, (), 0, False)
    batch.queue[1, 9] = QueueRow(1, 9, 1, 2, True, (7, 8), 3, True)
    batch.received[2, 5] = (2, 5)
    batch.retained["a/b"] = ("a/b", 1)
    return batch


def test_everything_that_was_written_is_loaded_again(tmp_path: Path) -> None:
    batch = full_batch()
    store = SqliteStore(tmp_path / "midge.db")
    store.load()
    store.write(batch)
    store.close()
    again = SqliteStore(tmp_path / "midge.db")
    snapshot = again.load()
    again.close()
    assert snapshot.sessions == [batch.sessions[1], batch.sessions[2]]
    assert snapshot.subscriptions == list(batch.subscriptions.values())
    assert snapshot.messages == [batch.messages[1], batch.messages[2]]
    assert snapshot.queue == [batch.queue[1, 9], batch.queue[1, 10]]
    assert snapshot.received == [(2, 5)]
    assert snapshot.retained == [("a/b", 1)]


def test_deleted_and_replaced_rows_are(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "midge.db")
    store.write(full_batch())
    batch = Batch(2)
    batch.sessions[2] = None
    batch.sessions[1] = SessionRow(1, "one", 5, None)
    batch.subscriptions[1, "a/#"] = None
    batch.messages[2] = None
    batch.queue[1, 10] = None
    batch.queue[1, 9] = QueueRow(1, 9, 1, 2, True, (), 4, False)
    batch.received[2, 5] = None
    batch.retained["a/b"] = None
    store.write(batch)
    snapshot = store.load()
    store.close()
    assert snapshot.sessions == [SessionRow(1, "one", 5, None)]
    assert snapshot.queue == [QueueRow(1, 9, 1, 2, True, (), 4, False)]
    assert [message.key for message in snapshot.messages] == [1]
    assert snapshot.subscriptions == [] and snapshot.received == [] and snapshot.retained == []


def test_a_session_replaced_by_another_with_its_client_identifier_is(tmp_path: Path) -> None:
    """A clean start: the old session goes and the new one comes, within one batch."""
    store = SqliteStore(tmp_path / "midge.db")
    store.write(full_batch())
    batch = Batch(2)
    batch.sessions[1] = None
    batch.sessions[3] = SessionRow(3, "one", 5, None)
    store.write(batch)
    assert SessionRow(3, "one", 5, None) in store.load().sessions
    store.close()


def test_a_batch_that_fails_is_undone_whole(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "midge.db")
    batch = full_batch()
    batch.retained["bad"] = ("bad", None)  # type: ignore[assignment]  # NOT NULL fails, last of all tables
    with pytest.raises(StoreError):
        store.write(batch)
    assert store.load().sessions == []
    store.write(full_batch())
    assert len(store.load().sessions) == 2
    store.close()


def test_what_write_returned_for_survives_the_death_of_the_process(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from midge.core.changes import Batch, SessionRow; from midge.store.sqlite import SqliteStore\n"
        "store = SqliteStore(Path(sys.argv[1])); batch = Batch(1)\n"
        "batch.sessions[1] = SessionRow(1, 'one', 5, None); store.write(batch); os.kill(os.getpid(), 9)"
    )
    host = Path(__file__).parents[3] / "host"
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "midge.db", host], timeout=30)
    assert done.returncode == -9
    store = SqliteStore(tmp_path / "midge.db")
    assert store.load().sessions == [SessionRow(1, "one", 5, None)]
    store.close()


def test_a_store_in_use_is_refused(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "midge.db")
    with pytest.raises(StoreError, match=r"midge\.db is in use by another process: stop that broker"):
        SqliteStore(tmp_path / "midge.db")
    store.close()


def test_a_store_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "midge.db"
    SqliteStore(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(StoreError, match=r"newer midge \(store version 99"):
        SqliteStore(path)


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs (x)")
    db.close()
    with pytest.raises(StoreError, match="another program"):
        SqliteStore(path)


def test_a_damaged_file_is_refused_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "midge.db"
    path.write_bytes(b"this is no database, but somebody's letters" * 100)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"midge\.db is damaged"):
        SqliteStore(path)
    assert path.read_bytes() == before


def test_a_directory_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        SqliteStore(tmp_path / "file" / "midge.db")


def test_memory_keeps_nothing_and_is_no_store(tmp_path: Path) -> None:
    assert open_store(":memory:", "commit", tmp_path) is None
    store = open_store("midge.db", "commit", tmp_path)
    assert store is not None
    store.close()
    assert (tmp_path / "midge.db").exists()
