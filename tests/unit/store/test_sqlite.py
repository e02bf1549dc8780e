"""The SQLite store: what was written is there again, all of a batch or nothing, and a bad file is refused."""

from __future__ import annotations

import itertools
import pickle
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from midge.core.changes import Batch, QueueRow, QueueSummary, SessionRow, SubscriptionRow, WillRow
from midge.core.message import Message, MessageRow
from midge.protocol.packets import Properties
from midge.protocol.properties import encode_properties
from midge.store import StoreError, open_store
from midge.store.sqlite import SqliteStore

PROPERTIES: Properties = {
    "payload_format_indicator": 1,
    "content_type": "text/plain",
    "response_topic": "r",
    "correlation_data": b"\x00\xff",
    "user_property": [("b", "2"), ("a", "1")],
}
ENCODED = encode_properties(PROPERTIES, "PUBLISH")
WITH_PROPERTIES: MessageRow = (1, "a/b", b"\x00payload", 2, True, ENCODED, 99.5)
PLAIN: MessageRow = (2, "ü", b"", 1, False, None, None)


def queued(message: MessageRow, packet_id: int = 0, is_released: bool = False) -> QueueRow:
    return (message, message[3], False, (7, 8), "$share/g/a", packet_id, is_released)


def full_batch() -> Batch:
    batch = Batch(1)
    batch.sessions[1] = SessionRow(1, "one", 0xFFFF_FFFF, 12.5)
    batch.sessions[2] = SessionRow(2, "zwei/ä", 60, None)
    batch.subscriptions[1, "a/#"] = SubscriptionRow(1, "a/#", 2, True, False, 7)
    batch.queue[1] = {10: queued(PLAIN), 9: queued(WITH_PROPERTIES, 3, True)}
    batch.received[2, 5] = True
    batch.retained["a/b"] = WITH_PROPERTIES
    batch.wills[2] = WillRow(2, "zwei/ä", (0, "will", b"gone", 1, True, ENCODED, 60.0), 30, None)
    return batch


def reopened(store: SqliteStore) -> SqliteStore:
    """As after the death of the process."""
    store.close()
    return SqliteStore(store.path)


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    return SqliteStore(tmp_path / "midge.db")


def without_key(row: QueueRow) -> QueueRow:
    return ((0, *row[0][1:]), *row[1:])


@pytest.mark.parametrize("is_settled", [False, True], ids=["in the journal", "settled"])
def test_everything_that_was_written_is_there_again(store: SqliteStore, is_settled: bool) -> None:
    batch = full_batch()
    store.load()
    assert store.write(batch) == 0
    if is_settled:
        assert store.settle() == 1
    store = reopened(store)
    snapshot = store.load()
    assert snapshot.sessions == [batch.sessions[1], batch.sessions[2]]
    assert snapshot.subscriptions == list(batch.subscriptions.values())
    assert snapshot.in_flight == {1: [(9, without_key(batch.queue[1][9]))]}
    assert snapshot.queues == {1: QueueSummary(1, 1, 10)}
    assert store.reader.queue(1, 9) == [(10, without_key(batch.queue[1][10]))]
    assert snapshot.received == [(2, 5)]
    assert snapshot.wills == [batch.wills[2]]
    assert (snapshot.retained_count, snapshot.retained_bytes) == (1, 11)
    retained = (0, *WITH_PROPERTIES[1:])
    assert store.reader.retained_message("a/b") == retained
    assert store.reader.retained("#", None) == ([retained], None)
    restored = Message.restored(retained)
    assert (restored.properties, restored.expires_at, restored.retain) == (PROPERTIES, 99.5, True)
    store.close()


@pytest.mark.parametrize("is_settled", [False, True], ids=["in the journal", "settled"])
def test_deleted_and_replaced_rows_are(store: SqliteStore, is_settled: bool) -> None:
    store.write(full_batch())
    if is_settled:
        store.settle()
    batch = Batch(2)
    batch.sessions[1] = SessionRow(1, "one", 5, None)
    batch.subscriptions[1, "a/#"] = None
    batch.states[1] = {9: (4, False)}
    batch.done[1] = [10]
    batch.received[2, 5] = False
    batch.retained["a/b"] = None
    batch.wills[2] = None
    store.write(batch)
    store = reopened(store)
    snapshot = store.load()
    assert snapshot.sessions[0] == SessionRow(1, "one", 5, None)
    (in_flight,) = snapshot.in_flight[1]
    assert (in_flight[0], in_flight[1][5], in_flight[1][6]) == (9, 4, False)
    assert snapshot.queues[1].count == 0 and store.reader.queue(1, 9) == []
    assert not (snapshot.subscriptions or snapshot.received or snapshot.retained_count or snapshot.wills)
    store.close()


