"""Beyond the memory budget, queues and retained messages are on disk only, and nobody can tell from outside."""

from __future__ import annotations

import random
from typing import Any

import pytest

from midge.core.changes import ReadError
from midge.protocol import packets as p

from .harness import Client, Core


def away(core: Core, name: str = "sub", topic_filter: str = "a/#", **limits: int) -> None:
    client = core.client(name, clean_start=False)
    client.subscribe(topic_filter, 1)
    client.lose()


def drain(client: Client) -> list[bytes]:
    """Acknowledge whatever comes, until nothing comes."""
    payloads: list[bytes] = []
    while received := client.take():
        for packet in received:
            if type(packet) is p.Publish:
                payloads.append(packet.payload)
                client.send(p.Puback(packet.packet_id) if packet.qos == 1 else p.Pubrec(packet.packet_id))
            elif type(packet) is p.Pubrel:
                client.send(p.Pubcomp(packet.packet_id))
    return payloads


def test_a_queue_beyond_the_budget_is_on_disk_only_and_comes_in_order() -> None:
    core = Core(is_durable=True, max_message_memory=20_000, max_queued_messages=10_000)
    away(core)
    publisher = core.client("pub")
    for i in range(1000):
        publisher.publish("a/b", b"%d" % i, 1)
    queue = core.broker.sessions["sub"].queue
    assert queue.count == 1000 and queue.stored > 900
    assert core.broker.backlog.bytes <= 10_000
    client = core.client("sub", clean_start=False)
    assert drain(client) == [b"%d" % i for i in range(1000)]
    assert queue.count == queue.bytes == queue.stored == core.broker.backlog.bytes == 0
    assert core.store.load().queues == {}


def test_what_comes_while_a_queue_is_read_back_comes_after_it() -> None:
    core = Core(is_durable=True, max_message_memory=20_000, max_queued_messages=10_000)
    away(core)
    publisher = core.client("pub")
    for i in range(300):
        publisher.publish("a/b", b"%d" % i, 1)
    client = core.client("sub", clean_start=False)
    payloads: list[bytes] = []
    for i in range(300, 600):
        publisher.publish("a/b", b"%d" % i, 1)
        for packet in client.take(p.Publish)[:2]:
            payloads.append(packet.payload)
            client.send(p.Puback(packet.packet_id))
    # What the loop above didn't acknowledge is still in flight.
    client.lose()
    client = core.client("sub", clean_start=False)
    rest = drain(client)
    assert sorted({*payloads, *rest}, key=int) == [b"%d" % i for i in range(600)]
    assert rest == sorted(rest, key=int)


def test_a_restart_leaves_the_queues_on_disk_and_delivers_them_whole() -> None:
    core = Core(is_durable=True, max_queued_messages=10_000)
    away(core)
    publisher = core.client("pub")
    for i in range(500):
        publisher.publish("a/b", b"%d" % i, 1)
    client = core.client("sub", clean_start=False)
    client.take()
    again = core.restarted(max_queued_messages=10_000)
    session = again.broker.sessions["sub"]
    assert (len(session.in_flight), session.queue.stored, session.queue.count) == (20, 480, 480)
    publisher = again.client("pub")
    publisher.publish("a/b", b"500", 1)
    client = again.client("sub", clean_start=False)
    assert drain(client) == [b"%d" % i for i in range(501)]


def test_the_oldest_of_a_full_queue_on_disk_is_dropped_and_counted() -> None:
    core = Core(is_durable=True, max_message_memory=0, max_queued_messages=100)
    away(core)
    publisher = core.client("pub")
    for i in range(250):
        publisher.publish("a/b", b"%d" % i, 1)
    assert core.broker.counters.dropped_queue_full == 150
    assert drain(core.client("sub", clean_start=False)) == [b"%d" % i for i in range(150, 250)]


def test_one_message_for_many_queues_is_read_back_for_each() -> None:
    core = Core(is_durable=True, max_message_memory=0)
    for name in ("one", "two", "three"):
        away(core, name)
    publisher = core.client("pub", 5)
    for i in range(50):
        publisher.publish("a/b", b"%d" % i, 1, properties={"user_property": [("k", "v")]})
    for name in ("one", "two", "three"):
        assert drain(core.client(name, clean_start=False)) == [b"%d" % i for i in range(50)]


def test_a_session_that_is_to_end_with_its_connection_still_gets_what_is_on_disk() -> None:
    core = Core(is_durable=True, max_message_memory=0)
    fields = {"clean_start": False, "properties": {"session_expiry_interval": 60}}
    core.client("sub", 5, **fields).subscribe("a/#", 1)
    core.broker.sessions["sub"].connection.owner.lose()  # type: ignore[union-attr, attr-defined]
    publisher = core.client("pub")
    for i in range(100):
        publisher.publish("a/b", b"%d" % i, 1)
    client = core.client("sub", 5, clean_start=False)  # Session Expiry Interval 0
    assert drain(client) == [b"%d" % i for i in range(100)]
    client.lose()
    assert core.broker.sessions.keys() == {"pub"}
    assert [row.client_id for row in core.store.load().sessions] == []


