"""SUBSCRIBE, UNSUBSCRIBE, PINGREQ, DISCONNECT (3.8 to 3.14) and topics (4.7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from spec_client import Client
from table import shows

from midge.protocol import packets as p

Connect = Callable[..., Client]


# -- SUBACK --


@shows(
    v3="2.3.1-7 3.8.4-1 3.8.4-2 3.8.4-4 3.8.4-5 3.9.3-1 3.9.3-2",
    v5="2.2.1-6 3.8.4-1 3.8.4-2 3.8.4-5 3.8.4-6 3.8.4-7 3.9.3-1 3.9.3-2",
)
def test_several_filters_are_granted_in_one_suback_in_their_order(
    client: Connect, name: str, version: int
) -> None:
    one = client(version)
    wanted = [p.Subscription(f"{name}/{place}", qos) for place, qos in enumerate((2, 0, 1, 0))]
    one.send(p.Subscribe(65_535, wanted))
    assert one.expect(p.Suback) == p.Suback(65_535, [2, 0, 1, 0])
    publisher = client(version)
    for subscription in wanted:
        publisher.publish(subscription.filter, b"x", 2)
    assert [(m.topic, m.qos) for m in (one.take() for _ in wanted)] == [(s.filter, s.qos) for s in wanted]


@shows(v3="3.8.4-6", v5="3.8.4-8")
@pytest.mark.parametrize("published", [0, 1, 2])
@pytest.mark.parametrize("granted", [0, 1, 2])
def test_a_message_comes_with_the_lower_qos(
    client: Connect, name: str, version: int, published: int, granted: int
) -> None:
    reader = client(version)
    assert reader.subscribe(name, granted) == granted
    client(version).publish(name, b"x", published)
    assert reader.take().qos == min(published, granted)


@shows(v3="3.8.4-3", v5="3.8.4-3 3.8.4-4")
def test_the_same_filter_again_replaces_the_subscription(client: Connect, name: str, version: int) -> None:
    reader, publisher = client(version), client(version)
    publisher.publish(name, b"retained", 2, retain=True)
    for qos in (2, 0, 1):
        reader.subscribe(name, qos)
        message = reader.take()
        assert (message.payload, message.retain, message.qos) == (b"retained", True, qos)
        publisher.publish(name, b"live", 2)
        message = reader.take()
        assert (message.payload, message.retain, message.qos) == (b"live", False, qos)
    assert reader.until_ping() == []


@shows(v3="3.8.4-3", v5="3.8.4-4")
def test_no_message_is_lost_while_a_subscription_is_replaced(client: Connect, name: str, version: int) -> None:
    reader, publisher = client(version), client(version)
    reader.subscribe(name, 1)
    for number in range(50):
        publisher.send(p.Publish(name, b"%d" % number, 1, packet_id=number + 1))
        reader.send(p.Subscribe(1, [p.Subscription(name, 1)]))
    numbers: list[int] = []
    while len(numbers) < 50:
        packet = reader.receive(5)
        if isinstance(packet, p.Publish):
            numbers.append(int(packet.payload))
            reader.send(p.Puback(packet.packet_id))
        else:
            assert isinstance(packet, p.Suback)
    assert numbers == list(range(50))


@shows(v3="3.3.5-1", v5="3.3.4-2 3.3.4-3 3.3.4-4")
def test_overlapping_subscriptions_are_one_copy_at_the_highest_qos(
    client: Connect, name: str, version: int
) -> None:
    reader = client(version)
    for number, (topic_filter, qos) in enumerate([("#", 0), ("+", 2), ("a", 1)], 1):
        reader.subscribe(f"{name}/{topic_filter}", qos, identifier=number if version == 5 else None)
    client(version).publish(f"{name}/a", b"x", 2)
    message = reader.take()
    assert message.qos == 2
    if version == 5:
        assert sorted(message.properties["subscription_identifier"]) == [1, 2, 3]
    assert reader.until_ping() == []


@shows(v5="3.3.4-3 3.8.4-3")
def test_a_subscription_identifier_is_that_of_the_last_subscribe(client: Connect, name: str) -> None:
    reader, publisher = client(5), client(5)
    publisher.publish(name, b"retained", 0, retain=True)
    for identifier in (268_435_455, 1, None):
        reader.subscribe(name, identifier=identifier)
        publisher.publish(name, b"live")
        for _ in range(2):
            expected = {"subscription_identifier": [identifier]} if identifier else None
            assert reader.take().properties == expected


@shows(v5="3.8.3-3")
def test_no_local_keeps_what_the_client_published_itself(client: Connect, name: str) -> None:
    one, other = client(5), client(5)
    one.subscribe(name, 1, no_local=True)
    one.publish(name, b"mine", 1)
    other.publish(name, b"another's", 1)
    assert one.take().payload == b"another's"
    assert one.until_ping() == []


@shows(v5="3.3.1-9 3.3.1-10 3.3.1-11")
@pytest.mark.parametrize(("handling", "first", "again"), [(0, 1, 1), (1, 1, 0), (2, 0, 0)])
def test_retain_handling_says_when_retained_messages_are_sent(
    client: Connect, name: str, handling: int, first: int, again: int
) -> None:
    client(5).publish(name, b"retained", 1, retain=True)
    reader = client(5)
    for expected in (first, again):
        reader.subscribe(name, 0, retain_handling=handling)
        assert [m.retain for m in reader.until_ping()] == [True] * expected


@shows(v5="3.3.1-12 3.3.1-13")
@pytest.mark.parametrize("as_published", [False, True])
def test_retain_as_published_keeps_the_flag(client: Connect, name: str, as_published: bool) -> None:
    reader, publisher = client(5), client(5)
    reader.subscribe(name, 1, retain_as_published=as_published)
    publisher.publish(name, b"1", 1, retain=True)
    publisher.publish(name, b"2", 1, retain=False)
    publisher.publish(name, b"3", 0, retain=True)
    publisher.publish(name, b"4", 0, retain=False)
    assert [reader.take().retain for _ in range(4)] == [as_published, False] * 2


# -- UNSUBACK --


@shows(
    v3="2.3.1-7 3.10.4-1 3.10.4-2 3.10.4-4 3.10.4-5 3.10.4-6",
    v5="2.2.1-6 3.10.4-1 3.10.4-2 3.10.4-4 3.10.4-5 3.10.4-6 3.11.3-1 3.11.3-2",
)
def test_exactly_the_named_filters_are_unsubscribed(client: Connect, name: str, version: int) -> None:
    reader, publisher = client(version), client(version)
    for topic_filter in ("a", "A", "+/b", "#"):
        reader.subscribe(f"{name}/{topic_filter}")
    codes = [0x00, 0x11, 0x00, 0x11] if version == 5 else []
    unsubscribed = [f"{name}/a", f"{name}/+", f"{name}/#", f"{name}/c/b"]
    assert reader.unsubscribe(*unsubscribed) == p.Unsuback(1, codes)
    for topic in ("a", "A", "c/b", "d"):
        publisher.publish(f"{name}/{topic}")
    assert [m.topic.removeprefix(f"{name}/") for m in reader.until_ping()] == ["A", "c/b"]


@shows(v3="3.10.4-3", v5="3.10.4-3")
@pytest.mark.parametrize("qos", [1, 2])
def test_a_delivery_that_has_begun_is_completed_after_unsubscribe(
    client: Connect, name: str, version: int, qos: int
) -> None:
    lasting: dict[str, Any] = {"clean_start": False}
    if version == 5:
        lasting["properties"] = {"session_expiry_interval": 60}
    reader = client(version, name, **lasting)
    reader.subscribe(name, qos)
    client(version).publish(name, b"x", qos)
    reader.expect(p.Publish)
    reader.unsubscribe(name)
    again = client(version, name, **lasting)
    message = again.take()
    assert (message.payload, message.dup) == (b"x", True)
    assert again.until_ping() == []


# -- PINGREQ, DISCONNECT --


@shows(v3="3.12.4-1", v5="3.12.4-1")
def test_pingreq_is_answered(client: Connect, version: int) -> None:
    one = client(version)
    one.send(p.Pingreq(), p.Pingreq())
    one.expect(p.Pingresp)
    one.expect(p.Pingresp)


@shows(v3="3.14.4-2")
def test_nothing_that_follows_disconnect_is_done(client: Connect, name: str, version: int) -> None:
    watcher = client(version)
    watcher.subscribe(name)
    one = client(version)
    one.send(p.Disconnect(), p.Publish(name, b"x"))
    assert one.until_closed() == []
    assert watcher.until_ping() == []


@shows(v5="3.14.2-1 4.1.0-2")
def test_disconnect_may_change_the_session_expiry_interval(client: Connect, name: str) -> None:
    one = client(5, name, properties={"session_expiry_interval": 60})
    one.leave(session_expiry_interval=0)
    one = client(5, name, clean_start=False, properties={"session_expiry_interval": 60})
    assert not one.connack.session_present
    one.leave(session_expiry_interval=100)
    assert client(5, name, clean_start=False).connack.session_present


def test_a_session_that_was_to_end_cannot_be_lengthened_by_disconnect(client: Connect) -> None:
    one = client(5)
    one.send(p.Disconnect(0, {"session_expiry_interval": 1}))
    one.expect_disconnect(0x82)


@shows(v5="3.14.4-1 3.14.4-2 4.13.1-1 4.13.2-1")
def test_nothing_follows_the_brokers_disconnect(client: Connect, name: str, version: int) -> None:
    bad, publisher = client(version), client(version)
    bad.subscribe(name, 1)
    for number in range(20):
        publisher.send(p.Publish(name, b"x", number % 2, packet_id=number % 2 and number))
    bad.send_raw(b"\x00\x00")
    publisher.until_ping()
    received = bad.until_closed()
    if version == 5:
        assert type(received.pop()) is p.Disconnect
    assert {type(packet) for packet in received} <= {p.Publish}


# -- topics --


@shows(
    v3="3.3.2-3 4.7.1-1 4.7.1-2 4.7.1-3 4.7.2-1 4.7.3-1 4.7.3-4",
    v5="3.3.2-3 4.7.0-1 4.7.1-1 4.7.1-2 4.7.2-1 4.7.3-1 4.7.3-4",
)
@pytest.mark.parametrize(
    ("topic_filter", "matching", "others"),
    [
        ("sport/#", ["sport", "sport/", "sport/a", "sport/a/b"], ["sports", "/sport", "Sport/a"]),
        ("sport/+", ["sport/", "sport/a"], ["sport", "sport/a/b"]),
        ("+/+", ["/", "a/b", "/b"], ["a", "a/b/c", "$a/b"]),
        ("/+", ["/", "/a"], ["a", "a/b"]),
        ("+", ["a", " "], ["/a", "$a"]),
        ("+/a/#", ["b/a", "b/a/c"], ["$b/a", "a"]),
        ("#", ["/", "a/b/c"], ["$a", "$a/b"]),
        ("$a/#", ["$a", "$a/b"], ["a"]),
        ("ACCOUNTS", ["ACCOUNTS"], ["Accounts", "ACCOUNTS/"]),
        ("caf\u00e9", ["caf\u00e9"], ["cafe\u0301"]),  # the same letters, composed and not
        ("\ufeffa", ["\ufeffa"], ["a"]),
        ("a//b/", ["a//b/"], ["a/b", "a//b"]),
    ],
)
def test_filters_match_these_topics_and_no_others(
    client: Connect, version: int, topic_filter: str, matching: list[str], others: list[str]
) -> None:
    reader, publisher = client(version), client(version)
    reader.subscribe(topic_filter)
    for topic in others + matching:
        publisher.publish(topic, b"live")
    assert [m.topic for m in reader.until_ping() if m.payload == b"live"] == matching


@shows(v3="4.7.3-3", v5="4.7.3-3")
def test_topics_of_65_535_bytes_are_taken(client: Connect, version: int) -> None:
    reader, publisher = client(version), client(version)
    topic = "\u00e4" * 32_767 + "x"  # one more doesn't fit into the length of a string
    reader.subscribe(topic, 1)
    publisher.publish(topic, b"live", 1)
    assert reader.take().topic == topic
