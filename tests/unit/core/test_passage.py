"""What crosses bridges: marked, taken once, never round in circles."""

from __future__ import annotations

from typing import Any

import pytest

from midge.core import passage
from midge.core.passage import BRIDGE, MARK
from midge.protocol import packets as p
from midge.protocol.encoder import encode

from .harness import Client, Core, publish_packet

BRIDGE_PROPERTIES: Any = {"user_property": [(BRIDGE, "1")]}


def bridge(core: Core, name: str, version: int = 5, clean: bool = True) -> Client:
    fields: dict[str, Any] = {"is_bridge": True} if version == 4 else {"properties": dict(BRIDGE_PROPERTIES)}
    if not clean:
        fields["clean_start"] = False
        if version == 5:
            fields["properties"]["session_expiry_interval"] = 0xFFFFFFFF
    client = core.client(name, version, **fields)
    options = {"no_local": True, "retain_as_published": True} if version == 5 else {}
    client.subscribe("#", 2, **options)
    client.take()
    return client


def mark_of(packet: p.Publish) -> str | None:
    return dict((packet.properties or {}).get("user_property", ())).get(MARK)


def test_what_leaves_over_bridges_has_one_mark_for_all_of_them() -> None:
    core = Core()
    first, second, subscriber = bridge(core, "b1"), bridge(core, "b2"), core.client("s", 5)
    subscriber.subscribe("t", 1)
    core.client("publisher").publish("t", b"x", qos=1)
    marks = [mark_of(client.take(p.Publish)[0]) for client in (first, second, subscriber)]
    assert marks[0] and marks.count(marks[0]) == 3


def test_without_a_bridge_nothing_is_marked() -> None:
    core = Core()
    subscriber = core.client("s", 5)
    subscriber.subscribe("t", 1)
    core.client("publisher").publish("t", b"x", qos=1)
    assert mark_of(subscriber.take(p.Publish)[0]) is None


def test_a_marked_message_that_comes_by_two_bridges_is_taken_once() -> None:
    core = Core()
    first, second, subscriber = bridge(core, "b1"), bridge(core, "b2"), core.client("s", 5)
    subscriber.subscribe("t", 2)
    marked: Any = {"user_property": [("a", "b"), (MARK, "other-1 other")]}
    first.publish("t", b"x", qos=2, packet_id=7, properties=marked)
    second.publish("t", b"x", qos=2, packet_id=9, properties=marked)
    assert [packet.payload for packet in subscriber.take(p.Publish)] == [b"x"]
    assert [type(packet) for packet in second.take()] == [p.Publish, p.Pubrec], "it is acknowledged all the same"
    assert core.broker.passage.dropped == 1


def test_a_message_that_has_been_here_is_not_taken_under_another_topic_either() -> None:
    core = Core()
    link, subscriber = bridge(core, "b1"), core.client("s", 5)
    subscriber.subscribe("#", 1)
    core.client("publisher").publish("t", b"x", qos=1)
    (sent,) = link.take(p.Publish)
    link.publish("a/t", b"x", qos=1, properties=sent.properties)
    assert [packet.topic for packet in subscriber.take(p.Publish)] == ["t"]


def test_a_client_s_mark_means_nothing() -> None:
    core = Core()
    publisher, subscriber = core.client("p", 5), core.client("s", 5)
    subscriber.subscribe("t", 0)
    for _ in range(2):
        publisher.publish("t", b"x", properties={"user_property": [(MARK, "other-1 other")]})
    assert len(subscriber.take(p.Publish)) == 2


def test_a_loop_without_marks_is_named_and_broken() -> None:
    core = Core()
    told: list[tuple[str, str]] = []
    core.broker.passage.on_loop = lambda topic, client_id: told.append((topic, client_id))
    entry, exit_ = bridge(core, "b1", version=4), bridge(core, "b2", version=4)
    rounds = 0
    entry.publish("t", b"x")
    while exit_.take(p.Publish):  # the broker beyond sends it on to where it came from
        rounds += 1
        assert rounds < 100
        entry.publish("t", b"x")
    assert told == [("t", "b1")]
    entry.publish("t", b"y")
    assert exit_.take(p.Publish), "other messages pass"
    core.now += 10
    entry.publish("t", b"x")
    assert exit_.take(p.Publish), "and this one, once it is quiet"


def sends(core: Core, entry: Client, exit_: Client, count: int, every_s: float) -> int:
    """*entry* sends the same *count* times; how often it leaves by *exit_*."""
    left = 0
    for _ in range(count):
        entry.publish("t", b"on")
        left += sum(1 for packet in exit_.take(p.Publish) if packet.payload)  # not the probes
        core.now += every_s
    return left


