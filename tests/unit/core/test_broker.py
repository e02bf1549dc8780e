"""The core's decisions, packet by packet: connecting, publishing, sessions, wills, retained messages."""

from __future__ import annotations

from typing import Any

import pytest

from midge.protocol import packets as p
from midge.protocol.reasons import ReasonCode

from .harness import Core, connect_packet, publish_packet


def payloads(received: list[Any]) -> list[bytes]:
    return [packet.payload for packet in received if type(packet) is p.Publish]


def will(topic: str = "will", payload: bytes = b"gone", **properties: Any) -> p.Will:
    return p.Will(topic, payload, 0, False, properties or {})  # type: ignore[arg-type]


# -- connecting --


def test_a_new_session_is_not_present_and_a_kept_one_is() -> None:
    core = Core()
    first = core.client("one", clean_start=False)
    assert first.take(p.Connack)[0].session_present is False
    first.lose()
    assert core.client("one", clean_start=False).take(p.Connack)[0].session_present is True
    assert core.client("one", clean_start=True).take(p.Connack)[0].session_present is False


def test_a_clean_session_ends_with_its_connection() -> None:
    core = Core()
    client = core.client("one")
    client.subscribe("a/#", 1)
    client.lose()
    assert core.broker.sessions == {}
    assert core.broker.routing.count == 0


def test_an_empty_client_identifier_with_a_session_to_keep_is_refused() -> None:
    core = Core()
    client = core.client("", clean_start=False)
    assert client.take()[0].reason_code == 2
    assert not client.is_open
    assert core.client("", clean_start=True).take()[0].reason_code == 0


def test_a_version_5_client_is_told_its_assigned_client_identifier() -> None:
    core = Core()
    (connack,) = core.client("", version=5).take()
    assert connack.properties["assigned_client_identifier"] in core.broker.sessions


def test_a_client_identifier_is_taken_over_by_the_later_connection() -> None:
    core = Core()
    older = core.client("one", version=5)
    older.take()
    newer = core.client("one", version=5)
    assert [packet.reason_code for packet in older.take(p.Disconnect)] == [ReasonCode.SESSION_TAKEN_OVER]
    assert not older.is_open and newer.is_open
    assert core.broker.sessions["one"].connection is newer.connection


def test_a_second_connect_is_a_protocol_error() -> None:
    core = Core()
    client = core.client("one", version=5)
    client.take()
    client.send(connect_packet("one", 5))
    assert [packet.reason_code for packet in client.take()] == [ReasonCode.PROTOCOL_ERROR]
    assert not client.is_open


def test_a_connection_without_connect_is_closed_at_the_deadline() -> None:
    core = Core(connect_timeout=5)
    client = core.client(connect=False)
    core.advance(4.9)
    assert client.is_open
    core.advance(0.2)
    assert not client.is_open
    assert not core.broker.connections


def test_keep_alive_closes_a_silent_connection_after_one_and_a_half_intervals() -> None:
    core = Core()
    client = core.client("one", keep_alive_s=10)
    core.advance(10)
    client.send(p.Pingreq())
    core.advance(14.9)
    assert client.is_open
    core.advance(0.2)
    assert not client.is_open


def test_more_connections_than_allowed_are_refused() -> None:
    core = Core(max_connections=1)
    core.client("one")
    refused = core.client("two", version=5)
    assert refused.take()[0].reason_code == ReasonCode.SERVER_BUSY
    assert not refused.is_open


def test_a_keep_alive_above_the_limit_is_announced_and_enforced() -> None:
    core = Core(max_keep_alive=60)
    client = core.client("one", version=5, keep_alive_s=600)
    assert client.take()[0].properties["server_keep_alive"] == 60
    core.advance(91)
    assert not client.is_open


# -- publish and subscribe --


@pytest.mark.parametrize(
    ("published", "granted", "delivered"), [(0, 2, 0), (1, 0, 0), (1, 2, 1), (2, 1, 1), (2, 2, 2)]
)
def test_a_message_is_delivered_at_the_lower_qos(published: int, granted: int, delivered: int) -> None:
    core = Core()
    subscriber, publisher = core.client("sub"), core.client("pub")
    assert subscriber.subscribe("a/+", granted) == granted
    publisher.publish("a/b", b"x", published)
    (packet,) = subscriber.take(p.Publish)
    assert (packet.topic, packet.payload, packet.qos, packet.retain, packet.dup) == (
        "a/b",
        b"x",
        delivered,
        False,
        False,
    )


