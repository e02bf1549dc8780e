"""The topics of a bridge: which name there is which name here."""

from __future__ import annotations

from midge.bridge.rules import Rules
from midge.config import BridgeTopic


def topics(*entries: dict[str, object]) -> list[BridgeTopic]:
    return [BridgeTopic.model_validate(entry) for entry in entries]


KITCHEN = topics(
    {"filter": "#", "direction": "in", "qos": 1, "local_prefix": "kitchen/"},
    {"filter": "set/#", "direction": "out", "qos": 2, "local_prefix": "kitchen/"},
)


def test_a_topic_from_there_gets_the_local_prefix() -> None:
    inward = Rules.inward(KITCHEN)
    assert inward.map("temperature") == "kitchen/temperature"
    assert inward.subscriptions() == {"#": 1}


def test_a_topic_from_here_loses_the_local_prefix() -> None:
    outward = Rules.outward(KITCHEN)
    assert outward.map("kitchen/set/led") == "set/led"
    assert outward.map("kitchen/temperature") is None
    assert outward.map("set/led") is None
    assert outward.subscriptions() == {"kitchen/set/#": 2}
    assert outward.has_qos2 and not Rules.inward(KITCHEN).has_qos2


def test_both_prefixes_and_both_directions() -> None:
    both = topics({"filter": "a/+", "direction": "both", "local_prefix": "here/", "remote_prefix": "there/"})
    assert Rules.inward(both).map("there/a/x") == "here/a/x"
    assert Rules.outward(both).map("here/a/x") == "there/a/x"
    assert Rules.inward(both).subscriptions() == {"there/a/+": 1}


def test_the_first_rule_that_matches_maps() -> None:
    rules = Rules.inward(topics({"filter": "a", "local_prefix": "one/"}, {"filter": "#", "local_prefix": "two/"}))
    assert rules.map("a") == "one/a"
    assert rules.map("b") == "two/b"


def test_the_same_filter_twice_is_subscribed_once_at_the_higher_qos() -> None:
    rules = Rules.inward(topics({"filter": "a", "qos": 0}, {"filter": "a", "qos": 2, "local_prefix": "x/"}))
    assert rules.subscriptions() == {"a": 2}
