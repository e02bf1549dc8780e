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