@pytest.mark.parametrize("version", [4, 5])
def test_a_burst_at_qos_0_reaches_subscribers_of_both_versions_in_order(version: int) -> None:
    core = Core()
    plain, modern = core.client("plain", 4), core.client("modern", 5)
    identified = core.client("identified", 5)
    for client in (plain, modern):
        client.subscribe("a")
    identified.subscribe("a", properties={"subscription_identifier": [9]})
    publisher = core.client("pub", version)
    from midge.protocol.encoder import encode

    burst = b"".join(encode(publish_packet("a", b"%d" % i), version) for i in range(50))
    for client in (plain, modern, identified):
        client.take()
    publisher.send_bytes(burst)
    for client in (plain, modern, identified):
        assert payloads(client.received) == [b"%d" % i for i in range(50)]
    assert all(packet.properties == {"subscription_identifier": [9]} for packet in identified.take())


def test_packet_identifiers_count_from_one_and_pass_over_those_in_use() -> None:
    core = Core(max_inflight_messages=100)
    subscriber, publisher = core.client("sub"), core.client("pub")
    subscriber.subscribe("a", 1)
    for _ in range(3):
        publisher.publish("a", b"x", 1)
    assert [packet.packet_id for packet in subscriber.take(p.Publish)] == [1, 2, 3]
    core.broker.sessions["sub"].last_packet_id = 65_535
    subscriber.send(p.Puback(2))
    publisher.publish("a", b"x", 1)
    publisher.publish("a", b"x", 1)
    assert [packet.packet_id for packet in subscriber.take(p.Publish)] == [2, 4]


def test_no_more_than_the_window_is_under_way_and_the_rest_follows_in_order() -> None:
    core = Core(max_inflight_messages=2)
    subscriber, publisher = core.client("sub"), core.client("pub")
    subscriber.subscribe("a", 1)
    for i in range(5):
        publisher.publish("a", b"%d" % i, 1)
    assert payloads(subscriber.take()) == [b"0", b"1"]
    subscriber.send(p.Puback(1))
    assert payloads(subscriber.take()) == [b"2"]
    subscriber.send(p.Puback(2), p.Puback(3))
    assert payloads(subscriber.take()) == [b"3", b"4"]


def test_the_receive_maximum_of_a_client_is_its_window() -> None:
    core = Core()
    subscriber = core.client("sub", version=5, properties={"receive_maximum": 1})
    subscriber.subscribe("a", 2)
    publisher = core.client("pub")
    publisher.publish("a", b"1", 1)
    publisher.publish("a", b"2", 1)
    assert payloads(subscriber.take()) == [b"1"]


def test_a_qos_2_message_is_routed_once_however_often_it_is_sent() -> None:
    core = Core()
    subscriber, publisher = core.client("sub"), core.client("pub")
    subscriber.subscribe("a", 0)
    publisher.take()
    publisher.publish("a", b"x", 2, packet_id=7)
    publisher.publish("a", b"x", 2, packet_id=7, dup=True)
    assert [type(packet) for packet in publisher.take()] == [p.Pubrec, p.Pubrec]
    publisher.send(p.Pubrel(7))
    publisher.send(p.Pubrel(7))
    assert [type(packet) for packet in publisher.take()] == [p.Pubcomp, p.Pubcomp]
    assert payloads(subscriber.take()) == [b"x"]
    publisher.publish("a", b"y", 2, packet_id=7)
    assert payloads(subscriber.take()) == [b"y"]


def test_a_new_connection_has_the_whole_receive_maximum() -> None:
    core = Core(receive_maximum=2)
    keep = {"session_expiry_interval": 60}
    first = core.client("pub", version=5, clean_start=False, properties=keep)
    first.send(p.Publish("a", b"", 2, packet_id=1), p.Publish("a", b"", 2, packet_id=2))
    first.lose()
    second = core.client("pub", version=5, clean_start=False, properties=keep)
    second.send(p.Publish("a", b"", 2, packet_id=3), p.Publish("a", b"", 2, packet_id=4))
    assert len(second.take(p.Pubrec)) == 2
    second.send(p.Pubrel(1))  # of the first connection: frees nothing of this one's beyond its own
    second.send(p.Pubrel(3), p.Publish("a", b"", 2, packet_id=5))
    assert second.is_open


