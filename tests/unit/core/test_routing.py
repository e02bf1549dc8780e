"""Routing: which sessions get a topic name, and as what."""

from __future__ import annotations

import random
from typing import Any

import pytest

from midge.core.limits import Counters, Limits
from midge.core.routing import Routing, Subscription
from midge.core.session import Session
from midge.protocol.topics import matches


def session(name: str) -> Session:
    return Session(name, 1, Limits(), Counters())


def names(routing: Routing, topic: str) -> list[str]:
    return sorted(target.session.client_id for target in routing.route(topic).targets)


def test_each_filter_gets_the_topics_it_matches() -> None:
    routing = Routing()
    for topic_filter in ("a/b", "a/+", "a/#", "#", "+", "+/+", "/+", "a/b/#"):
        routing.add(Subscription(session(topic_filter), topic_filter, 0))
    assert names(routing, "a/b") == ["#", "+/+", "a/#", "a/+", "a/b", "a/b/#"]
    assert names(routing, "a") == ["#", "+", "a/#"]
    assert names(routing, "/x") == ["#", "+/+", "/+"]
    assert names(routing, "a/b/c") == ["#", "a/#", "a/b/#"]


def test_wildcards_at_the_start_do_not_match_dollar_topics() -> None:
    routing = Routing()
    for topic_filter in ("#", "+/broker/#", "$SYS/#", "$SYS/+/x"):
        routing.add(Subscription(session(topic_filter), topic_filter, 0))
    assert names(routing, "$SYS/broker/x") == ["$SYS/#", "$SYS/+/x"]


def test_overlapping_subscriptions_are_one_target_with_the_highest_qos_and_all_identifiers() -> None:
    routing = Routing()
    one = session("one")
    routing.add(Subscription(one, "a/#", 0, identifier=7))
    routing.add(Subscription(one, "a/+", 2, identifier=8))
    routing.add(Subscription(one, "a/b", 1))
    (target,) = routing.route("a/b").targets
    assert target.qos == 2
    assert sorted(target.identifiers) == [7, 8]


def test_no_local_counts_only_for_what_the_session_published_itself() -> None:
    routing = Routing()
    one = session("one")
    routing.add(Subscription(one, "a/#", 2, no_local=True))
    (target,) = routing.route("a/b").targets
    assert target.qos == 2 and target.own is None
    routing.add(Subscription(one, "a/b", 1))
    (target,) = routing.route("a/b").targets
    assert target.own is not None and target.own.qos == 1


def test_a_removed_subscription_gets_nothing_and_leaves_no_nodes() -> None:
    routing = Routing()
    one = session("one")
    routing.add(Subscription(one, "a/b/c", 0))
    assert names(routing, "a/b/c") == ["one"]
    assert routing.remove(one, "a/b/c")
    assert names(routing, "a/b/c") == []
    assert not routing.remove(one, "a/b/c")
    assert routing.count == 0
    assert not routing._root.children


def test_a_replaced_subscription_is_not_a_new_one() -> None:
    routing = Routing()
    one = session("one")
    assert routing.add(Subscription(one, "a", 0))
    assert not routing.add(Subscription(one, "a", 1))
    assert routing.count == 1
    assert routing.route("a").targets[0].qos == 1


@pytest.mark.parametrize("seed", range(20))
def test_the_trie_agrees_with_the_plain_matcher(seed: int) -> None:
    """The cache is asked while subscriptions come and go; the plain matcher is the oracle."""
    rng = random.Random(seed)
    levels = ["a", "b", "", "$x", "+"]
    routing = Routing()
    there: dict[str, Any] = {}
    for _ in range(300):
        topic_filter = "/".join(rng.choices(levels, k=rng.randint(1, 4)))
        if rng.random() < 0.3:
            topic_filter = topic_filter + "/#" if rng.random() < 0.8 else "#"
        if not topic_filter:
            continue
        if topic_filter in there and rng.random() < 0.6:
            assert routing.remove(there.pop(topic_filter), topic_filter)
        elif topic_filter not in there:
            there[topic_filter] = session(topic_filter)
            routing.add(Subscription(there[topic_filter], topic_filter, 0))
        topic = "/".join(rng.choices(["a", "b", "", "$x", "c"], k=rng.randint(1, 4)))
        if topic:
            assert names(routing, topic) == sorted(f for f in there if matches(f, topic)), (
                f"{topic!r}, seed {seed}"
            )


def test_a_subscription_leaves_the_routes_that_it_does_not_touch() -> None:
    routing = Routing()
    topics = ["a/b", "a/c", "x/y", "x"]
    changing = session("changing")
    for topic_filter, touched in (("a/b", {"a/b"}), ("a/+", {"a/b", "a/c"}), ("x/#", {"x", "x/y"}), ("+", {"x"})):
        for topic in topics:
            routing.route(topic)
        routing.add(Subscription(changing, topic_filter, 0))
        assert set(topics) - set(routing.known) == touched
        for topic in topics:
            routing.route(topic)
        routing.remove(changing, topic_filter)
        assert set(topics) - set(routing.known) == touched


@pytest.mark.parametrize("seed", range(3))
def test_remembered_routes_are_as_true_as_new_ones(seed: int) -> None:
    rng = random.Random(seed)
    levels = ["a", "b", "", "$x"]
    topics = ["/".join(rng.choice(levels) for _ in range(rng.randint(1, 4))) for _ in range(60)]
    topics = [topic for topic in topics if topic]
    filters = sorted({
        "/".join([*(rng.choice([*levels, "+"]) for _ in range(rng.randint(0, 3))), rng.choice([*levels, "+", "#"])])
        for _ in range(80)
    } - {""})  # fmt: skip
    routing = Routing()
    held: set[tuple[int, str]] = set()
    sessions = [session(str(number)) for number in range(5)]
    for _ in range(300):
        number, topic_filter = rng.randrange(5), rng.choice(filters)
        if (number, topic_filter) in held:
            assert routing.remove(sessions[number], topic_filter)
            held.discard((number, topic_filter))
        else:
            routing.add(Subscription(sessions[number], topic_filter, 0))
            held.add((number, topic_filter))
        topic = rng.choice(topics)
        expected = {str(number) for number, topic_filter in held if matches(topic_filter, topic)}
        assert names(routing, topic) == sorted(expected)


def test_more_topic_names_than_are_remembered_are_routed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("midge.core.routes._ROUTES_MAX", 10)
    monkeypatch.setattr("midge.core.routes._LOOKED_AT_MAX", 5)
    routing = Routing()
    routing.add(Subscription(session("all"), "t/#", 0))
    for number in range(40):
        assert names(routing, f"t/{number}") == ["all"]
        if number % 9 == 8:
            routing.add(Subscription(session(f"late {number}"), "t/+/x", 0))
            routing.add(Subscription(session(f"even later {number}"), "x/#", 0))
