"""What is kept for replay: read back in order from however many histories and segments, and forgotten by the limits."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from midge.core.changes import Batch, KeptRow, ReadError
from midge.core.history import HistoryRule
from midge.protocol.topics import matches
from midge.store.sqlite import SqliteStore

FOREVER = HistoryRule("s/#", 1e9, 10**9, 10**12)


def row(number: int, topic: str = "s/t", at: float | None = None, payload: bytes | None = None) -> KeptRow:
    text = str(number).encode() if payload is None else payload
    return (number, float(number if at is None else at), (number, topic, text, 1, False, None, None))


class Kept:
    """A store, and batches of what is to be kept in it."""

    def __init__(self, path: Path, rules: list[HistoryRule]) -> None:
        self.store = SqliteStore(path)
        self.rules = rules
        self.store.set_histories(rules)
        self.number = 0

    def write(self, *rows: KeptRow, name: str = "s/#", settle: bool = True) -> None:
        self.number += 1
        batch = Batch(self.number)
        batch.kept[name] = list(rows)
        self.store.write(batch)
        if settle:
            self.store.settle()

    def reopen(self) -> None:
        self.store.close()
        self.store = SqliteStore(self.store.path)
        self.store.set_histories(self.rules)
        self.number = 0

    def read(self, topic_filter: str = "s/#", after: int = 0, end: int = 10**9) -> list[int]:
        """Numbers, in as many pages as it takes; each page is what it says it is."""
        found: list[int] = []
        while after < end:
            rows, upto = self.store.reader.kept(topic_filter, after, end)
            assert all(after < each[0] <= upto <= end for each in rows)
            found += [each[0] for each in rows]
            after = upto
        return found

    def tidy(self, now: float) -> int:
        """Steps that it takes."""
        steps = 1
        while self.store.tidy(now):
            steps += 1
        return steps


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    kept = Kept(tmp_path / "midge.db", [FOREVER])
    yield kept
    kept.store.close()


def segments(store: SqliteStore) -> list[tuple[int, int]]:
    with sqlite3.connect(store.path) as db:
        found = db.execute("SELECT first, count FROM segments ORDER BY first").fetchall()
    db.close()
    return found


def test_what_was_kept_comes_back_as_it_was(kept: Kept) -> None:
    properties = b"\x26\x00\x01a\x00\x01b"
    rows = [
        (1, 10.5, (7, "s/ü", b"\x00\xff", 2, True, properties, 99.5)),
        (2, 11.5, (0, "s", b"", 0, False, None, None)),
    ]
    kept.write(*rows)
    found, end = kept.store.reader.kept("s/#", 0, 2)
    assert end == 2
    assert found == [(number, at, (0, *message[1:])) for number, at, message in rows]


def test_what_is_only_in_the_journal_survives_and_is_settled_by_the_next_start(kept: Kept) -> None:
    kept.write(row(1), row(2), settle=False)
    assert kept.read() == []
    kept.reopen()
    assert kept.read() == [1, 2]
    assert kept.store.load().last_kept == 2
    kept.write(row(3))
    assert kept.read(after=1) == [2, 3]


def test_small_writes_fill_one_segment_and_large_ones_make_several(kept: Kept) -> None:
    for number in range(1, 11):
        kept.write(row(number))
    assert segments(kept.store) == [(1, 10)]
    kept.reopen()
    kept.write(*map(row, range(11, 601)))
    assert segments(kept.store) == [(1, 256), (257, 256), (513, 88)]
    kept.write(*[row(number, payload=bytes(100_000)) for number in range(601, 604)])
    assert segments(kept.store)[2:] == [(513, 89), (602, 1), (603, 1)]
    assert kept.read() == list(range(1, 604))
    assert kept.store.kept_size == (603, 300_000 + 603 * 3 + sum(len(str(n)) for n in range(1, 601)))


def test_several_histories_are_read_as_one_in_order_whatever_the_pages(tmp_path: Path) -> None:
    rng = random.Random(7)
    names = ["a/#", "b/#", "+/c"]
    kept = Kept(tmp_path / "midge.db", [HistoryRule(name, 1e9, 2000, 10**9) for name in names])
    topics = {"a/#": ["a/x", "a/y"], "b/#": ["b/x", "b/y/z"], "+/c": ["d/c", "e/c"]}
    all_rows: list[KeptRow] = []
    number = 0
    while number < 3000:
        name = rng.choice(names)
        rows = []
        for _ in range(rng.choice([1, 3, 200])):
            number += 1
            rows.append(row(number, rng.choice(topics[name])))
        all_rows += rows
        kept.write(*rows, name=name, settle=rng.random() < 0.5)
        if rng.random() < 0.02:
            kept.reopen()
    kept.store.settle()
    for topic_filter in ("#", "a/#", "+/x", "b/y/z", "+/c", "nothing/#"):
        after, end = rng.randrange(1000), rng.randrange(1000, 3000)
        wanted = [each[0] for each in all_rows if after < each[0] <= end and matches(topic_filter, each[2][1])]
        assert kept.read(topic_filter, after, end) == wanted, topic_filter
    kept.store.close()


def test_the_first_message_since_a_time_is_found(kept: Kept) -> None:
    kept.write(*[row(number, at=1000.0 + number) for number in range(1, 1001)])
    since = kept.store.reader.kept_since
    assert since("s/#", 0.0) == 1
    assert since("s/#", 1500.0) == 500
    assert since("s/#", 1500.5) == 501
    assert since("s/#", 3000.0) is None
    assert since("o/#", 0.0) is None


def test_no_more_messages_are_kept_than_the_limit_and_not_much_fewer(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "midge.db", [HistoryRule("s/#", 1e9, 1600, 10**9)])
    for first in range(1, 4001, 250):
        kept.write(*map(row, range(first, first + 250)))
        if kept.store.is_untidy:
            kept.tidy(0.0)
    found = kept.read()
    assert 1500 <= len(found) <= 1600
    assert found == list(range(4001 - len(found), 4001))
    assert kept.store.kept_size[0] == len(found)
    kept.reopen()
    assert kept.store.load().kept_count == len(found)
    kept.store.close()


def test_no_more_bytes_are_kept_than_the_limit(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "midge.db", [HistoryRule("s/#", 1e9, 10**9, 160_000)])
    for number in range(1, 401):
        kept.write(row(number, payload=bytes(997)))
        if kept.store.is_untidy:
            kept.tidy(0.0)
    assert 150 <= len(kept.read()) <= 160
    assert 150_000 <= kept.store.kept_size[1] <= 160_000
    kept.store.close()


def test_what_is_too_old_goes_within_a_sixteenth_of_the_age(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "midge.db", [HistoryRule("s/#", 160.0, 10**9, 10**9)])
    kept.write(*[row(number, at=float(number)) for number in range(1, 1001)])
    kept.tidy(1001.0)
    assert 1001 - 160 - 11 <= kept.read()[0] <= 1001 - 160
    kept.tidy(2000.0)
    assert kept.read() == [] and kept.store.kept_size == (0, 0)
    kept.write(row(1001, at=2000.0))
    assert kept.read() == [1001]
    kept.store.close()


def test_numbers_go_on_when_everything_has_been_forgotten(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "midge.db", [HistoryRule("s/#", 10.0, 10**9, 10**9)])
    kept.write(row(1), row(2))
    kept.tidy(1000.0)
    kept.reopen()
    snapshot = kept.store.load()
    assert (snapshot.last_kept, snapshot.kept_count, snapshot.kept_bytes) == (2, 0, 0)
    kept.store.close()


def test_much_is_forgotten_in_many_short_steps(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "midge.db", [FOREVER])
    for first in range(1, 20_001, 5000):
        kept.write(*map(row, range(first, first + 5000)))
    count = len(segments(kept.store))
    kept.store.set_histories([HistoryRule("s/#", 1e9, 256, 10**9)])
    assert kept.tidy(0.0) > count // 20
    assert len(kept.read()) <= 256
    kept.store.close()


def test_space_that_was_freed_is_used_again(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "midge.db", [HistoryRule("s/#", 1e9, 10**9, 2_000_000)])
    sizes = []
    for first in range(1, 20_001, 1000):
        kept.write(*[row(number, payload=bytes(997)) for number in range(first, first + 1000)])
        kept.tidy(0.0)
        with sqlite3.connect(kept.store.path) as db:
            sizes.append(db.execute("PRAGMA page_count").fetchone()[0] * 4096)
        db.close()
    assert max(sizes[10:]) <= 1.5 * sizes[5] and sizes[-1] < 8_000_000
    kept.store.close()


def test_a_history_that_is_configured_no_more_keeps_its_last_limits(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "midge.db", [HistoryRule("s/#", 100.0, 10**9, 10**9)])
    kept.write(row(1, at=5.0))
    kept.rules = [HistoryRule("o/#", 1e9, 10, 10)]
    kept.reopen()
    kept.tidy(50.0)
    assert kept.read("#") == [1]
    kept.tidy(200.0)
    assert kept.read("#") == []
    kept.store.close()


def test_positions_last_and_go_with_their_session(kept: Kept) -> None:
    store = kept.store
    batch = Batch(1)
    batch.positions = {(1, "$replay/all/s/#"): 7, (2, "$replay/1h/s/#"): 8, (2, "$replay/2h/s/#"): 9}
    store.write(batch)
    batch = Batch(2)
    batch.positions = {(1, "$replay/all/s/#"): 10, (2, "$replay/2h/s/#"): None}
    store.write(batch)
    kept.reopen()
    assert kept.store.load().positions == {(1, "$replay/all/s/#"): 10, (2, "$replay/1h/s/#"): 8}
    batch = Batch(1)
    batch.ended = [2]
    kept.store.write(batch)
    kept.reopen()
    assert kept.store.load().positions == {(1, "$replay/all/s/#"): 10}


def test_a_journal_of_version_2_is_read(tmp_path: Path) -> None:
    import pickle

    path = tmp_path / "midge.db"
    SqliteStore(path).close()
    parts = ({}, {}, {}, {}, {}, {}, {"a": (1, "a", b"x", 1, True, None, None)}, {}, [])
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO journal VALUES (1, ?)", (pickle.dumps(parts, 5),))
    db.close()
    store = SqliteStore(path)
    assert store.load().retained_count == 1
    store.close()


def test_a_damaged_segment_is_an_error_that_names_the_file(kept: Kept) -> None:
    kept.write(*map(row, range(1, 300)))
    with sqlite3.connect(kept.store.path) as db:
        db.execute("UPDATE segments SET messages=x'8005' WHERE first=1")
    db.close()
    with pytest.raises(ReadError, match=r"midge\.db"):
        kept.read()


def test_a_damaged_segment_does_not_keep_others_from_being_written(kept: Kept) -> None:
    kept.write(row(1))
    with sqlite3.connect(kept.store.path) as db:
        db.execute("UPDATE segments SET messages=x'8005'")
    db.close()
    kept.reopen()
    kept.write(row(2))
    assert kept.read(after=1) == [2]