def test_acknowledgements_leave_in_the_order_of_the_packets() -> None:
    core = Core()
    core.client("sub").subscribe("#", 2)
    publisher = core.client("pub")
    publisher.take()
    for packet_id, qos in ((5, 1), (3, 2), (9, 1), (1, 2)):
        publisher.publish("a", b"x", qos, packet_id)
    assert [(type(packet), packet.packet_id) for packet in publisher.take()] == [
        (p.Puback, 5),
        (p.Pubrec, 3),
        (p.Puback, 9),
        (p.Pubrec, 1),
    ]


def test_overlapping_subscriptions_are_one_copy_at_the_highest_qos() -> None:
    core = Core()
    subscriber, publisher = core.client("sub"), core.client("pub")
    subscriber.subscribe("#", 0)
    subscriber.subscribe("a/+", 1)
    publisher.publish("a/b", b"x", 2)
    assert [packet.qos for packet in subscriber.take(p.Publish)] == [1]


def test_no_local_and_bridges_are_not_sent_what_they_sent() -> None:
    core = Core()
    modern = core.client("modern", version=5)
    modern.subscribe("#", no_local=True)
    bridge = core.client("bridge", is_bridge=True)
    bridge.subscribe("#")
    modern.take()
    modern.publish("a", b"from modern")
    bridge.publish("a", b"from bridge")
    assert payloads(modern.take()) == [b"from bridge"]
    assert payloads(bridge.take()) == [b"from modern"]


def test_an_unsubscribed_filter_gets_nothing_more() -> None:
    core = Core()
    subscriber, publisher = core.client("sub", 5), core.client("pub")
    subscriber.subscribe("a")
    subscriber.send(p.Unsubscribe(2, ["a", "b"]))
    assert subscriber.take(p.Unsuback)[0].reason_codes == [0, ReasonCode.NO_SUBSCRIPTION_EXISTED]
    publisher.publish("a", b"x")
    assert subscriber.take(p.Publish) == []


def test_clients_can_not_publish_the_broker_s_own_topics() -> None:
    core = Core()
    subscriber, publisher = core.client("sub"), core.client("pub", 5)
    subscriber.subscribe("$SYS/#")
    publisher.take()
    publisher.publish("$SYS/broker/version", b"mine", 1, retain=True)
    assert [packet.reason_code for packet in publisher.take()] == [ReasonCode.NOT_AUTHORIZED]
    assert subscriber.take(p.Publish) == []
    assert core.broker.retained.count == 0


def test_a_topic_alias_stands_for_its_topic_and_an_unknown_one_is_an_error() -> None:
    core = Core()
    subscriber = core.client("sub")
    subscriber.subscribe("#")
    publisher = core.client("pub", 5)
    publisher.publish("long/topic", b"1", properties={"topic_alias": 1})
    publisher.publish("", b"2", properties={"topic_alias": 1})
    assert [(packet.topic, packet.payload) for packet in subscriber.take(p.Publish)] == [
        ("long/topic", b"1"),
        ("long/topic", b"2"),
    ]
    publisher.take()
    publisher.publish("", b"3", properties={"topic_alias": 2})
    assert [packet.reason_code for packet in publisher.take()] == [ReasonCode.PROTOCOL_ERROR]
    assert not publisher.is_open


def test_a_message_larger_than_the_client_takes_is_not_sent_and_blocks_nothing() -> None:
    core = Core(max_inflight_messages=1)
    subscriber = core.client("sub", 5, properties={"maximum_packet_size": 30})
    subscriber.subscribe("a", 1)
    publisher = core.client("pub")
    for payload in (b"x" * 100, b"small"):
        publisher.publish("a", payload, 1)
        publisher.publish("a", payload, 0)
    assert payloads(subscriber.take()) == [b"small", b"small"]


def test_properties_travel_from_publisher_to_subscriber() -> None:
    core = Core()
    subscriber, publisher = core.client("sub", 5), core.client("pub", 5)
    subscriber.subscribe("a", 1)
    properties = {
        "payload_format_indicator": 1,
        "content_type": "text/plain",
        "response_topic": "answers",
        "correlation_data": b"\x01\x02",
        "user_property": [("b", "2"), ("a", "1"), ("b", "2")],
    }
    publisher.publish("a", b"x", 1, properties=properties | {"topic_alias": 1})
    assert [packet.properties for packet in subscriber.take(p.Publish)] == [properties]