@pytest.mark.parametrize("is_settled", [False, True], ids=["in the journal", "settled"])
def test_an_ended_session_is_gone_with_all_it_held_and_its_client_can_have_another(
    store: SqliteStore, is_settled: bool
) -> None:
    """A clean start: the old session goes and the new one comes, within one batch."""
    store.write(full_batch())
    if is_settled:
        store.settle()
    batch = Batch(2)
    batch.ended = [1]
    batch.sessions[3] = SessionRow(3, "one", 5, None)
    store.write(batch)
    store = reopened(store)
    snapshot = store.load()
    assert [row.key for row in snapshot.sessions] == [2, 3]
    assert not snapshot.queues and not snapshot.in_flight and not snapshot.subscriptions
    store.close()


def tables(path: Path) -> dict[str, int]:
    with sqlite3.connect(path) as db:
        names = ("queue", "messages", "journal")
        counts = {name: db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names}
    db.close()
    return counts


def test_a_payload_is_kept_once_however_many_sessions_wait_and_goes_with_the_last(store: SqliteStore) -> None:
    batch = Batch(1)
    message = (1, "a", b"x" * 100_000, 1, False, None, None)
    for key in range(1, 51):
        batch.sessions[key] = SessionRow(key, f"s{key}", 60, 0.0)
        batch.queue[key] = {1: queued(message)}
    store.write(batch)
    store.settle()
    assert tables(store.path) == {"queue": 50, "messages": 1, "journal": 0}
    assert sum(file.stat().st_size for file in store.path.parent.iterdir()) < 1_000_000
    later = Batch(2)
    later.sessions[51] = SessionRow(51, "late", 60, 0.0)
    later.queue[51] = {1: queued(message)}  # a retained message that a later subscriber is owed
    later.done = {key: [1] for key in range(1, 41)}
    store.write(later)
    store.settle()
    assert tables(store.path) == {"queue": 11, "messages": 1, "journal": 0}
    assert store.reader.queue(51, 0)[0][1][0][2] == b"x" * 100_000
    last = Batch(3)
    last.ended = list(range(41, 51))
    last.done = {51: [1]}
    store.write(last)
    store.settle()
    assert tables(store.path) == {"queue": 0, "messages": 0, "journal": 0}
    store.close()


def test_what_came_and_went_before_it_was_settled_never_reaches_the_tables(store: SqliteStore) -> None:
    store.write(full_batch())
    batch = Batch(2)
    batch.done = {1: [9, 10]}
    store.write(batch)
    assert tables(store.path) == {"queue": 0, "messages": 0, "journal": 2}
    store.settle()
    assert tables(store.path) == {"queue": 0, "messages": 0, "journal": 0}
    store.close()


