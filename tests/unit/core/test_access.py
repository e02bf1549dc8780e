"""Who is asked before a client may connect, publish or subscribe, and what waits for the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from midge.core.access import Answer, Authenticator, Identity
from midge.protocol import packets as p
from midge.protocol.encoder import encode
from midge.protocol.reasons import ReasonCode

from .harness import Client, Core, connect_packet, publish_packet


class Door:
    """Answers when the test says so; nobody may use topics that start with "secret" or `hidden`."""

    def __init__(self) -> None:
        self.waiting: list[Callable[..., None]] = []
        self.hidden = "hidden"

    def connect(self, connect: p.Connect, address: str, answer: Answer) -> None:
        def decide(reason: ReasonCode, identity: Identity | None = None) -> None:
            answer(reason, identity or Identity(connect.username))

        self.waiting.append(decide)

    def authenticator(self, method: str, address: str) -> Authenticator | None:
        return None

    def permissions(self, client_id: str, identity: Identity) -> Rules | None:
        return None if identity.username == "root" else Rules(self)


class Rules:
    def __init__(self, door: Door) -> None:
        self._door = door

    def may_publish(self, topic: str) -> bool:
        return not topic.startswith("secret")

    may_subscribe = may_publish

    def may_read(self, topic: str) -> bool:
        return not topic.startswith(("secret", self._door.hidden))


def test_what_follows_connect_waits_for_the_decision_and_is_then_handled_in_order() -> None:
    door = Door()
    core = Core(access=door)
    client = core.client(connect=False)
    client.send_bytes(encode(connect_packet("one"), 4) + encode(p.Subscribe(1, [p.Subscription("a")]), 4))
    client.send_bytes(encode(publish_packet("a", b"x", 1, 5), 4))
    assert client.take() == [] and client.is_held
    door.waiting.pop()(ReasonCode.SUCCESS)
    core.turn()
    assert [type(packet) for packet in client.take()] == [p.Connack, p.Suback, p.Publish, p.Puback]
    assert not client.is_held


def test_a_refused_client_is_told_why_and_nothing_of_what_it_sent_is_done() -> None:
    door = Door()
    core = Core(access=door)
    for version, code in ((4, 4), (5, ReasonCode.BAD_USER_NAME_OR_PASSWORD)):
        client = core.client(version=version, connect=False)
        client.send_bytes(
            encode(connect_packet("one", version), version) + encode(publish_packet("a", b"x"), version)
        )
        door.waiting.pop()(ReasonCode.BAD_USER_NAME_OR_PASSWORD)
        core.turn()
        assert [packet.reason_code for packet in client.take()] == [code]
        assert not client.is_open
    assert core.broker.counters.publish_received == 0
    assert core.broker.sessions == {}


def test_who_is_not_answered_in_time_is_told_to_come_again() -> None:
    door = Door()
    core = Core(access=door, connect_timeout=5)
    for version, code in ((4, 3), (5, ReasonCode.SERVER_UNAVAILABLE)):
        client = core.client("one", version)
        core.advance(4.9)
        assert client.is_open and client.take() == []
        core.advance(0.2)
        assert client.take() == [p.Connack(False, code)] and not client.is_open
        door.waiting.pop()(ReasonCode.SUCCESS)
    core.turn()
    assert core.broker.sessions == {} and core.broker.counters.limits_met["connect_timeout"] == 2


def test_a_client_that_leaves_before_the_decision_gets_no_session() -> None:
    door = Door()
    core = Core(access=door)
    client = core.client("one")
    client.lose()
    door.waiting.pop()(ReasonCode.SUCCESS)
    assert core.broker.sessions == {} and not core.broker.connections


def test_a_second_connect_while_waiting_is_a_protocol_error() -> None:
    door = Door()
    core = Core(access=door)
    client = core.client("one")
    client.send(connect_packet("one"))
    door.waiting.pop()(ReasonCode.SUCCESS)
    core.turn()
    assert not client.is_open


def test_what_a_client_may_not_do_is_refused_and_not_done() -> None:
    door = Door()
    core = Core(access=door)
    client = core.client("one", 5)
    door.waiting.pop()(ReasonCode.SUCCESS)
    core.turn()
    client.take()
    assert client.subscribe("secret/#") == ReasonCode.NOT_AUTHORIZED
    assert client.subscribe("open/#") == 0
    client.publish("secret/a", b"x", 1)
    assert [packet.reason_code for packet in client.take(p.Puback)] == [ReasonCode.NOT_AUTHORIZED]
    client.publish("secret/a", b"x", 0)
    client.publish("open/a", b"x", 0)
    assert [packet.topic for packet in client.take(p.Publish)] == ["open/a"]


def let_in(core: Core, door: Door, client_id: str, version: int = 4, **fields: Any) -> Client:
    client = core.client(client_id, version, **fields)
    door.waiting.pop()(ReasonCode.SUCCESS)
    core.turn()
    client.take()
    return client


def test_a_subscription_that_is_wider_than_what_may_be_read_is_granted_and_sorted_out() -> None:
    door = Door()
    core = Core(access=door)
    publisher = let_in(core, door, "root", username="root")
    publisher.publish("secret/retained", b"x", 1, retain=True)
    reader, everything = let_in(core, door, "reader"), let_in(core, door, "all", username="root")
    assert reader.subscribe("#") == everything.subscribe("#") == 0
    assert len(everything.take(p.Publish)) == 1
    for topic in ("open/a", "secret/b", "open/a", "secret/b"):
        publisher.publish(topic, b"x", 1)
    assert [packet.topic for packet in reader.take(p.Publish)] == ["open/a", "open/a"]
    assert len(everything.take(p.Publish)) == 4


def test_a_shared_message_goes_to_a_member_that_may_read_it() -> None:
    door = Door()
    core = Core(access=door)
    reader, root = let_in(core, door, "reader", 5), let_in(core, door, "root", 5, username="root")
    for client in (reader, root):
        assert client.subscribe("$share/g/#") == 0
    for _ in range(4):
        root.publish("hidden/a", b"x")
    assert len(root.take(p.Publish)) == 4 and reader.take(p.Publish) == []


def test_what_was_queued_and_may_no_longer_be_read_is_not_sent() -> None:
    door = Door()
    core = Core(is_durable=True, access=door)
    away = let_in(core, door, "away", clean_start=False)
    assert away.subscribe("#", 1) == 1
    away.lose()
    root = let_in(core, door, "root", username="root")
    for topic in ("open/a", "private/b", "open/c"):
        root.publish(topic, b"x", 1)
    door.hidden = "private"
    for again in (core, core.restarted()):  # a restart knows only then whose session it is
        again.broker.access = door
        back = again.client("away", clean_start=False)
        door.waiting.pop()(ReasonCode.SUCCESS)
        again.turn()
        assert [packet.topic for packet in back.take(p.Publish)] == ["open/a", "open/c"]


def test_a_change_of_the_rules_reaches_those_who_are_connected() -> None:
    door = Door()
    core = Core(access=door)
    reader, root = let_in(core, door, "reader"), let_in(core, door, "root", username="root")
    reader.subscribe("#")
    root.publish("a", b"1")
    door.hidden = "a"
    assert reader.connection.session is not None
    core.broker.set_permissions(reader.connection, reader.connection.session)
    root.publish("a", b"2")
    assert [packet.payload for packet in reader.take(p.Publish)] == [b"1"]


def test_a_will_that_its_client_may_not_publish_is_not_published() -> None:
    door = Door()
    core = Core(access=door)
    root = let_in(core, door, "root", username="root")
    root.subscribe("#")
    root.subscribe("$SYS/#")
    for topic in ("secret/will", "$SYS/will", "open/will"):
        let_in(core, door, "dying", will=p.Will(topic, b"", 0, False)).lose()
    assert [packet.topic for packet in root.take(p.Publish)] == ["open/will"]