def test_an_expired_session_with_a_queue_on_disk_leaves_nothing_behind() -> None:
    core = Core(is_durable=True, max_message_memory=0)
    client = core.client("sub", 5, clean_start=False, properties={"session_expiry_interval": 60})
    client.subscribe("a/#", 1)
    client.lose()
    publisher = core.client("pub")
    for i in range(100):
        publisher.publish("a/b", b"%d" % i, 1)
    core.advance(61)
    snapshot = core.store.load()
    assert not (snapshot.sessions or snapshot.queues or snapshot.subscriptions)
    assert core.broker.backlog.bytes == 0


def test_what_a_leaving_member_had_on_disk_goes_to_another_of_its_shared_subscription() -> None:
    core = Core(is_durable=True, max_message_memory=0)
    first = core.client("first", 5, clean_start=False, properties={"session_expiry_interval": 60})
    first.subscribe("$share/g/a/#", 1)
    first.lose()
    publisher = core.client("pub")
    for i in range(100):
        publisher.publish("a/b", b"%d" % i, 1)
    second = core.client("second", 5)
    second.subscribe("$share/g/a/#", 1)
    core.advance(61)
    assert drain(second) == [b"%d" % i for i in range(100)]


def test_pingresp_follows_what_was_queued_on_disk() -> None:
    core = Core(is_durable=True, max_message_memory=0)
    away(core)
    publisher = core.client("pub")
    for i in range(100):
        publisher.publish("a/b", b"%d" % i, 1)
    client = core.client("sub", clean_start=False, keep_alive_s=60)
    client.send(p.Pingreq())
    kinds: list[type] = []
    while received := client.take():
        for packet in received:
            kinds.append(type(packet))
            if type(packet) is p.Publish:
                client.send(p.Puback(packet.packet_id))
                if len(kinds) < 50:  # what comes meanwhile isn't waited for
                    publisher.publish("a/b", b"later", 1)
    assert kinds[1:].index(p.Pingresp) == 100
    assert len(kinds) > 140


def test_pingresp_comes_within_half_the_keep_alive_of_a_client_that_takes_nothing() -> None:
    core = Core(is_durable=True, max_message_memory=0)
    away(core)
    publisher = core.client("pub")
    for _ in range(100):
        publisher.publish("a/b", b"x", 1)
    client = core.client("sub", clean_start=False, keep_alive_s=60)
    client.send(p.Pingreq())
    client.take()
    core.advance(29.9)
    assert client.take() == []
    core.advance(0.2)
    assert [type(packet) for packet in client.take()] == [p.Pingresp]


@pytest.mark.parametrize("seed", range(8))
def test_no_client_can_tell_how_much_memory_there_is(seed: int) -> None:
    """The same random life with a budget for everything and for nothing: the same packets to the subscriber."""
    assert _life(seed, 1_000_000_000) == _life(seed, 0)


def _life(seed: int, max_message_memory: int) -> list[object]:
    rng = random.Random(seed)
    limits = {"max_message_memory": max_message_memory, "max_queued_messages": 60}
    core = Core(is_durable=True, **limits)
    client: Client | None = core.client("sub", clean_start=False)
    assert client is not None
    client.subscribe("a/#", 2)
    publisher = core.client("pub", 5, clean_start=False)
    seen: list[object] = []
    number = 0
    for _ in range(600):
        step = rng.random()
        if step < 0.5:
            number += 1
            expiry = {"message_expiry_interval": 30} if rng.random() < 0.2 else None
            qos = rng.choice((1, 2))
            publisher.publish("a/b", b"%d" % number, qos, number, retain=rng.random() < 0.2, properties=expiry)
            publisher.send(p.Pubrel(number)) if qos == 2 else None
        elif step < 0.85 and client is not None:
            for packet in client.take():
                seen.append((type(packet), getattr(packet, "packet_id", 0), getattr(packet, "payload", b"")))
                if type(packet) is p.Publish:
                    client.send(p.Puback(packet.packet_id) if packet.qos == 1 else p.Pubrec(packet.packet_id))
                elif type(packet) is p.Pubrel:
                    client.send(p.Pubcomp(packet.packet_id))
        elif step < 0.92:
            if client is None:
                client = core.client("sub", clean_start=False)
            else:
                client.lose()
                client = None
        elif step < 0.96:
            core.advance(rng.choice((1, 20)))
        elif step < 0.98:
            core = core.restarted(**limits)
            client = None
            publisher = core.client("pub", 5, clean_start=False)
        publisher.take()
    return seen


