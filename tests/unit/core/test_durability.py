"""What is acknowledged rests on what is kept: output is held back until its batch is, and a restart has all."""

from __future__ import annotations

from typing import Any

import pytest

from midge.core.changes import Batch
from midge.protocol import packets as p
from midge.protocol.encoder import encode

from .harness import Client, Core, connect_packet, publish_packet


def kinds(received: list[Any]) -> list[type]:
    return [type(packet) for packet in received]


def persistent(core: Core, name: str = "sub", qos: int = 2) -> Client:
    client = core.client(name, clean_start=False)
    if qos:
        client.subscribe("a", qos)
    client.take()
    return client


def test_puback_waits_for_the_commit_of_a_message_that_a_persistent_session_is_owed() -> None:
    core = Core(is_durable=True)
    persistent(core).lose()
    publisher = core.client("pub")
    publisher.take()
    publisher.publish("a", b"x", 1, commit=False)
    assert publisher.take() == []
    core.turn(commit=True)
    assert kinds(publisher.take()) == [p.Puback]


def test_puback_of_a_message_that_nothing_keeps_does_not_wait() -> None:
    core = Core(is_durable=True)
    core.client("sub").subscribe("a", 1)
    publisher = core.client("pub")
    publisher.take()
    publisher.publish("a", b"x", 1, commit=False)
    assert kinds(publisher.take()) == [p.Puback]
    assert core.broker.take_batch() is None


def test_output_keeps_its_order_while_a_part_of_it_waits() -> None:
    core = Core(is_durable=True)
    persistent(core).lose()
    publisher = core.client("pub")
    publisher.subscribe("b")
    publisher.take()
    publisher.publish("b", b"before", commit=False)
    publisher.publish("a", b"x", 1, packet_id=1, commit=False)
    publisher.publish("b", b"between", commit=False)
    publisher.publish("a", b"x", 1, packet_id=2, commit=False)
    assert kinds(publisher.take()) == [p.Publish]
    core.turn()
    assert kinds(publisher.take()) == [p.Puback, p.Publish, p.Puback]


def test_a_connection_that_always_rests_on_the_next_commit_still_gets_what_is_committed() -> None:
    core = Core(is_durable=True)
    persistent(core).lose()
    publisher = core.client("pub")
    publisher.take()
    for packet_id in (1, 2, 3):
        publisher.publish("a", b"x", 1, packet_id, commit=False)
        batch = core.broker.take_batch()
        publisher.publish("a", b"x", 1, packet_id + 10, commit=False)
        assert batch is not None
        core.broker.committed(batch.number)
        publisher.flush()
        assert packet_id in [packet.packet_id for packet in publisher.take()]


def test_a_publisher_that_is_never_idle_is_not_beyond_its_receive_maximum() -> None:
    """What has its PUBACK is no longer under way, though the next one waits for the next commit already."""
    core = Core(is_durable=True, receive_maximum=3)
    persistent(core).lose()
    publisher = core.client("pub", version=5)
    publisher.take()
    publisher.publish("a", b"x", 1, packet_id=1, commit=False)
    for packet_id in range(2, 12):
        batch = core.broker.take_batch()
        assert batch is not None
        publisher.publish("a", b"x", 1, packet_id=packet_id, commit=False)
        core.broker.committed(batch.number)
        publisher.flush()
        assert [packet.packet_id for packet in publisher.take()] == [packet_id - 1]
    for packet_id in range(12, 15):  # three more than the one that waits
        publisher.publish("a", b"x", 1, packet_id=packet_id, commit=False)
    assert publisher.connection.is_closing


def test_what_is_written_while_a_turn_goes_on_is_not_what_the_turn_rests_on() -> None:
    """A batch is committed, and a peer reads on, between two packets of one turn."""
    core = Core(is_durable=True)
    persistent(core).lose()
    publisher = core.client("pub")
    publisher.take()
    publisher.publish("a", b"x", 1, packet_id=1, commit=False)
    batch = core.broker.take_batch()
    assert batch is not None
    publisher.connection.receive_data(encode(publish_packet("a", b"y", 1, 2), 4), core.now)
    core.broker.committed(batch.number)
    publisher.flush()
    assert [packet.packet_id for packet in publisher.take()] == [1]
    publisher.flush()
    assert publisher.take() == []
    core.turn()
    assert [packet.packet_id for packet in publisher.take()] == [2]


def test_suback_of_a_persistent_session_and_pubrec_pubrel_pubcomp_wait() -> None:
    core = Core(is_durable=True)
    client = persistent(core, qos=0)
    client.send(p.Subscribe(1, [p.Subscription("a", 2, False, False, 0)], None), commit=False)
    assert client.take() == []
    core.turn()
    assert kinds(client.take()) == [p.Suback]
    client.publish("a", b"x", 2, packet_id=9, commit=False)
    assert client.take() == []
    core.turn()
    received = client.take()
    assert sorted(kinds(received), key=str) == sorted([p.Pubrec, p.Publish], key=str)
    client.send(p.Pubrel(9), commit=False)
    client.send(p.Pubrec(1), commit=False)
    assert client.take() == []
    core.turn()
    assert kinds(client.take()) == [p.Pubcomp, p.Pubrel]


