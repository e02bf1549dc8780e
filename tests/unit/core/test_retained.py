"""Retained messages: one per topic name, found by filter."""

from __future__ import annotations

import random

from midge.core.message import Message
from midge.core.retained import Retained
from midge.protocol.topics import matches


def matching(retained: Retained, topic_filter: str) -> list[Message]:
    return [message for portion in retained.matching(topic_filter) for message in portion]


def kept(retained: Retained, topic_filter: str) -> list[str]:
    return sorted(message.topic for message in matching(retained, topic_filter))


def test_the_last_message_of_a_topic_is_kept() -> None:
    retained = Retained()
    first = Message("a", b"1", 0)
    assert retained.set(first) is None
    assert retained.set(Message("a", b"22", 0)) is first
    assert [message.payload for message in matching(retained, "a")] == [b"22"]
    assert (retained.count, retained.bytes) == (1, 3)


def test_a_removed_message_leaves_nothing_behind() -> None:
    retained = Retained()
    retained.set(Message("a/b/c", b"1", 0))
    retained.set(Message("a", b"1", 0))
    assert retained.remove("a/b") is None
    removed = retained.remove("a/b/c")
    assert removed is not None and removed.topic == "a/b/c"
    assert kept(retained, "#") == ["a"]
    assert (retained.count, retained.bytes) == (1, 2)
    assert list(retained._root.children["a"].children) == []


def test_filters_find_what_the_plain_matcher_finds() -> None:
    rng = random.Random(5)
    retained = Retained()
    topics = {"/".join(rng.choices(["a", "b", "", "$x"], k=rng.randint(1, 4))) for _ in range(100)} - {""}
    for topic in topics:
        retained.set(Message(topic, b"x", 0))
    for _ in range(500):
        topic_filter = "/".join(rng.choices(["a", "b", "", "+", "$x"], k=rng.randint(1, 4)))
        if rng.random() < 0.4:
            topic_filter += "/#"
        if not topic_filter:
            continue
        assert kept(retained, topic_filter) == sorted(t for t in topics if matches(topic_filter, t)), (
            topic_filter
        )
    assert kept(retained, "#") == sorted(t for t in topics if not t.startswith("$"))