@pytest.mark.parametrize("qos", [0, 1])
def test_a_shared_subscription_gives_each_message_to_one_member_in_turn(qos: int) -> None:
    core = Core()
    workers = [core.client(name) for name in ("one", "two", "three")]
    for worker in workers:
        assert worker.subscribe("$share/crew/jobs/+", 1) == 1
    watcher = core.client("watch")
    watcher.subscribe("jobs/#")
    publisher = core.client("pub")
    for i in range(6):
        publisher.publish("jobs/x", b"%d" % i, qos, packet_id=i + 1)
    assert [payloads(worker.take()) for worker in workers] == [[b"0", b"3"], [b"1", b"4"], [b"2", b"5"]]
    assert len(payloads(watcher.take())) == 6
    workers[1].lose()  # for good: what it didn't acknowledge goes to the others (MQTT 5.0 §4.8.2)
    unacknowledged = [sorted(payloads(workers[i].take())) for i in (0, 2)]
    assert unacknowledged == ([[b"1"], [b"4"]] if qos else [[], []])
    for i in range(4):
        publisher.publish("jobs/x", b"%d" % i, qos, packet_id=i + 7)
    assert [len(payloads(workers[i].take())) for i in (0, 2)] == [2, 2]


def test_a_shared_subscription_prefers_members_with_room_and_keeps_for_the_absent() -> None:
    core = Core(max_inflight_messages=1)
    busy, idle = core.client("busy", clean_start=False), core.client("idle", clean_start=False)
    busy.subscribe("$share/crew/a", 1)
    busy.subscribe("only/busy", 1)
    idle.subscribe("$share/crew/a", 1)
    publisher = core.client("pub")
    publisher.publish("only/busy", b"x", 1)
    busy.take()
    publisher.publish("a", b"1", 1)
    assert payloads(idle.take()) == [b"1"]
    busy.lose()
    idle.lose()
    publisher.publish("a", b"2", 1)
    assert sum(len(session.queue) for session in core.broker.sessions.values()) == 1


def test_a_shared_subscription_gets_no_retained_messages() -> None:
    core = Core()
    core.client("pub").publish("a", b"1", retain=True)
    subscriber = core.client("sub")
    subscriber.subscribe("$share/crew/a")
    assert subscriber.take(p.Publish) == []


# -- retained --


def test_a_retained_message_is_sent_to_a_new_subscription_with_the_flag() -> None:
    core = Core()
    publisher, early = core.client("pub"), core.client("early")
    early.subscribe("a")
    publisher.publish("a", b"1", 1, retain=True)
    assert [(packet.payload, packet.retain) for packet in early.take(p.Publish)] == [(b"1", False)]
    late = core.client("late")
    late.subscribe("#", 1)
    assert [(packet.payload, packet.retain, packet.qos) for packet in late.take(p.Publish)] == [
        (b"1", True, 1)
    ]
    publisher.publish("a", b"", retain=True)
    later = core.client("later")
    later.subscribe("#")
    assert later.take(p.Publish) == []


@pytest.mark.parametrize(("handling", "first", "again"), [(0, 1, 1), (1, 1, 0), (2, 0, 0)])
def test_retain_handling_decides_when_retained_messages_are_sent(
    handling: int, first: int, again: int
) -> None:
    core = Core()
    core.client("pub").publish("a", b"1", retain=True)
    subscriber = core.client("sub", 5)
    subscriber.take()
    subscriber.subscribe("a", retain_handling=handling)
    assert len(subscriber.take(p.Publish)) == first
    subscriber.subscribe("a", retain_handling=handling)
    assert len(subscriber.take(p.Publish)) == again


def test_a_filter_that_a_subscribe_names_twice_is_told_what_is_retained_once() -> None:
    core = Core()
    core.client("pub").publish("a", b"1", retain=True)
    for handling in (0, 1):
        subscriber = core.client(f"sub {handling}", 5)
        wanted = [p.Subscription("a", qos, retain_handling=handling) for qos in (0, 1)]
        subscriber.send(p.Subscribe(1, wanted, None))
        assert [packet.payload for packet in subscriber.take(p.Publish)] == [b"1"]


def test_retain_as_published_keeps_the_flag() -> None:
    core = Core()
    subscriber = core.client("sub", 5)
    subscriber.subscribe("a", 1, retain_as_published=True)
    publisher = core.client("pub")
    publisher.publish("a", b"1", retain=True)
    publisher.publish("a", b"2", 1, retain=True)
    publisher.publish("a", b"3", 1)
    assert [packet.retain for packet in subscriber.take(p.Publish)] == [True, True, False]


# -- wills --