def test_what_came_and_went_within_one_batch_is_not_written() -> None:
    core = Core(is_durable=True)
    subscriber = persistent(core, qos=1)
    publisher = core.client("pub")
    publisher.publish("a", b"x", 1, commit=False)
    subscriber.send(p.Puback(1), commit=False)
    batch = core.broker.take_batch()
    assert batch is not None and batch == Batch(batch.number)


def test_what_rested_on_a_batch_that_became_empty_is_released() -> None:
    core = Core(is_durable=True)
    subscriber = persistent(core, qos=1)
    publisher = core.client("pub")
    publisher.take()
    publisher.publish("a", b"x", 1, commit=False)
    assert publisher.take() == []
    subscriber.send(p.Puback(1), commit=False)
    core.turn()
    assert kinds(publisher.take()) == [p.Puback]


def test_what_its_receiver_has_acknowledged_waits_for_no_disk() -> None:
    core = Core(is_durable=True)
    subscriber = persistent(core, qos=1)
    publisher = core.client("pub")
    publisher.take()
    publisher.publish("a", b"x", 1, 1, commit=False)
    publisher.publish("a", b"y", 1, 2, commit=False)
    subscriber.send(p.Puback(1), commit=False)
    assert not core.broker.release_what_is_gone()
    subscriber.send(p.Puback(2), commit=False)
    written = len(core.written)
    assert core.broker.release_what_is_gone()
    publisher.flush()
    assert [packet.packet_id for packet in publisher.take()] == [1, 2]
    publisher.publish("a", b"z", 1, 3, commit=False)  # which rests on a batch of its own again
    assert publisher.take() == [] and not core.broker.release_what_is_gone()
    core.turn()
    assert kinds(publisher.take()) == [p.Puback] and len(core.written) == written + 1


def test_what_was_acknowledged_after_its_commit_is_written_with_what_comes_later() -> None:
    core = Core(is_durable=True)
    subscriber = persistent(core, qos=1)
    publisher = core.client("pub")
    publisher.publish("a", b"x", 1, 1)
    subscriber.send(p.Puback(1), commit=False)
    publisher.publish("a", b"y", 1, 2, commit=False)
    subscriber.send(p.Puback(2), commit=False)
    assert core.broker.release_what_is_gone()
    core.turn()
    assert core.written[-1].done and not core.restarted().broker.sessions["sub"].in_flight


@pytest.mark.parametrize("packet", [p.Subscribe(1, [p.Subscription("b", 2, False, False, 0)], None), p.Pubrel(9)])
def test_nothing_else_leaves_before_its_commit(packet: p.Packet) -> None:
    core = Core(is_durable=True)
    client = persistent(core, qos=0)
    client.publish("b", b"x", 2, packet_id=9)
    client.take()
    client.send(packet, commit=False)
    assert not core.broker.release_what_is_gone() and client.take() == []


def test_a_restart_has_sessions_subscriptions_queues_and_retained_messages() -> None:
    core = Core(is_durable=True)
    persistent(core, "one", 1).lose()
    persistent(core, "two", 2).lose()
    core.client("clean").subscribe("a")
    publisher = core.client("pub", 5)
    properties = {"user_property": [("k", "v")]}
    for i in range(5):
        publisher.publish("a", b"%d" % i, 2, packet_id=i + 1, properties=properties)
        publisher.send(p.Pubrel(i + 1))
    publisher.publish("kept", b"r", 0, retain=True)
    again = core.restarted()
    assert sorted(again.broker.sessions) == ["one", "two"]
    one = again.client("one", clean_start=False)
    assert one.received[0].session_present
    assert [packet.payload for packet in one.take(p.Publish)] == [b"%d" % i for i in range(5)]
    two = again.client("two", 5, clean_start=False, properties={"session_expiry_interval": 9})
    assert [(packet.qos, packet.properties) for packet in two.take(p.Publish)] == [(2, properties)] * 5
    one.subscribe("kept")
    assert [packet.payload for packet in one.take(p.Publish)] == [b"r"]


def test_a_restart_repeats_no_qos_2_message_in_either_direction() -> None:
    core = Core(is_durable=True)
    subscriber = persistent(core)
    publisher = core.client("pub", clean_start=False)
    publisher.publish("a", b"x", 2, packet_id=5)
    (sent,) = subscriber.take(p.Publish)
    subscriber.send(p.Pubrec(sent.packet_id))
    again = core.restarted()
    publisher = again.client("pub", clean_start=False)
    publisher.publish("a", b"x", 2, packet_id=5, dup=True)
    subscriber = again.client("sub", clean_start=False)
    assert [(type(packet), packet.packet_id) for packet in subscriber.take()[1:]] == [
        (p.Pubrel, sent.packet_id)
    ]
    subscriber.send(p.Pubcomp(sent.packet_id))
    assert not again.broker.sessions["sub"].in_flight