@pytest.fixture
def steady_store(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> SqliteStore:
    """It settles in portions that don't depend on how fast this machine is."""
    store.portion = 1.0
    monkeypatch.setattr(store, "_adapt", lambda seconds: None)
    return store


def test_batches_are_settled_by_themselves_once_there_are_many_rows(steady_store: SqliteStore) -> None:
    store = steady_store
    settled = 0
    for number in range(1, 8):
        batch = Batch(number)
        batch.queue[1] = {number * 1000 + i: queued(PLAIN) for i in range(1000)}
        settled = store.write(batch)
    assert settled == 5
    assert tables(store.path) == {"queue": 5000, "messages": 1, "journal": 2}
    store.close()


def test_a_slow_disk_is_given_smaller_portions_and_a_fast_one_larger(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()
    monkeypatch.setattr("midge.store.sqlite.time.monotonic", lambda: next(clock) * seconds / 2)
    seconds = 10.0  # for each write
    store.portion = 1.0
    numbers = itertools.count(1)
    for _ in range(10):
        store.write(Batch(next(numbers)))
    assert store.portion == 1 / 16
    number = next(numbers)
    batch = Batch(number)
    batch.queue[1] = {i: queued(PLAIN) for i in range(400)}
    assert store.write(batch) == number  # 400 rows are many now
    seconds = 0.0
    for _ in range(100):
        store.write(Batch(next(numbers)))
    assert store.portion == 1.0


def test_a_long_queue_is_read_in_portions_in_order(store: SqliteStore) -> None:
    batch = Batch(1)
    batch.queue[1] = {i: queued((i, "a", b"%d" % i, 1, False, None, None)) for i in range(1, 1001)}
    batch.queue[2] = {1: queued((1001, "b", b"", 1, False, None, None))}
    store.write(batch)
    store.settle()
    positions: list[int] = []
    portions = 0
    while rows := store.reader.queue(1, positions[-1] if positions else 0):
        positions += [position for position, _ in rows]
        assert [row[0][2] for _, row in rows] == [b"%d" % position for position, _ in rows]
        portions += 1
    assert positions == list(range(1, 1001)) and portions > 2
    store.close()


def test_large_payloads_make_small_portions(store: SqliteStore) -> None:
    batch = Batch(1)
    batch.queue[1] = {i: queued((i, "a", b"x" * 300_000, 1, False, None, None)) for i in range(1, 11)}
    store.write(batch)
    store.settle()
    assert len(store.reader.queue(1, 0)) == 4
    store.close()


def test_a_batch_that_fails_is_undone_whole(store: SqliteStore) -> None:
    store.load()
    store._db.execute("PRAGMA max_page_count=1")  # SQLite's own SQLITE_FULL: the file may not grow any more
    batch = full_batch()
    batch.retained["big"] = (3, "big", b"x" * 1_000_000, 0, True, None, None)
    with pytest.raises(StoreError, match=r"midge\.db: the disk is full"):
        store.write(batch)
    store._db.execute("PRAGMA max_page_count=1000000")
    store = reopened(store)
    assert store.load().sessions == []
    store.write(full_batch())
    store = reopened(store)
    assert len(store.load().sessions) == 2
    store.close()


def test_what_can_not_be_settled_stays_in_the_journal(steady_store: SqliteStore) -> None:
    store = steady_store
    for number in range(1, 6):
        batch = Batch(number)
        batch.queue[1] = {number * 1000 + i: queued(PLAIN) for i in range(1000)}
        if number == 5:
            # The commit of the last batch fits, settling all of them doesn't.
            pages = store._db.execute("PRAGMA page_count").fetchone()[0]
            store._db.execute(f"PRAGMA max_page_count={pages + 25}")
        settled = store.write(batch)
    assert settled == 0 and tables(store.path)["journal"] == 5
    store = reopened(store)
    assert store.load().queues[1].count == 5000
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


def test_a_store_in_use_is_refused(store: SqliteStore) -> None:
    with pytest.raises(StoreError, match=r"midge\.db is in use by another process: stop that broker"):
        SqliteStore(store.path)
    store.close()
    SqliteStore(store.path).close()


def test_a_store_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "midge.db"
    SqliteStore(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"midge\.db was written by a newer midge \(store version 99"):
        SqliteStore(path)
    assert path.read_bytes() == before


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs (x)")
    db.close()
    with pytest.raises(StoreError, match="another program"):
        SqliteStore(path)


def test_a_file_that_is_no_database_is_refused_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "midge.db"
    path.write_bytes(b"this is no database, but somebody's letters" * 100)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"midge\.db is damaged"):
        SqliteStore(path)
    assert path.read_bytes() == before


def test_a_store_with_damaged_pages_is_refused_and_never_replaced(store: SqliteStore) -> None:
    batch = full_batch()
    batch.queue[1].update({i: queued((i, "a", b"x" * 400, 1, False, None, None)) for i in range(100, 1000)})
    store.write(batch)
    store.settle()
    store.close()
    data = bytearray(store.path.read_bytes())
    for at in range(4096, len(data), 4096):
        data[at : at + 64] = b"\xee" * 64
    store.path.write_bytes(data)
    with pytest.raises(StoreError, match=r"midge\.db is damaged"):
        SqliteStore(store.path).load()
    assert store.path.read_bytes() == bytes(data)


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("called",))


@pytest.mark.parametrize(
    "data", [b"", b"garbage", pickle.dumps((1, 2)), pickle.dumps(_Evil())], ids=["empty", "garbage", "short", "code"]
)
def test_a_damaged_journal_is_refused_and_runs_no_code(
    store: SqliteStore, data: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    store.close()
    with sqlite3.connect(store.path) as db:
        db.execute("INSERT INTO journal VALUES (7, ?)", (data,))
    db.close()
    with pytest.raises(StoreError, match=r"midge\.db is damaged \(batch 7 of the journal"):
        SqliteStore(store.path)
    assert capsys.readouterr().out == ""


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
