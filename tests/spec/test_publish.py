"""PUBLISH and its acknowledgements (3.3 to 3.7): DUP, RETAIN, properties, aliases, expiry, flow control, sizes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from spec_client import Client
from table import shows

from midge.protocol import packets as p

Connect = Callable[..., Client]
BOM = "\ufeff"


def keep(version: int) -> dict[str, Any]:
    """What CONNECT says so that its session lasts."""
    return {"clean_start": False} | ({"properties": {"session_expiry_interval": 300}} if version == 5 else {})


# -- answers, DUP, packet identifiers --


@shows(v3="2.3.1-6 3.3.4-1 4.3.2-2 4.3.3-2", v5="2.2.1-5 3.3.4-1 3.4.2-1 3.5.2-1 3.7.2-1 4.3.2-4 4.3.3-8 4.3.3-11")
@pytest.mark.parametrize("packet_id", [1, 256, 65_535])
def test_publish_is_answered_as_its_qos_asks(client: Connect, name: str, version: int, packet_id: int) -> None:
    one = client(version)
    assert one.publish(name, b"x", 0) is None
    for qos in (1, 2):  # `publish` looks at the packet identifiers
        assert one.publish(name, b"x", qos, packet_id=packet_id).reason_code in (0, 0x10)


@shows(v3="2.3.1-5 3.3.1-2 4.3.1-1", v5="2.2.1-2 2.2.2-1 3.3.1-2 4.3.1-1")
def test_qos_0_has_neither_dup_nor_packet_identifier(client: Connect, name: str, version: int) -> None:
    reader = client(version)
    reader.subscribe(name)
    client(version).publish(name, b"x", 1)
    assert reader.socket is not None
    reader.socket.settimeout(5)
    topic = name.encode()
    properties = b"\x00" if version == 5 else b""  # no properties: a length of 0
    expected = bytes((0x30, 3 + len(topic) + len(properties), 0, len(topic))) + topic + properties + b"x"
    assert reader.socket.recv(1000) == expected


@shows(v3="3.3.1-3", v5="3.3.1-3")
@pytest.mark.parametrize("qos", [1, 2])
def test_dup_of_what_came_is_not_passed_on(client: Connect, name: str, version: int, qos: int) -> None:
    reader = client(version)
    reader.subscribe(name, 2)
    client(version).publish(name, b"x", qos, dup=True)
    assert reader.take().dup is False


@shows(
    v3="2.3.1-4 3.3.1-1 4.3.2-1 4.3.3-1 4.4.0-1 4.6.0-1",
    v5="2.2.1-4 3.3.1-1 4.3.2-1 4.3.2-2 4.3.2-3 4.3.3-1 4.3.3-2 4.3.3-3 4.4.0-1 4.6.0-1",
)
def test_what_is_unacknowledged_is_sent_again_in_order_with_dup_and_its_identifier(
    client: Connect, name: str, version: int
) -> None:
    reader = client(version, name, **keep(version))
    reader.subscribe(name, 2)
    publisher = client(version)
    for number in range(6):
        publisher.publish(name, b"%d" % number, 1 + number % 2)
    first = [reader.expect(p.Publish) for _ in range(6)]
    assert not any(message.dup for message in first)
    assert len({message.packet_id for message in first}) == 6
    assert reader.until_ping() == []  # at no other time
    again = client(version, name, **keep(version))
    second = [again.take() for _ in range(6)]
    assert all(message.dup for message in second)
    assert [(m.packet_id, m.payload, m.qos) for m in second] == [(m.packet_id, m.payload, m.qos) for m in first]
    assert not any(message.packet_id == 0 for message in first)
    third = client(version, name, **keep(version))
    assert third.until_ping() == []


@shows(v3="4.3.3-1 4.4.0-1 4.6.0-4", v5="4.3.3-4 4.3.3-5 4.3.3-6 4.6.0-4 3.6.2-1")
def test_after_pubrec_only_pubrel_is_sent_until_pubcomp(client: Connect, name: str, version: int) -> None:
    reader = client(version, name, **keep(version))
    reader.subscribe(name, 2)
    publisher = client(version)
    for payload in (b"1", b"2", b"3"):
        publisher.publish(name, payload, 2)
    ids = [reader.expect(p.Publish).packet_id for _ in range(3)]
    backwards = ids[::-1]
    reader.send(*(p.Pubrec(packet_id) for packet_id in backwards))
    assert [reader.expect(p.Pubrel).packet_id for _ in range(3)] == backwards  # in the order of the PUBRECs
    again = client(version, name, **keep(version))
    assert sorted(again.expect(p.Pubrel).packet_id for _ in range(3)) == ids
    again.send(*(p.Pubcomp(packet_id) for packet_id in ids))
    assert client(version, name, **keep(version)).until_ping() == []


@shows(v3="4.3.2-2", v5="4.3.2-5")
@pytest.mark.parametrize("dup", [False, True])
def test_after_puback_the_same_identifier_is_a_new_message(
    client: Connect, name: str, version: int, dup: bool
) -> None:
    reader = client(version)
    reader.subscribe(name, 1)
    publisher = client(version)
    for payload in (b"1", b"2"):
        publisher.publish(name, payload, 1, packet_id=7, dup=dup)
        assert reader.take().payload == payload


@shows(v3="4.3.3-2", v5="4.3.3-10 4.3.3-12 4.3.3-11")
def test_until_pubrel_the_same_identifier_is_no_new_message(client: Connect, name: str, version: int) -> None:
    reader = client(version)
    reader.subscribe(name, 2)
    publisher = client(version)
    for dup in (False, True, True):
        publisher.send(p.Publish(name, b"1", 2, dup=dup, packet_id=7))
        assert publisher.expect(p.Pubrec).packet_id == 7
    publisher.send(p.Pubrel(7))
    assert publisher.expect(p.Pubcomp).packet_id == 7
    assert reader.take().payload == b"1"
    assert reader.until_ping() == []
    publisher.publish(name, b"2", 2, packet_id=7)
    assert reader.take().payload == b"2"


@shows(v3="4.3.3-2 4.4.0-1", v5="4.3.3-10 4.4.0-1")
def test_a_qos_2_exchange_goes_on_over_connections_without_a_second_copy(
    client: Connect, name: str, version: int
) -> None:
    reader = client(version)
    reader.subscribe(name, 2)
    publisher = client(version, name, **keep(version))
    publisher.send(p.Publish(name, b"1", 2, packet_id=7))
    publisher.expect(p.Pubrec)
    publisher.close()
    publisher = client(version, name, **keep(version))
    publisher.send(p.Publish(name, b"1", 2, dup=True, packet_id=7))
    publisher.expect(p.Pubrec)
    publisher.send(p.Pubrel(7))
    publisher.expect(p.Pubcomp)
    assert reader.take().payload == b"1"
    assert reader.until_ping() == []


@shows(v5="3.7.2-1 3.6.2-1")
def test_an_unknown_identifier_is_answered_by_0x92(client: Connect) -> None:
    one = client(5)
    one.send(p.Pubrel(9))
    assert one.expect(p.Pubcomp) == p.Pubcomp(9, 0x92)
    one.send(p.Pubrec(9))
    assert one.expect(p.Pubrel) == p.Pubrel(9, 0x92)


@shows(v5="4.3.3-9 3.5.2-1 3.4.2-1")
def test_a_refused_message_leaves_its_identifier_free(client: Connect, name: str) -> None:
    reader, one = client(5), client(5)
    reader.subscribe(name, 2)
    for qos, kind in ((1, p.Puback), (2, p.Pubrec)):
        refused = one.publish("$SYS/mine", b"x", qos, packet_id=7)  # what only the broker publishes
        assert refused == kind(7, 0x87)
        one.publish(name, b"new", qos, packet_id=7)
        assert reader.take().payload == b"new"


@shows(v3="4.6.0-2 4.6.0-3", v5="4.6.0-2 4.6.0-3")
def test_acknowledgements_come_in_the_order_of_the_messages(client: Connect, name: str, version: int) -> None:
    one = client(version)
    ids = [3, 1, 65_535, 2, 9]
    for qos, kind in ((1, p.Puback), (2, p.Pubrec)):
        one.send(*(p.Publish(name, b"x", qos, packet_id=packet_id) for packet_id in ids))
        assert [one.expect(kind).packet_id for _ in ids] == ids


@shows(v3="4.6.0-5 4.6.0-6", v5="4.6.0-5 4.6.0-6")
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_messages_of_one_client_keep_their_order(client: Connect, name: str, version: int, qos: int) -> None:
    reader = client(version)
    reader.subscribe(name, qos)
    publisher = client(version)
    publisher.send(*(p.Publish(name, b"%d" % i, qos, packet_id=i + 1 if qos else 0) for i in range(200)))
    numbers: list[int] = []
    while len(numbers) < 200:
        packet = reader.receive(5)
        if isinstance(packet, p.Publish):
            numbers.append(int(packet.payload))
            if qos:
                reader.send(p.Puback(packet.packet_id) if qos == 1 else p.Pubrec(packet.packet_id))
        else:
            reader.send(p.Pubcomp(packet.packet_id))
    assert numbers == list(range(200))


@shows(v3="4.5.0-1", v5="4.5.0-1")
def test_a_message_is_in_the_state_of_every_matching_session(client: Connect, name: str, version: int) -> None:
    names = [f"{name}-{number}" for number in range(3)]
    for each in names:
        reader = client(version, each, **keep(version))
        reader.subscribe(f"{name}/+", 1)
        reader.leave()
    client(version).publish(f"{name}/a", b"x", 1)
    for each in names:
        assert client(version, each, **keep(version)).take().payload == b"x"


@shows(v5="4.4.0-2")
@pytest.mark.parametrize("qos", [1, 2])
def test_a_refused_message_is_not_sent_again(client: Connect, name: str, qos: int) -> None:
    reader = client(5, name, **keep(5))
    reader.subscribe(name, 2)
    client(5).publish(name, b"x", qos)
    message = reader.expect(p.Publish)
    reader.send((p.Puback if qos == 1 else p.Pubrec)(message.packet_id, 0x83))
    assert reader.until_ping() == []
    assert client(5, name, **keep(5)).until_ping() == []


# -- RETAIN --


@shows(
    v3="3.3.1-5 3.3.1-6 3.3.1-7 3.3.1-8 3.3.1-9 3.3.1-12",
    v5="3.3.1-5 3.3.1-8 3.3.1-9 3.3.1-12",
)
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_the_last_retained_message_waits_for_subscribers(
    client: Connect, name: str, version: int, qos: int
) -> None:
    present = client(version)
    present.subscribe(name, 2)
    publisher = client(version)
    publisher.publish(name, b"old", 2, retain=True)
    publisher.publish(name, b"last", qos, retain=True)
    publisher.publish(name, b"live", 2)
    assert [(m.payload, m.retain) for m in (present.take() for _ in range(3))] == [
        (b"old", False), (b"last", False), (b"live", False)]  # fmt: skip
    later = client(version)
    later.subscribe(name, 2)
    message = later.take()
    assert (message.payload, message.qos, message.retain) == (b"last", qos, True)
    assert later.until_ping() == []


@shows(v3="3.3.1-10 3.3.1-11", v5="3.3.1-6 3.3.1-7")
def test_an_empty_retained_message_is_delivered_and_removes_the_one_before(
    client: Connect, name: str, version: int
) -> None:
    present = client(version)
    publisher = client(version)
    publisher.publish(name, b"old", 1, retain=True)
    present.subscribe(name)
    assert present.take().payload == b"old"
    publisher.publish(name, b"", 1, retain=True)
    assert present.take().payload == b""
    later = client(version)
    later.subscribe(name)
    assert later.until_ping() == []


# -- properties of a message --


@shows(v3="1.5.3-3", v5="1.5.4-3 3.3.2-4 3.3.2-13 3.3.2-15 3.3.2-16 3.3.2-17 3.3.2-18 3.3.2-19 3.3.2-20")
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_what_was_published_comes_unaltered(client: Connect, name: str, version: int, qos: int) -> None:
    topic = f"{name}/{BOM}ä/{BOM}"
    properties = {
        "payload_format_indicator": 1,
        "content_type": f"{BOM}text/plain",
        "response_topic": f"answers/{BOM}",
        "correlation_data": b"\x00\xff",
        "user_property": [("b", "1"), ("a", "2"), ("b", "1"), ("", "")],
    }
    reader = client(version)
    reader.subscribe(topic, qos)
    client(version).publish(topic, b"\x00payload", qos, **(properties if version == 5 else {}))
    message = reader.take()
    assert (message.topic, message.payload) == (topic, b"\x00payload")
    assert message.properties == (properties if version == 5 else None)


@shows(v5="1.5.4-1 1.5.4-2 1.5.7-1 3.3.2-13 3.3.2-19")
@pytest.mark.parametrize("identifier", [3, 8, 0x26])  # content type, response topic, user property
@pytest.mark.parametrize("text", [b"\xed\xa0\x80", b"a\x00b", b"\xc3\x28"])
def test_strings_of_properties_that_are_no_utf_8_are_malformed(
    client: Connect, name: str, identifier: int, text: bytes
) -> None:
    one = client(5)
    value = bytes((identifier, 0, len(text))) + text + (b"\x00\x01v" if identifier == 0x26 else b"")
    topic = name.encode()
    body = bytes((0, len(topic))) + topic + bytes((len(value),)) + value
    one.send_raw(bytes((0x30, len(body))) + body)
    one.expect_disconnect(0x81)


@shows(v5="3.3.2-5 3.3.2-6")
def test_a_message_waits_no_longer_than_its_expiry_interval(client: Connect, name: str) -> None:
    reader = client(5, name, **keep(5))
    reader.subscribe(name, 1)
    reader.leave()
    publisher = client(5)
    publisher.publish(name, b"short", 1, message_expiry_interval=1)
    publisher.publish(name, b"long", 1, message_expiry_interval=100)
    publisher.publish(name, b"retained", 1, retain=True, message_expiry_interval=1)
    time.sleep(1.1)
    reader = client(5, name, **keep(5))
    message = reader.take()
    assert message.payload == b"long"
    assert 90 < message.properties["message_expiry_interval"] <= 99
    assert reader.until_ping() == []
    reader.subscribe(name)
    assert reader.until_ping() == []  # the retained message has expired too


@shows(v5="3.3.2-6")
def test_an_expiry_interval_is_passed_on_at_once_as_it_came(client: Connect, name: str) -> None:
    reader = client(5)
    reader.subscribe(name)
    publisher = client(5)
    for interval in (1, 10, 3600, 0xFFFF_FFFF):
        publisher.publish(name, b"x", 0, message_expiry_interval=interval)
        assert reader.take().properties == {"message_expiry_interval": interval}


@shows(v5="4.3.3-7 4.3.3-13")
def test_what_was_sent_does_not_expire(client: Connect, name: str) -> None:
    reader = client(5, name, **keep(5))
    reader.subscribe(name, 2)
    client(5).publish(name, b"x", 2, message_expiry_interval=1)
    reader.expect(p.Publish)
    reader.close()
    time.sleep(1.1)
    again = client(5, name, **keep(5))
    message = again.take()
    assert (message.payload, message.dup) == (b"x", True)


# -- topic aliases --


@shows(v5="3.3.2-12 3.3.2-7")
def test_all_topic_aliases_that_connack_allows_stand_for_their_topics(client: Connect, name: str) -> None:
    reader = client(5)
    reader.subscribe(f"{name}/#")
    publisher = client(5)
    maximum = publisher.connack.properties["topic_alias_maximum"]
    assert maximum > 1
    for alias in (1, maximum):
        publisher.publish(f"{name}/{alias}", b"1", 0, topic_alias=alias)
    publisher.publish("", b"2", 0, topic_alias=maximum)
    publisher.publish(f"{name}/new", b"3", 0, topic_alias=1)
    publisher.publish("", b"4", 1, topic_alias=1)
    received = [reader.take() for _ in range(5)]
    assert [message.topic.rpartition("/")[2] for message in received] == [
        "1", str(maximum), str(maximum), "new", "new"]  # fmt: skip
    assert not any("topic_alias" in (message.properties or {}) for message in received)
    other = client(5)
    other.send(p.Publish("", b"5", properties={"topic_alias": 1}))
    other.expect_disconnect(0x82)


@shows(v5="3.2.2-17 3.3.2-9 3.3.2-8")
@pytest.mark.parametrize("above", [0, 1])
def test_an_illegal_topic_alias_ends_the_connection(client: Connect, name: str, above: int) -> None:
    one = client(5)
    alias = one.connack.properties["topic_alias_maximum"] + 1 if above else 0
    topic = name.encode()
    body = bytes((0, len(topic))) + topic + b"\x03\x23" + alias.to_bytes(2, "big")
    one.send_raw(bytes((0x30, len(body))) + body)
    one.expect_disconnect(0x94)


@shows(v5="3.1.2-26 3.3.2-11 3.3.2-7")
@pytest.mark.parametrize("qos", [0, 1])
def test_the_broker_assigns_topic_aliases_up_to_the_clients_maximum(
    client: Connect, name: str, qos: int
) -> None:
    publisher = client(5)
    for _ in range(2):  # a new connection knows no alias
        reader = client(5, name, properties={"topic_alias_maximum": 2})
        reader.subscribe(f"{name}/#", qos)
        seen: list[tuple[str, int]] = []
        for topic in ("one", "two", "three", "one", "two", "three"):
            publisher.publish(f"{name}/{topic}", topic.encode(), qos)
            message = reader.take()
            assert message.payload == topic.encode()
            seen.append((message.topic, (message.properties or {}).get("topic_alias", 0)))
        three = (f"{name}/three", 0)
        assert seen == [(f"{name}/one", 1), (f"{name}/two", 2), three, ("", 1), ("", 2), three]


@shows(v5="3.1.2-27")
@pytest.mark.parametrize("properties", [{}, {"topic_alias_maximum": 0}])
def test_without_a_maximum_the_broker_uses_no_topic_alias(
    client: Connect, name: str, properties: dict[str, int]
) -> None:
    reader = client(5, properties=properties)
    reader.subscribe(name)
    publisher = client(5)
    for _ in range(3):
        publisher.publish(name, b"x")
        message = reader.take()
        assert (message.topic, message.properties) == (name, None)


# -- how much may be under way, and how large --


@shows(v5="3.3.4-9 3.3.4-10 4.9.0-1 4.9.0-2 4.9.0-3")
@pytest.mark.parametrize("maximum", [1, 3])
def test_no_more_than_the_clients_receive_maximum_is_under_way(
    client: Connect, name: str, maximum: int
) -> None:
    reader = client(5, properties={"receive_maximum": maximum}, keep_alive_s=2)
    reader.subscribe(name, 2)
    publisher = client(5)
    for number in range(6):
        publisher.publish(name, b"%d" % number, 1 + number % 2)
    first = [reader.expect(p.Publish) for _ in range(maximum)]
    publisher.publish(name, b"qos 0")
    reader.send(p.Subscribe(2, [p.Subscription(f"{name}/other")]))
    assert reader.expect(p.Publish).payload == b"qos 0"  # QoS 0 and other packets go on
    assert reader.expect(p.Suback).packet_id == 2
    reader.send(p.Pubrec(first[0].packet_id, 0x80) if first[0].qos == 2 else p.Puback(first[0].packet_id))
    assert reader.expect(p.Publish).payload == b"%d" % maximum


@shows(v5="3.3.4-7")
def test_a_client_with_more_than_receive_maximum_under_way_is_told_so(client: Connect, name: str) -> None:
    one = client(5)
    maximum = one.connack.properties["receive_maximum"]
    for packet_id in range(1, maximum + 1):
        one.send(p.Publish(name, b"", 2, packet_id=packet_id))
    for packet_id in range(1, maximum + 1):
        assert one.expect(p.Pubrec).packet_id == packet_id
    one.send(p.Publish(name, b"", 2, packet_id=maximum + 1))
    one.expect_disconnect(0x93)


@shows(v5="3.2.2-15")
def test_a_packet_above_the_brokers_maximum_is_refused_by_its_header(client: Connect) -> None:
    one = client(5)
    assert one.connack.properties["maximum_packet_size"] < 0x0FFF_FFFF
    one.send_raw(b"\x30\xff\xff\xff\x7f")
    one.expect_disconnect(0x95)


@shows(v5="3.1.2-24 3.1.2-25")
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_message_too_large_for_the_client_is_dropped_as_if_it_had_been_sent(
    client: Connect, name: str, qos: int
) -> None:
    reader = client(5, name, properties={"maximum_packet_size": 60, "receive_maximum": 1})
    reader.subscribe(name, 2)
    publisher = client(5)
    overhead = 2 + 2 + len(name) + 1 + (2 if qos else 0)
    for size in (61, 60, 2000):
        publisher.publish(name, bytes(size - overhead), qos)
    publisher.publish(name, b"last", qos)
    assert len(reader.take().payload) == 60 - overhead
    assert reader.take().payload == b"last"
    assert reader.until_ping() == []


@shows(
    v5="3.1.2-24 3.1.2-29 3.4.2-2 3.4.2-3 3.5.2-2 3.5.2-3 3.6.2-2 3.6.2-3 3.7.2-2 3.7.2-3 3.9.2-1 3.9.2-2 3.11.2-1"
    " 3.11.2-2 3.14.2-2 3.14.2-3 3.14.2-4"
)
def test_no_answer_is_larger_than_it_must_be(client: Connect, name: str) -> None:
    one = client(5, properties={"maximum_packet_size": 32, "request_problem_information": 0})
    nobody = f"{name}/nobody"
    answers: list[Any] = [
        one.publish(nobody, b"", 1),
        one.publish(nobody, b"", 2),
        one.unsubscribe(nobody),
    ]
    one.send(p.Pubrel(9), p.Pubrec(9), p.Subscribe(3, [p.Subscription(f"{name}/{i}") for i in range(25)]))
    answers += [one.receive(5) for _ in range(3)]
    assert [type(answer) for answer in answers] == [
        p.Puback, p.Pubcomp, p.Unsuback, p.Pubcomp, p.Pubrel, p.Suback]  # fmt: skip
    one.send_raw(b"\x00\x00")
    answers += one.until_closed()
    assert type(answers[-1]) is p.Disconnect
    assert all(answer.properties is None for answer in answers)


@shows(v5="3.1.2-24 3.14.2-1")
def test_an_answer_above_the_clients_maximum_ends_the_connection(client: Connect, name: str) -> None:
    one = client(5, properties={"maximum_packet_size": 32})
    one.send(p.Subscribe(3, [p.Subscription(f"{name}/{i}") for i in range(40)]))
    one.expect_disconnect(0x95)