def test_a_lost_connection_publishes_its_will_and_a_disconnect_does_not() -> None:
    core = Core()
    watcher = core.client("watch")
    watcher.subscribe("will")
    polite = core.client("polite", will=will(payload=b"polite"))
    polite.send(p.Disconnect())
    core.client("lost", will=will(payload=b"lost")).lose()
    core.client("bad", will=will(payload=b"bad")).send_bytes(b"\xff\xff\xff\xff\xff")
    assert payloads(watcher.take()) == [b"lost", b"bad"]


def test_disconnect_with_reason_4_publishes_the_will() -> None:
    core = Core()
    watcher = core.client("watch")
    watcher.subscribe("will")
    client = core.client("one", 5, will=will())
    client.send(p.Disconnect(ReasonCode.DISCONNECT_WITH_WILL_MESSAGE))
    assert payloads(watcher.take()) == [b"gone"]


def test_a_delayed_will_waits_and_is_dropped_when_the_session_returns() -> None:
    core = Core()
    watcher = core.client("watch")
    watcher.subscribe("will")
    fields = {
        "clean_start": False,
        "properties": {"session_expiry_interval": 100},
        "will": will(will_delay_interval=10),
    }
    core.client("one", 5, **fields).lose()
    core.advance(9)
    again = core.client("one", 5, **fields)
    core.advance(5)
    assert payloads(watcher.take()) == []
    again.lose()
    core.advance(9.9)
    assert payloads(watcher.take()) == []
    core.advance(0.2)
    assert payloads(watcher.take()) == [b"gone"]


def test_a_delayed_will_is_published_when_the_session_ends_before() -> None:
    core = Core()
    watcher = core.client("watch")
    watcher.subscribe("will")
    properties = {"session_expiry_interval": 3}
    core.client("one", 5, properties=properties, will=will(will_delay_interval=10)).lose()
    core.advance(3.1)
    assert payloads(watcher.take()) == [b"gone"]
    assert "one" not in core.broker.sessions


def test_a_delayed_will_that_a_clean_start_brings_forward_is_not_published_again() -> None:
    core = Core()
    watcher = core.client("watch")
    watcher.subscribe("will")
    properties = {"session_expiry_interval": 60}
    core.client("one", 5, properties=properties, will=will(will_delay_interval=10)).lose()
    core.client("one", 5, clean_start=True)
    assert payloads(watcher.take(p.Publish)) == [b"gone"]
    core.advance(20)
    assert watcher.take(p.Publish) == []


# -- sessions --


def test_messages_for_an_absent_session_wait_and_arrive_in_order() -> None:
    core = Core()
    subscriber, publisher = core.client("sub", clean_start=False), core.client("pub")
    subscriber.subscribe("a", 1)
    subscriber.lose()
    for i in range(30):
        publisher.publish("a", b"%d" % i, i % 3, packet_id=i + 1)
    again = core.client("sub", clean_start=False)
    assert payloads(again.take()) == [b"%d" % i for i in range(30) if i % 3]


def test_the_oldest_message_of_a_full_queue_goes_and_is_counted() -> None:
    core = Core(max_queued_messages=10)
    subscriber, publisher = core.client("sub", clean_start=False), core.client("pub")
    subscriber.subscribe("a", 1)
    subscriber.lose()
    for i in range(15):
        publisher.publish("a", b"%d" % i, 1)
    assert payloads(core.client("sub", clean_start=False).take()) == [b"%d" % i for i in range(5, 15)]
    assert core.broker.counters.dropped_queue_full == 5


def test_a_queue_is_bounded_in_bytes_too() -> None:
    core = Core(max_queued_bytes=1000)
    subscriber, publisher = core.client("sub", clean_start=False), core.client("pub")
    subscriber.subscribe("a", 1)
    subscriber.lose()
    for _ in range(20):
        publisher.publish("a", b"x" * 99, 1)
    session = core.broker.sessions["sub"]
    assert len(session.queue) == 10 and session.queue.bytes == 1000


def test_what_was_unacknowledged_is_sent_again_with_dup_and_the_same_identifier() -> None:
    core = Core()
    subscriber, publisher = core.client("sub", clean_start=False), core.client("pub")
    subscriber.subscribe("a", 2)
    for qos in (1, 2, 2):
        publisher.publish("a", b"x", qos, packet_id=qos)
        publisher.send(p.Pubrel(2))
    first = subscriber.take(p.Publish)
    subscriber.send(p.Pubrec(first[1].packet_id))
    subscriber.lose()
    again = core.client("sub", clean_start=False).take()[1:]
    assert [(type(packet), packet.packet_id) for packet in again] == [
        (p.Publish, first[0].packet_id),
        (p.Pubrel, first[1].packet_id),
        (p.Publish, first[2].packet_id),
    ]
    assert again[0].dup and again[2].dup


