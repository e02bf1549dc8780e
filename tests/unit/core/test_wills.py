"""Wills outlive the broker: a client that was connected when it was killed has its will published."""

from __future__ import annotations

from typing import Any

import pytest

from midge.protocol import packets as p

from .harness import Client, Core


def will(delay_s: int = 0, **fields: Any) -> p.Will:
    properties = {"will_delay_interval": delay_s} if delay_s else {}
    values: dict[str, Any] = {"topic": "will", "payload": b"gone", "qos": 1, "retain": False}
    return p.Will(**(values | {"properties": properties} | fields))


def watcher(core: Core) -> Client:
    client = core.client("watcher", clean_start=False)
    client.subscribe("will", 1)
    return client


def seen(client: Client) -> list[bytes]:
    return [packet.payload for packet in client.take(p.Publish)]


def restarted(core: Core) -> Core:
    again = core.restarted()
    again.advance(0)
    return again


@pytest.mark.parametrize("expiry_s", [0, 60])
def test_the_will_of_a_connected_client_is_published_after_the_broker_was_killed(expiry_s: int) -> None:
    core = Core(is_durable=True)
    watcher(core).lose()
    core.client("one", 5, will=will(), properties={"session_expiry_interval": expiry_s})
    again = restarted(core)
    assert seen(again.client("watcher", clean_start=False)) == [b"gone"]
    # Once: another restart finds nothing left to publish.
    third = again.restarted()
    third.advance(100)
    assert third.store.load().wills == []


def test_connack_waits_until_the_will_is_kept() -> None:
    core = Core(is_durable=True)
    client = core.client(connect=False)
    client.send(p.Connect("one", True, 0, 4, False, will(), None, None, {}), commit=False)
    assert client.take() == []
    core.turn()
    assert [type(packet) for packet in client.take()] == [p.Connack]


def test_a_delay_begins_with_the_restart_and_the_client_may_come_back_in_time() -> None:
    core = Core(is_durable=True)
    watcher(core).lose()
    for name in ("late", "in time"):
        core.client(name, 5, will=will(30), properties={"session_expiry_interval": 60})
    again = restarted(core)
    sub = again.client("watcher", clean_start=False)
    again.advance(29)
    assert seen(sub) == []
    again.client("in time", 5, clean_start=False, properties={"session_expiry_interval": 60})
    again.advance(2)
    assert seen(sub) == [b"gone"]
    again.advance(100)
    assert seen(sub) == [] and again.restarted().store.load().wills == []


def test_a_delay_that_ran_goes_on_after_the_restart() -> None:
    core = Core(is_durable=True)
    watcher(core).lose()
    core.client("one", 5, will=will(30), properties={"session_expiry_interval": 60}).lose()
    core.advance(20)
    again = restarted(core)
    sub = again.client("watcher", clean_start=False)
    again.advance(9)
    assert seen(sub) == []
    again.advance(2)
    assert seen(sub) == [b"gone"]


def test_a_delay_is_not_begun_anew_by_each_restart() -> None:
    core = Core(is_durable=True)
    watcher(core).lose()
    core.client("one", 5, will=will(30), properties={"session_expiry_interval": 60})
    again = restarted(core)
    again.turn()
    again.advance(20)
    third = restarted(again)
    third.advance(11)
    assert seen(third.client("watcher", clean_start=False)) == [b"gone"]


def test_a_will_that_was_published_or_deleted_is_not_kept() -> None:
    core = Core(is_durable=True)
    sub = watcher(core)
    core.client("lost", will=will()).lose()
    core.client("polite", will=will()).send(p.Disconnect(0, None))
    taken_over = core.client("taken over", 5, will=will(30), properties={"session_expiry_interval": 60})
    taken_over.lose()
    core.client("taken over", 5, clean_start=False, properties={"session_expiry_interval": 60})
    assert seen(sub) == [b"gone"]
    again = restarted(core)
    again.advance(100)
    assert seen(again.client("watcher", clean_start=False)) == [b"gone"]  # the first one, not acknowledged
    assert again.store.load().wills == []


def test_a_shutdown_leaves_wills_to_the_next_start() -> None:
    core = Core(is_durable=True)
    watcher(core).lose()
    core.client("one", will=will())
    core.broker.shut_down()
    core.turn()
    again = restarted(core)
    assert seen(again.client("watcher", clean_start=False)) == [b"gone"]


def test_a_kept_will_has_its_properties_and_its_expiry_counts_from_its_publication() -> None:
    core = Core(is_durable=True)
    watcher(core).lose()
    properties = {"message_expiry_interval": 50, "user_property": [("k", "v")], "content_type": "t"}
    core.client("one", 5, will=will(retain=True, properties=properties))
    core.advance(1000)
    again = restarted(core)
    sub = again.client("watcher", 5, clean_start=False, properties={"session_expiry_interval": 60})
    (packet,) = sub.take(p.Publish)
    assert packet.properties == properties
    again.client("reader").subscribe("will")
    assert again.broker.retained.count == 1
