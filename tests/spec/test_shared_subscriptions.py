"""Shared subscriptions (5.0 §4.8.2; offered to 3.1.1 too): who gets a message, and what of a member that leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from spec_client import Client
from table import shows

from midge.protocol import packets as p

Connect = Callable[..., Client]
LASTING: dict[str, Any] = {"clean_start": False, "properties": {"session_expiry_interval": 300}}


def test_each_message_goes_to_one_member(client: Connect, name: str, version: int) -> None:
    members = [client(version) for _ in range(3)]
    for member in members:
        assert member.subscribe(f"$share/crew/{name}/#", 1) == 1
    publisher = client(version)
    for number in range(9):
        publisher.publish(f"{name}/job", b"%d" % number, 1)
    assert [len(member.until_ping()) for member in members] == [3, 3, 3]


@shows(v5="4.8.2-1 4.8.2-2")
@pytest.mark.parametrize(
    "topic_filter", ["$share/", "$share//a", "$share/crew", "$share/crew/", "$share/c+w/a", "$share/c#w/a"]
)
def test_a_wrong_share_name_is_refused(client: Connect, version: int, topic_filter: str) -> None:
    one = client(version)
    one.send(p.Subscribe(1, [p.Subscription(topic_filter)]))
    one.expect_disconnect(0x82)


@shows(v5="4.8.2-3")
@pytest.mark.parametrize("granted", [0, 1, 2])
def test_a_shared_message_comes_at_no_more_than_the_granted_qos(
    client: Connect, name: str, granted: int
) -> None:
    member = client(5)
    member.subscribe(f"$share/crew/{name}", granted, identifier=7)
    client(5).publish(name, b"x", 2)
    message = member.take()
    assert (message.qos, message.properties) == (granted, {"subscription_identifier": [7]})


def test_no_retained_messages_for_a_shared_subscription(client: Connect, name: str) -> None:
    client(5).publish(name, b"retained", 1, retain=True)
    member = client(5)
    member.subscribe(f"$share/crew/{name}", 1)
    assert member.until_ping() == []


def crew(client: Connect, name: str) -> tuple[Client, Client]:
    """A member that has taken a QoS 2 message without answering, and one that is free."""
    busy = client(5, name, **LASTING, )
    busy.subscribe(f"$share/crew/{name}", 2)
    client(5).publish(name, b"qos 2", 2)
    assert busy.expect(p.Publish).qos == 2
    free = client(5)
    free.subscribe(f"$share/crew/{name}", 2)
    return busy, free


@shows(v5="4.8.2-4")
@pytest.mark.parametrize("is_received", [False, True])
def test_a_qos_2_delivery_that_broke_off_is_completed_with_the_same_member(
    client: Connect, name: str, is_received: bool
) -> None:
    busy, free = crew(client, name)
    if is_received:
        busy.send(p.Pubrec(1))
        busy.expect(p.Pubrel)
    busy.close()
    assert free.until_ping() == []
    back = client(5, name, **LASTING)
    if is_received:
        assert back.expect(p.Pubrel).packet_id == 1
    else:
        message = back.take()
        assert (message.payload, message.dup) == (b"qos 2", True)
    assert free.until_ping() == []


@shows(v5="4.8.2-5")
def test_a_qos_2_message_goes_to_nobody_else_when_the_session_ends(client: Connect, name: str) -> None:
    busy, free = crew(client, name)
    busy.leave(session_expiry_interval=0)
    assert free.until_ping() == []
    assert client(5, name, **LASTING).until_ping() == []


@pytest.mark.parametrize("end", ["expiry", "clean start"])
def test_what_a_member_that_leaves_for_good_did_not_take_goes_to_another(
    client: Connect, name: str, end: str
) -> None:
    one = client(5, name, clean_start=False, properties={"session_expiry_interval": 300, "receive_maximum": 2})
    one.subscribe(f"$share/crew/{name}", 2)
    one.subscribe("own", 1)
    publisher = client(5)
    for number, qos in enumerate((1, 2, 1, 2)):  # two are sent and two are queued
        publisher.publish(name, b"%d" % number, qos)
    publisher.publish("own", b"its own", 1)
    free = client(5)
    free.subscribe(f"$share/crew/{name}", 2)
    assert [one.expect(p.Publish).payload for _ in range(2)] == [b"0", b"1"]
    if end == "expiry":
        one.leave(session_expiry_interval=0)
    else:
        client(5, name)
        one.expect_disconnect(0x8E)
    assert [free.take().payload for _ in range(3)] == [b"0", b"2", b"3"]
    assert free.until_ping() == []


@shows(v5="4.8.2-6")
@pytest.mark.parametrize("qos", [1, 2])
def test_a_shared_message_that_is_refused_goes_to_nobody_else(client: Connect, name: str, qos: int) -> None:
    one, free = client(5), client(5)
    one.subscribe(f"$share/crew/{name}", qos)
    client(5).publish(name, b"x", qos)
    message = one.expect(p.Publish)
    free.subscribe(f"$share/crew/{name}", qos)
    one.send((p.Puback if qos == 1 else p.Pubrec)(message.packet_id, 0x87))
    assert one.until_ping() == []
    one.leave()
    assert free.until_ping() == []