def test_a_session_expires_and_takes_its_queue_along() -> None:
    core = Core()
    subscriber, publisher = (
        core.client("sub", 5, properties={"session_expiry_interval": 60}),
        core.client("pub"),
    )
    subscriber.subscribe("a", 1)
    subscriber.lose()
    publisher.publish("a", b"x", 1)
    core.advance(59)
    assert "sub" in core.broker.sessions
    core.advance(2)
    assert "sub" not in core.broker.sessions
    assert core.broker.routing.count == 0


def test_an_expired_message_is_not_delivered_and_the_time_left_is_passed_on() -> None:
    core = Core()
    subscriber = core.client("sub", 5, properties={"session_expiry_interval": 600})
    subscriber.subscribe("a", 1)
    subscriber.lose()
    publisher = core.client("pub", 5)
    publisher.publish("a", b"short", 1, properties={"message_expiry_interval": 5})
    publisher.publish("a", b"long", 1, properties={"message_expiry_interval": 60})
    core.advance(20)
    again = core.client("sub", 5, clean_start=False, properties={"session_expiry_interval": 600})
    (packet,) = again.take(p.Publish)
    assert packet.payload == b"long" and packet.properties == {"message_expiry_interval": 40}
    assert core.broker.counters.dropped_expired == 1


def test_pingresp_comes_after_what_was_queued() -> None:
    core = Core(max_inflight_messages=2)
    subscriber, publisher = core.client("sub", clean_start=False), core.client("pub")
    subscriber.subscribe("a", 1)
    subscriber.lose()
    for _ in range(3):
        publisher.publish("a", b"x", 1)
    again = core.client("sub", clean_start=False, keep_alive_s=60)
    again.send(p.Pingreq())
    assert p.Pingresp not in [type(packet) for packet in again.received]
    again.send(p.Puback(1))
    assert [type(packet) for packet in again.take()[1:]] == [p.Publish, p.Publish, p.Publish, p.Pingresp]


def test_pingresp_comes_within_half_the_keep_alive_even_if_the_queue_does_not_move() -> None:
    core = Core(max_inflight_messages=1)
    subscriber, publisher = core.client("sub", keep_alive_s=60), core.client("pub")
    subscriber.subscribe("a", 1)
    publisher.publish("a", b"x", 1)
    publisher.publish("a", b"x", 1)
    subscriber.send(p.Pingreq())
    subscriber.take()
    core.advance(29.9)
    assert subscriber.take(p.Pingresp) == []
    core.advance(0.2)
    assert len(subscriber.take(p.Pingresp)) == 1


def test_a_slow_reader_loses_qos_0_beyond_its_bound_and_nobody_else_does() -> None:
    core = Core(max_output_bytes=2000)
    slow, quick, publisher = core.client("slow"), core.client("quick"), core.client("pub")
    slow.subscribe("a")
    quick.subscribe("a")
    slow.connection.is_paused = True
    for _ in range(50):
        publisher.publish("a", b"x" * 96)
    assert len(payloads(quick.take())) == 50
    assert core.broker.counters.dropped_output_full == 50 - 19  # PUBLISH packets of 101 bytes
    slow.connection.is_paused = False
    slow.flush()
    assert len(payloads(slow.take())) == 19


def test_shutting_down_tells_version_5_clients_and_publishes_no_will() -> None:
    core = Core()
    watcher = core.client("watch", 5)
    watcher.subscribe("will")
    client = core.client("one", 5, will=will())
    core.broker.shut_down()
    core.turn()
    assert [packet.reason_code for packet in client.take(p.Disconnect)] == [ReasonCode.SERVER_SHUTTING_DOWN]
    assert watcher.take(p.Publish) == []
    assert not client.is_open


def test_a_packet_that_comes_alone_and_is_wrong_is_refused_once() -> None:
    core = Core()
    subscriber = core.client("sub")
    subscriber.subscribe("#", 2)
    core.client("pub").publish("a", b"x", 2)
    (delivery,) = subscriber.take(p.Publish)
    subscriber.send(p.Puback(delivery.packet_id))  # for a message of QoS 2
    assert not subscriber.is_open
    assert core.broker.counters.protocol_errors == 1