@pytest.mark.parametrize("qos", [1, 2])
def test_after_everything_is_delivered_the_store_holds_no_message(qos: int) -> None:
    core = Core(is_durable=True)
    subscriber = persistent(core, qos=qos)
    publisher = core.client("pub", clean_start=False)
    for i in range(40):
        publisher.publish("a", b"x", qos, packet_id=i + 1)
        publisher.send(p.Pubrel(i + 1)) if qos == 2 else None
        for packet in subscriber.take():
            if type(packet) is p.Publish:
                subscriber.send(p.Puback(packet.packet_id) if qos == 1 else p.Pubrec(packet.packet_id))
        for packet in subscriber.take(p.Pubrel):
            subscriber.send(p.Pubcomp(packet.packet_id))
    again = core.restarted()
    again.turn()
    session = again.broker.sessions["sub"]
    assert not session.in_flight and not session.queue.count
    snapshot = core.store.load()
    assert not snapshot.in_flight and not snapshot.queues and snapshot.received == []


def test_a_clean_start_ends_the_kept_session_for_good() -> None:
    core = Core(is_durable=True)
    persistent(core).lose()
    core.client("pub").publish("a", b"x", 1)
    client = core.client("sub", clean_start=True, connect=False)
    client.send(p.Connect("sub", True, 0, 4, False, None, None, None, {}), commit=False)
    assert client.take() == []
    core.turn()
    assert client.take()[0].session_present is False
    again = core.restarted()
    assert again.broker.sessions == {}


def test_an_expired_session_is_gone_after_a_restart() -> None:
    core = Core(is_durable=True)
    client = core.client("sub", 5, clean_start=False, properties={"session_expiry_interval": 60})
    client.subscribe("a", 1)
    client.lose()
    again = core.restarted()
    again.advance(59)
    assert "sub" in again.broker.sessions
    again.advance(2)
    assert "sub" not in again.broker.sessions


def test_output_of_a_turn_that_has_not_ended_does_not_leave_with_what_is_committed() -> None:
    """A commit is told, or a slow reader reads again, in the midst of a turn."""
    core = Core(is_durable=True)
    persistent(core).lose()
    publisher = core.client("pub")
    publisher.take()
    publisher.connection.receive_data(encode(publish_packet("a", b"x", 1), 4), core.now)
    publisher.flush()
    assert publisher.take() == []
    core.turn()
    assert kinds(publisher.take()) == [p.Puback]


def test_an_acknowledgement_to_a_client_that_reads_again_has_waited_for_its_commit() -> None:
    core = Core(is_durable=True)
    persistent(core).lose()
    publisher = core.client("pub")
    publisher.subscribe("b")
    publisher.take()
    publisher.connection.is_paused = True
    publisher.publish("b", b"what it does not read")
    publisher.publish("a", b"x", 1, commit=False)
    publisher.connection.is_paused = False
    publisher.flush()
    assert publisher.take() == []
    core.turn()
    assert kinds(publisher.take()) == [p.Publish, p.Puback]


def test_what_a_client_took_away_from_the_retained_messages_stays_away_once_acknowledged() -> None:
    core = Core(is_durable=True)
    publisher = core.client("pub")
    publisher.publish("kept", b"x", 1, retain=True)
    publisher.take()
    publisher.publish("kept", b"", 1, packet_id=2, retain=True, commit=False)
    assert publisher.take() == []
    core.turn()
    assert kinds(publisher.take()) == [p.Puback]
    assert core.restarted().broker.retained.count == 0


def test_connack_without_a_session_waits_for_the_end_of_the_one_before() -> None:
    core = Core(is_durable=True)
    persistent(core, "c").lose()
    for _ in range(2):  # the second takes over from the first, whose session was not kept
        client = core.client("c", connect=False)
        client.send(connect_packet("c"), commit=False)
        assert client.take() == []
    core.turn()
    assert [packet.session_present for packet in client.take(p.Connack)] == [False]
    assert core.restarted().broker.sessions == {}


def test_a_session_that_was_connected_at_a_crash_expires_however_often_the_broker_restarts() -> None:
    core = Core(is_durable=True)
    core.client("c", 5, clean_start=False, properties={"session_expiry_interval": 100})
    core = core.restarted()
    core.turn()
    core.now += 60
    core = core.restarted()
    core.turn()
    core.now += 60
    core = core.restarted()
    core.advance(0)
    assert core.broker.sessions == {}