def test_a_sensor_that_repeats_itself_loses_a_few_and_then_no_more() -> None:
    core = Core()
    entry, exit_ = bridge(core, "b1", version=4), bridge(core, "b2", version=4)
    assert sends(core, entry, exit_, 60, every_s=0.1) == 20
    assert sends(core, entry, exit_, 1000, every_s=0.1) == 1000


def test_a_storm_goes_on_being_dropped() -> None:
    core = Core()
    entry, exit_ = bridge(core, "b1", version=4), bridge(core, "b2", version=4)
    assert sends(core, entry, exit_, 2000, every_s=0.001) == 20


def test_a_sensor_behind_a_link_of_one_direction_isn_t_suspected() -> None:
    core = Core()
    entry, exit_ = core.client("b1", is_bridge=True), bridge(core, "b2", version=4)
    assert sends(core, entry, exit_, 1000, every_s=0.03) == 1000


def test_a_ring_of_links_of_one_direction_is_found_later() -> None:
    core = Core()
    entry, exit_ = core.client("b1", is_bridge=True), bridge(core, "b2", version=4)
    assert sends(core, entry, exit_, 1000, every_s=0.005) == 200


@pytest.mark.parametrize("period_s", [0.5, 5, 60])
def test_a_slow_loop_is_found_by_a_probe_that_comes_round_and_broken(period_s: float) -> None:
    core = Core()
    told: list[tuple[str, str]] = []
    core.broker.passage.on_loop = lambda topic, client_id: told.append((topic, client_id))
    subscriber = core.client("s")
    subscriber.subscribe("#", 0)
    entry, exit_ = bridge(core, "b1", version=4), bridge(core, "b2", version=4)

    def rounds(topic: str, payload: bytes) -> int:
        """The brokers beyond send everything on to where it came from, with a prefix."""
        entry.publish(topic, payload)
        count = 0
        while left := exit_.take(p.Publish):
            count += 1
            assert count < 100
            core.now += period_s
            for packet in left:
                entry.publish(packet.topic, packet.payload)
        return count

    # One turn more brings the probe, whose message has left once more by then.
    assert 25 <= rounds("t", b"x") <= 27
    assert told == [("t", "b1")]
    assert 3 <= rounds("t", b"y") <= 5, "where there is a loop others are found sooner"
    core.now += 1000
    assert 25 <= rounds("t", b"x") <= 27
    assert not [packet.topic for packet in subscriber.take(p.Publish) if packet.topic != "t"], "no probe is delivered"


def test_a_sensor_that_repeats_itself_slowly_loses_nothing() -> None:
    core = Core()
    entry, exit_ = bridge(core, "b1", version=4), bridge(core, "b2", version=4)
    payloads = []
    for _ in range(1000):
        entry.publish("t", b"on")
        payloads += [packet.payload for packet in exit_.take(p.Publish)]
        core.now += 1
    # The probes: after 25, 50, 100, 200, 400 and 800.
    assert payloads.count(b"on") == 1000 and payloads.count(b"") == 6


def test_what_comes_over_a_bridge_and_goes_no_further_may_repeat() -> None:
    core = Core()
    link, subscriber = bridge(core, "b1", version=4), core.client("s")
    subscriber.subscribe("t")
    for _ in range(100):
        link.publish("t", b"on")
    assert len(subscriber.take(p.Publish)) == 100


def test_retained_state_at_qos_0_waits_for_an_absent_bridge_also_after_a_restart() -> None:
    core = Core(is_durable=True)
    bridge(core, "b1", version=4, clean=False).lose()
    publisher = core.client("p")
    publisher.publish("state", b"1", retain=True)
    core = core.restarted()
    core.client("p").publish("state", b"", retain=True)
    link = core.client("b1", 4, is_bridge=True, clean_start=False)
    got = [(packet.payload, packet.retain) for packet in link.take(p.Publish)]
    assert got == [(b"1", True), (b"", True)]


def test_retained_messages_told_again_after_a_restart_are_not_taken_again() -> None:
    core = Core(is_durable=True)
    marked: Any = {"user_property": [(MARK, "other-1 other")]}
    bridge(core, "b1").publish("state", b"1", qos=1, retain=True, properties=marked)
    core = core.restarted()
    link, subscriber = bridge(core, "b1"), core.client("s", 5)
    subscriber.subscribe("state", 1, retain_handling=2)
    link.publish("state", b"1", qos=1, retain=True, properties=marked)
    assert subscriber.take(p.Publish) == []


