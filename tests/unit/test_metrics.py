"""The numbers that the broker tells of itself, counted against what went through the core."""

from __future__ import annotations

import re

import pytest

from midge.metrics import METRICS, Number, memory, read_all

from .core.harness import Core, publish_packet


def numbers(core: Core) -> dict[str, Number]:
    return {metric.topic: number for metric, number in read_all(core.broker) if metric.topic}


def test_no_two_metrics_share_a_name() -> None:
    topics = [metric.topic for metric in METRICS if metric.topic]
    assert len(set(topics)) == len(topics)
    names = [(metric.name, metric.label) for metric in METRICS if metric.name]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert metric.topic or metric.name
        assert (metric.help != "") == (metric.name != "")
        assert re.fullmatch(r"[a-z][a-z_]*|", metric.name)


def test_clients_are_counted_by_their_state() -> None:
    core = Core()
    core.client("here")
    core.client("there", clean_start=False).lose()
    core.client("gone").lose()
    values = numbers(core)
    assert [values[f"clients/{name}"] for name in ("connected", "disconnected", "total", "maximum")] == [1, 1, 2, 3]
    assert values["connections/accepted"] == 3


def test_a_session_that_expires_is_counted() -> None:
    core = Core()
    core.client("brief", 5, properties={"session_expiry_interval": 10}).lose()
    core.advance(9)
    assert numbers(core)["clients/expired"] == 0
    core.advance(2)
    assert numbers(core)["clients/expired"] == 1
    assert numbers(core)["clients/total"] == 0


@pytest.mark.parametrize("version", [4, 5])
def test_messages_and_their_payloads_are_counted_both_ways(version: int) -> None:
    core = Core()
    subscribers = [core.client(f"s{number}", version) for number in range(2)]
    for subscriber in subscribers:
        subscriber.subscribe("a", 1)
    publisher = core.client("p", version)
    before = numbers(core)
    # A run of three QoS 0 messages in one chunk, then one of each other kind.
    from midge.protocol.encoder import encode

    publisher.send_bytes(b"".join(encode(publish_packet("a", b"x" * size), version) for size in (1, 2, 3)))
    publisher.publish("a", b"12345", 1)
    publisher.publish("a", b"123", retain=True)
    after = numbers(core)
    grown = {name: after[name] - before[name] for name in after}
    assert grown["messages/received"] == grown["publish/messages/received"] == 5
    assert grown["publish/messages/sent"] == 10
    assert grown["publish/bytes/received"] == 1 + 2 + 3 + 5 + 3
    assert grown["publish/bytes/sent"] == 2 * (1 + 2 + 3 + 5 + 3)
    assert grown["retained messages/count"] == 1
    assert grown["retained messages/bytes"] == len("a") + 3


def test_what_waits_is_counted() -> None:
    core = Core()
    away = core.client("away", clean_start=False)
    away.subscribe("a", 1)
    away.lose()
    core.client("p").publish("a", b"12345", 1)
    values = numbers(core)
    assert (values["queued messages/count"], values["queued messages/bytes"]) == (1, 6)
    assert (values["messages/stored"], values["store/messages/bytes"]) == (1, 6)


def test_shared_subscriptions_are_counted_apart() -> None:
    core = Core()
    client = core.client("c")
    for topic_filter in ("a", "$share/g/a", "$share/g/b", "$share/g/b"):
        client.subscribe(topic_filter)
    values = numbers(core)
    assert (values["subscriptions/count"], values["shared_subscriptions/count"]) == (1, 2)
    client.lose()
    values = numbers(core)
    assert (values["subscriptions/count"], values["shared_subscriptions/count"]) == (0, 0)


def test_the_memory_of_this_process_is_more_than_nothing() -> None:
    current, maximum = memory()
    assert 5_000_000 < current <= maximum