def test_a_store_that_can_not_be_read_ends_the_connections_that_need_it_and_no_other() -> None:
    core = Core(is_durable=True, max_message_memory=0)
    away(core)
    publisher = core.client("pub")
    for i in range(50):
        publisher.publish("a/b", b"%d" % i, 1)
        publisher.publish(f"t/{i}", b"%d" % i, retain=True)

    def fail(*arguments: object) -> Any:
        raise ReadError("midge.db can't be read: malformed")

    core.store.queue = core.store.retained = fail  # type: ignore[method-assign]
    client = core.client("sub", clean_start=False)
    assert not client.is_open and "midge.db" in client.connection.close_reason
    reader = core.client("reader", 5)
    reader.send(p.Subscribe(1, [p.Subscription("t/#", 0, False, False, 0)], None))
    assert not reader.is_open and "midge.db" in reader.connection.close_reason
    publisher.take()
    publisher.publish("b", b"x", 1, 60)
    assert [type(packet) for packet in publisher.take()] == [p.Puback]


# -- retained messages --


def retained(core: Core, topic_filter: str, qos: int = 0) -> dict[str, bytes]:
    client = core.client(f"reader {topic_filter} {qos}")
    client.subscribe(topic_filter, qos)
    found: dict[str, bytes] = {}
    for _ in range(200):
        for packet in client.take(p.Publish):
            assert packet.retain and packet.topic not in found
            found[packet.topic] = packet.payload
            if packet.qos:
                client.send(p.Puback(packet.packet_id))
        core.advance(0.1)
    client.lose()
    return found


@pytest.mark.parametrize("memory", [0, 100_000, 1_000_000_000])
def test_retained_messages_are_found_wherever_they_are(memory: int) -> None:
    core = Core(is_durable=True, max_message_memory=memory)
    publisher = core.client("pub")
    wanted = {f"home/{i % 10}/{i}": b"%d" % i for i in range(400)}
    for topic, payload in wanted.items():
        publisher.publish(topic, b"old", retain=True)
        publisher.publish(topic, payload, retain=True)
    for i in range(0, 400, 7):
        publisher.publish(f"home/{i % 10}/{i}", b"", retain=True)
        del wanted[f"home/{i % 10}/{i}"]
    assert core.broker.retained.count == len(wanted)
    assert core.broker.retained.is_complete is (memory == 1_000_000_000)
    for again in (core, core.restarted(max_message_memory=memory)):
        assert again.broker.retained.count == len(wanted)
        assert retained(again, "home/#") == wanted
        assert retained(again, "home/3/+", 1) == {t: b for t, b in wanted.items() if t.startswith("home/3/")}
        assert retained(again, "home/+/33", 1) == {"home/3/33": b"33"}
        assert retained(again, "home/0/7") == {}


def test_a_subscription_to_more_than_a_queue_takes_gets_all_of_it() -> None:
    core = Core(is_durable=True, max_message_memory=0, max_queued_messages=30)
    publisher = core.client("pub")
    for i in range(500):
        publisher.publish(f"t/{i}", b"%d" % i, retain=True)
    assert len(retained(core, "t/#", 1)) == 500
    assert core.broker.counters.dropped_queue_full == 0


def test_a_slow_reader_of_a_million_retained_messages_is_sent_no_more_than_it_reads() -> None:
    core = Core(is_durable=True, max_message_memory=0)
    publisher = core.client("pub")
    for i in range(2000):
        publisher.publish(f"t/{i}", b"%d" % i, retain=True)
    slow = core.client("slow")
    slow.connection.is_paused = True
    slow.send(p.Subscribe(1, [p.Subscription("t/#", 0, False, False, 0)], None))
    core.advance(60)
    assert len(slow.connection.out) == 1
    slow.connection.is_paused = False
    slow.flush()
    core.advance(1)
    assert len(slow.take(p.Publish)) == 2000


def test_what_is_removed_or_changed_while_portions_are_to_come_is_not_sent_from_them() -> None:
    core = Core(is_durable=True)
    publisher = core.client("pub")
    for i in range(1200):
        publisher.publish(f"t/{i}", b"old", retain=True)
    reader = core.client("reader")
    reader.subscribe("t/#")
    sent = {packet.topic for packet in reader.take(p.Publish)}
    changed, removed = [f"t/{i}" for i in range(1200) if f"t/{i}" not in sent][-2:]
    publisher.publish(changed, b"new", retain=True)
    publisher.publish(removed, b"", retain=True)
    core.advance(1)
    later = [(packet.topic, packet.payload) for packet in reader.take(p.Publish)]
    assert [payload for topic, payload in later if topic == changed] == [b"new"]
    assert [payload for topic, payload in later if topic == removed] == [b""]
    assert len(sent) + len(later) == 1200
