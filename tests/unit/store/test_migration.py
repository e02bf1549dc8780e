"""A store that an earlier version wrote is brought up to date, whole or not at all."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from midge.core.changes import QueueSummary, SessionRow, SubscriptionRow
from midge.core.message import Message
from midge.store import StoreError
from midge.store.schema import MIGRATIONS, VERSION
from midge.store.sqlite import SqliteStore

# Written by the last midge with version 1 of the tables.
VERSION_1 = Path(__file__).parent / "version_1.db"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(shutil.copy(VERSION_1, tmp_path / "midge.db"))


def user_version(path: Path) -> int:
    with sqlite3.connect(path) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
    db.close()
    return int(version)


def test_all_that_version_1_held_is_there(path: Path) -> None:
    assert user_version(path) == 1
    store = SqliteStore(path)
    snapshot = store.load()
    assert snapshot.sessions == [SessionRow(1, "one", 0xFFFF_FFFF, 12.5), SessionRow(2, "zwei/ä", 60, None)]
    assert snapshot.subscriptions == [SubscriptionRow(1, "a/#", 2, True, False, 7)]
    assert snapshot.received == [(2, 5)] and snapshot.wills == []
    # What was sent is in flight, with its packet identifier and state; the rest waits.
    ((position, row),) = snapshot.in_flight[1]
    assert (position, row[1:]) == (9, (2, True, (7, 8), "", 3, True))
    sent = Message.restored(row[0])
    assert (sent.topic, sent.payload, sent.qos, sent.retain, sent.expires_at) == ("a/b", b"\x00payload", 2, True, 99.5)
    assert sent.properties is not None and sent.properties["user_property"] == [("b", "2"), ("a", "1")]
    assert snapshot.queues == {1: QueueSummary(2, 20_010, 11), 2: QueueSummary(1, 11, 4)}
    waiting = [(position, row[0][1], row[0][2]) for position, row in store.reader.queue(1, 9)]
    assert waiting == [(10, "ü/x", b""), (11, "a/large", b"x" * 20_000)]
    assert [row[0][2] for _, row in store.reader.queue(2, 0)] == [b"\x00payload"]
    assert (snapshot.retained_count, snapshot.next_message_key) == (2, 2)
    rows, after = store.reader.retained("#", None)
    assert [(row[1], row[2], row[4]) for row in rows] == [("a/b", b"\x00payload", True), ("kept/only", b"k", True)]
    assert after is None
    store.close()
    assert user_version(path) == VERSION


def test_a_message_that_two_sessions_waited_for_goes_with_the_last(path: Path) -> None:
    from midge.core.changes import Batch

    store = SqliteStore(path)
    batch = Batch(1)
    batch.done = {1: [9, 10, 11], 2: [4]}
    store.write(batch)
    store.settle()
    store.close()
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM messages").fetchone() == (0,)
        assert db.execute("SELECT count(*) FROM queue").fetchone() == (0,)
    db.close()


def test_a_migration_that_fails_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MIGRATIONS, VERSION, [*MIGRATIONS[VERSION][:-1], "DROP TABLE no_such_table"])
    with pytest.raises(StoreError, match=r"midge\.db: no such table"):
        SqliteStore(path)
    monkeypatch.undo()
    assert user_version(path) == 1
    store = SqliteStore(path)
    assert len(store.load().sessions) == 2
    store.close()
