"""Who is asked before a client may connect, publish or subscribe, and what waits for the answer."""

from __future__ import annotations

from collections.abc import Callable

from midge.protocol import packets as p
from midge.protocol.encoder import encode
from midge.protocol.reasons import ReasonCode

from .harness import Core, connect_packet, publish_packet


class Door:
    """Answers when the test says so; nobody may use topics that start with "secret"."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[ReasonCode], None]] = []

    def connect(self, connect: p.Connect, address: str, answer: Callable[[ReasonCode], None]) -> None:
        self.waiting.append(answer)

    def may_publish(self, client_id: str, username: str | None, topic: str) -> bool:
        return not topic.startswith("secret")

    may_subscribe = may_publish


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
