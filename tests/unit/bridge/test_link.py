"""One connection of a bridge: what comes together leaves together, whichever way it goes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from midge.bridge.bridge import Bridge
from midge.bridge.link import Link
from midge.config import Bridge as Section
from midge.core.broker import Broker
from midge.core.limits import Limits
from midge.protocol import packets as p
from midge.protocol.decoder import Decoder
from midge.protocol.encoder import encode

COUNT = 30


class Socket:
    """What the link writes, and what the core writes to a client: piece by piece."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.core: Any = None  # of a client's connection

    # -- asyncio.Transport --

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def set_write_buffer_limits(self, high: int) -> None: ...

    def is_closing(self) -> bool:
        return False

    # -- midge.core.owner.Owner --

    def flush(self) -> None:
        data = self.core.data_to_send()
        if data:
            self.write(b"".join(data))

    def hold_reading(self, hold: bool) -> None: ...

    def take(self, version: int) -> list[list[Any]]:
        """Packets, write by write."""
        writes, self.writes = self.writes, []
        return [list(Decoder("client", version).receive_data(data)) for data in writes]


class Linked:
    """A broker with a bridge in MQTT 5.0 whose other side is the test."""

    def __init__(self, *topics: dict[str, object]) -> None:
        self.broker = Broker(Limits())
        section = Section.model_validate({"name": "b", "address": "mqtt://127.0.0.1:1", "topics": list(topics)})
        self.bridge = Bridge(section, self.broker, lambda: None, lambda: 1e6, lambda _: None, Path)
        self.bridge.is_session_new = False
        self.there = Socket()
        self.link = Link(self.bridge)
        self.link.connection_made(cast(asyncio.Transport, self.there))
        self.receive(p.Connack(False, 0, {"receive_maximum": 100}))
        self.there.writes.clear()

    def receive(self, *packets: p.Packet) -> None:
        """They come from the other side, together; then the turn ends."""
        self.link.data_received(b"".join(encode(packet, 5) for packet in packets))
        self.turn()

    def client(self, client_id: str, *packets: p.Packet) -> Socket:
        client = Socket()
        client.core = self.broker.open("test", client, 1e6)
        self.send(client, p.Connect(client_id, True, 0), *packets)
        client.writes.clear()
        return client

    def send(self, client: Socket, *packets: p.Packet) -> None:
        """A client sends them, together; then the turn ends."""
        client.core.receive_data(b"".join(encode(packet, 4) for packet in packets), 1e6)
        self.turn()

    def turn(self) -> None:
        while ready := self.broker.end_turn():
            for connection in ready:
                connection.owner.flush()


def in_a_loop(test: Callable[[Linked], None], *topics: dict[str, object]) -> None:
    async def run() -> None:
        test(Linked(*topics))

    asyncio.run(run())


@pytest.mark.parametrize(("qos", "answer"), [(0, None), (1, p.Puback), (2, p.Pubrec)])
def test_what_comes_together_is_delivered_in_one_write_and_acknowledged_in_one(qos: int, answer: type | None) -> None:
    def test(linked: Linked) -> None:
        reader = linked.client("r", p.Subscribe(1, [p.Subscription("here/t", 0)], None))
        linked.receive(*[p.Publish("t", b"%d" % n, qos, packet_id=n + 1 if qos else 0) for n in range(COUNT)])
        (delivered,) = reader.take(4)
        assert [packet.payload for packet in delivered] == [b"%d" % n for n in range(COUNT)]
        assert {packet.topic for packet in delivered} == {"here/t"}
        answers = [[(type(packet), packet.packet_id) for packet in write] for write in linked.there.take(5)]
        assert answers == ([[(answer, n + 1) for n in range(COUNT)]] if qos else [])

    in_a_loop(test, {"filter": "#", "direction": "in", "qos": 2, "local_prefix": "here/"})


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_what_leaves_together_leaves_in_one_write_under_its_name_there(qos: int) -> None:
    def test(linked: Linked) -> None:
        publisher = linked.client("p")
        packets = [p.Publish("here/t", b"%d" % n, qos, packet_id=n + 1 if qos else 0) for n in range(COUNT)]
        linked.send(publisher, *packets)
        (sent,) = linked.there.take(5)
        assert [packet.payload for packet in sent] == [b"%d" % n for n in range(COUNT)]
        assert {(packet.topic, packet.qos) for packet in sent} == {("there/t", qos)}
        assert [packet.packet_id for packet in sent] == [n + 1 if qos else 0 for n in range(COUNT)]
        assert len(linked.link.unacknowledged) == (COUNT if qos else 0)

    topic = {"filter": "#", "direction": "out", "qos": 2, "local_prefix": "here/", "remote_prefix": "there/"}
    in_a_loop(test, topic)


def test_the_order_of_acknowledgements_and_messages_stays_what_it_was() -> None:
    def test(linked: Linked) -> None:
        publisher = linked.client("p")
        linked.send(publisher, p.Publish("out/t", b"1", 2, packet_id=1))
        ((first,),) = linked.there.take(5)
        linked.receive(
            p.Publish("in/t", b"a", 1, packet_id=7), p.Pubrec(first.packet_id), p.Publish("in/t", b"b", 2, packet_id=8)
        )
        (answers,) = linked.there.take(5)
        assert [type(packet) for packet in answers] == [p.Puback, p.Pubrel, p.Pubrec]
        assert [packet.packet_id for packet in answers] == [7, first.packet_id, 8]
        linked.receive(p.Pubcomp(first.packet_id), p.Pubrel(8))
        assert [type(packet) for write in linked.there.take(5) for packet in write] == [p.Pubcomp]
        assert linked.bridge.owed == 0

    in_a_loop(
        test,
        {"filter": "in/#", "direction": "in", "qos": 2},
        {"filter": "out/#", "direction": "out", "qos": 2},
    )


def test_what_a_new_configuration_no_longer_carries_is_not_sent_and_not_owed() -> None:
    def test(linked: Linked) -> None:
        publisher = linked.client("p")
        linked.bridge.outward._names.update({b"out/1": None, b"out/2": None})  # queued under an older one
        linked.send(publisher, *[p.Publish(f"out/{n}", b"", n % 3, packet_id=n) for n in (1, 2, 4)])
        sent = [packet for write in linked.there.take(5) for packet in write]
        assert [(type(packet), packet.topic) for packet in sent] == [(p.Publish, "out/4")]
        assert linked.bridge.owed == 1

    in_a_loop(test, {"filter": "out/#", "direction": "out", "qos": 2})
