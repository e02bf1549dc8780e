"""Retained messages found on disk by filter: what the plain matcher finds, and by jumps, not by a walk."""

from __future__ import annotations

import random
from bisect import bisect_left
from pathlib import Path

import pytest

from midge.core.changes import Batch
from midge.protocol.topics import matches
from midge.store.retained_names import matching
from midge.store.schema import retained_name
from midge.store.sqlite import SqliteStore


class Names:
    """Sorted names, and how often the next one was looked for."""

    def __init__(self, topics: set[str]) -> None:
        self.names = sorted(map(retained_name, topics))
        self.seeks = 0

    def seek(self, name: bytes) -> bytes | None:
        self.seeks += 1
        at = bisect_left(self.names, name)
        return self.names[at] if at < len(self.names) else None

    def find(self, topic_filter: str) -> list[str]:
        found: list[bytes] = []
        at: bytes | None = b""
        while at is not None:
            match, at = matching(topic_filter, at, self.seek)
            if match is not None:
                found += self.names[bisect_left(self.names, match[0]) : bisect_left(self.names, match[1])]
        return [name.replace(b"\0", b"/").decode() for name in found]


@pytest.mark.parametrize("seed", range(5))
def test_filters_find_what_the_plain_matcher_finds(seed: int) -> None:
    rng = random.Random(seed)
    levels = ["a", "b", "a-b", "", "$x", "!", "ä", "\x01", "a\x01"]
    topics = {"/".join(rng.choices(levels, k=rng.randint(1, 4))) for _ in range(300)} - {""}
    names = Names(topics)
    for _ in range(500):
        topic_filter = "/".join(rng.choices([*levels, "+", "+"], k=rng.randint(1, 4)))
        if rng.random() < 0.4:
            topic_filter = topic_filter + "/#" if rng.random() < 0.9 else "#"
        if topic_filter:
            found = names.find(topic_filter)
            assert sorted(found) == sorted(t for t in topics if matches(topic_filter, t)), repr(topic_filter)
            assert found == sorted(found, key=retained_name)


def test_a_filter_costs_its_matches_and_not_a_walk_over_all_topics() -> None:
    names = Names({f"home/{room}/{sensor}/t" for room in range(100) for sensor in range(100)})
    for topic_filter, count, seeks in [
        ("home/7/8/t", 1, 4),
        ("home/7/#", 100, 4),
        ("#", 10_000, 3),
        ("home/+/8/t", 100, 410),
        ("nobody/#", 0, 2),
    ]:
        names.seeks = 0
        assert len(names.find(topic_filter)) == count
        assert names.seeks <= seeks, topic_filter


def test_a_filter_with_many_matches_is_answered_in_portions(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "midge.db")
    batch = Batch(1)
    for i in range(1500):
        topic = f"a/{i}/t"
        batch.retained[topic] = (0, topic, b"x", 0, True, None, None)
    store.write(batch)
    store.settle()
    for topic_filter in ("#", "a/+/t", "a/#"):
        found: list[str] = []
        portions = 0
        after: bytes | None = None
        while True:
            rows, after = store.reader.retained(topic_filter, after)
            found += [row[1] for row in rows]
            portions += 1
            if after is None:
                break
        assert sorted(found) == sorted(batch.retained) and portions >= 8
    store.close()
