"""$SYS: what a subscriber gets at once, what it gets when, and what is left of it."""

from __future__ import annotations

import pytest

from midge.protocol import packets as p
from midge.systopics import LoadAverage, SysTopics

from .core.harness import Client, Core


def published(client: Client) -> dict[str, str]:
    return {packet.topic.removeprefix("$SYS/broker/"): packet.payload.decode() for packet in client.take(p.Publish)}


def test_a_subscriber_has_every_topic_at_once_and_then_what_changes() -> None:
    core = Core()
    topics = SysTopics(core.broker)
    topics.publish(core.now)
    client = core.client("c")
    client.subscribe("$SYS/#")
    first = client.take(p.Publish)
    assert all(packet.retain for packet in first)
    assert first[0].payload and len({packet.topic for packet in first}) == len(first) > 50
    core.now += 10
    topics.publish(core.now)
    core.turn()
    later = client.take(p.Publish)
    assert not any(packet.retain for packet in later)
    changed = {packet.topic.removeprefix("$SYS/broker/"): packet.payload for packet in later}
    assert changed["uptime"] == b"10 seconds"
    assert changed["clients/connected"] == b"1"
    assert "version" not in changed


def test_a_wildcard_at_the_start_does_not_see_them() -> None:
    core = Core()
    SysTopics(core.broker).publish(core.now)
    client = core.client("c")
    client.subscribe("#")
    client.subscribe("+/broker/uptime")
    assert client.take(p.Publish) == []


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_nothing_of_them_waits_or_is_stored(qos: int) -> None:
    core = Core(is_durable=True)
    topics = SysTopics(core.broker)
    client = core.client("c", clean_start=False)
    client.subscribe("$SYS/#", qos)
    client.lose()
    core.written.clear()
    topics.publish(core.now)
    topics.set("connection/x/state", "1", core.now)
    core.turn()
    assert not any(batch.retained or batch.queue for batch in core.written)
    assert core.broker.retained.count == 0
    assert not core.broker.sessions["c"].queue
    later = core.restarted().client("later")
    later.subscribe("$SYS/#")
    assert later.take(p.Publish) == []


def test_what_has_gone_is_told_and_then_not_there() -> None:
    core = Core()
    topics = SysTopics(core.broker)
    topics.set("connection/hub/state", "1", core.now)
    watcher = core.client("watcher")
    watcher.subscribe("$SYS/broker/connection/#")
    assert published(watcher) == {"connection/hub/state": "1"}
    topics.set("connection/hub/state", "", core.now)
    core.turn()
    assert published(watcher) == {"connection/hub/state": ""}
    later = core.client("later")
    later.subscribe("$SYS/#")
    assert published(later) == {}


def test_clear_leaves_nothing() -> None:
    core = Core()
    topics = SysTopics(core.broker)
    topics.publish(core.now)
    topics.clear(core.now)
    client = core.client("c")
    client.subscribe("$SYS/#")
    assert client.take(p.Publish) == []


def test_a_steady_load_is_its_own_average_in_the_end() -> None:
    load = LoadAverage()
    for second in range(10, 7210, 10):
        load.update(2 * second, 10)
    assert load.averages == pytest.approx([120, 120, 120], rel=0.001)


def test_a_burst_fades_over_1_5_and_15_minutes() -> None:
    load = LoadAverage()
    load.update(600, 10)  # 3,600 a minute, for a sixth of a minute
    assert load.averages == pytest.approx([552.7, 118.0, 39.8], rel=0.001)
    load.update(600, 60)
    assert load.averages == pytest.approx([552.7 / 2.71828, 118.0 * 0.8187, 39.8 * 0.9355], rel=0.002)