def test_bridges_may_tell_of_themselves_and_nobody_else_may() -> None:
    core = Core()
    subscriber = core.client("s")
    subscriber.subscribe("$SYS/broker/connection/#", 1)
    bridge(core, "b1", version=4).publish("$SYS/broker/connection/b1/state", b"1", qos=1, retain=True)
    bridge(core, "b1", version=4).publish("$SYS/broker/uptime", b"1", qos=1)
    core.client("p").publish("$SYS/broker/connection/p/state", b"1", qos=1)
    assert [packet.topic for packet in subscriber.take(p.Publish)] == ["$SYS/broker/connection/b1/state"]


def test_nobody_takes_over_the_session_of_a_bridge_of_ours() -> None:
    core = Core()
    client = core.client("bridge/kitchen")
    assert client.take()[0].reason_code == 2 and not client.is_open


@pytest.mark.parametrize("version", [4, 5])
def test_messages_that_come_together_are_marked_one_by_one_for_all_who_speak_5_0(version: int) -> None:
    core = Core()
    link, reader, old = bridge(core, "b1"), core.client("r", 5), core.client("o", 4)
    for client in (reader, old):
        client.subscribe("t", 0)
    payloads = [bytes(size) for size in (0, 1, 60, 61, 124, 125, 126, 127, 128, 20_000)]
    publisher = core.client("publisher", version)
    publisher.send_bytes(b"".join(encode(publish_packet("t", payload), version) for payload in payloads))
    sent = [link.take(p.Publish), reader.take(p.Publish), old.take(p.Publish)]
    assert [[packet.payload for packet in each] for each in sent] == [payloads] * 3
    marks = [mark_of(packet) for packet in sent[0]]
    assert len(set(marks)) == len(payloads) and None not in marks
    assert [mark_of(packet) for packet in sent[1]] == marks
    link.publish("t", sent[0][3].payload, properties=sent[0][3].properties)
    assert reader.take(p.Publish) == [], "it has been here"


def test_a_run_for_somebody_who_wants_more_is_marked_all_the_same() -> None:
    core = Core()
    link, reader = bridge(core, "b1"), core.client("r", 5)
    reader.subscribe("t", 0, properties={"subscription_identifier": [7]})
    core.client("publisher").send_bytes(2 * encode(publish_packet("t", b"x"), 4))
    read = reader.take(p.Publish)
    assert [packet.properties["subscription_identifier"] for packet in read] == [[7], [7]]
    assert [mark_of(packet) for packet in read] == [mark_of(packet) for packet in link.take(p.Publish)]


def test_what_a_bridge_can_t_take_is_kept_from_it_alone() -> None:
    core = Core()
    link, reader = core.client("b1", 5, properties=BRIDGE_PROPERTIES | {"maximum_packet_size": 200}), core.client("r")
    link.subscribe("#", 1, no_local=True, retain_as_published=True)
    reader.subscribe("t", 0)
    core.client("publisher").send_bytes(
        b"".join(encode(publish_packet("t", bytes(size)), 4) for size in (10, 300, 20))
    )
    assert [len(packet.payload) for packet in link.take(p.Publish)] == [10, 20]
    assert [len(packet.payload) for packet in reader.take(p.Publish)] == [10, 300, 20]


def test_the_marks_of_the_last_messages_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passage, "_MARKS_MIN", 10)
    core = Core()
    link, subscriber = bridge(core, "b1"), core.client("s", 5)
    subscriber.subscribe("t", 0)
    for number in range(100):
        link.publish("t", properties={"user_property": [(MARK, f"other-{number} other")]})
        link.publish("t", properties={"user_property": [(MARK, f"other-{max(0, number - 9)} other")]})
    assert len(subscriber.take(p.Publish)) == 100
    assert len(core.broker.passage._marks | core.broker.passage._older_marks) <= 20


def test_a_bridge_is_sent_as_many_as_it_asks_for_and_a_client_no_more_than_the_window() -> None:
    core = Core(max_inflight_messages=5, receive_maximum=30)
    under_way = []
    for properties in ({"receive_maximum": 25}, {"receive_maximum": 1000}, {}):
        for is_bridge in (True, False):
            client = core.client("c", 5, properties=properties | (BRIDGE_PROPERTIES if is_bridge else {}))
            client.subscribe("t", 1)
            publisher = core.client("p")
            for number in range(50):
                publisher.publish("t", qos=1, packet_id=number + 1)
            under_way.append(len(client.take(p.Publish)))
    assert under_way == [25, 5, 30, 5, 5, 5]
