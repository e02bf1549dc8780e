"""Full queues and a store that can't be written: nothing is acknowledged that was thrown away."""

from __future__ import annotations

from typing import Any

import pytest

from midge.core.session_limits import SessionRule
from midge.protocol import packets as p
from midge.protocol.reasons import ReasonCode

from .harness import Client, Core

QUOTA_EXCEEDED = ReasonCode.QUOTA_EXCEEDED


def away(core: Core, name: str = "away", topic_filter: str = "a", qos: int = 1) -> None:
    client = core.client(name, clean_start=False)
    client.subscribe(topic_filter, qos)
    client.lose()


def codes(client: Client) -> list[tuple[int, int]]:
    """(packet identifier, reason) of the acknowledgements that came."""
    return [
        (packet.packet_id, packet.reason_code) for packet in client.take() if isinstance(packet, p.Puback | p.Pubrec)
    ]


def payloads(client: Client) -> list[bytes]:
    """Everything, acknowledged as it comes."""
    found: list[bytes] = []
    while received := client.take():
        for packet in received:
            if type(packet) is p.Publish:
                found.append(packet.payload)
                if packet.qos:
                    client.send(p.Puback(packet.packet_id) if packet.qos == 1 else p.Pubrec(packet.packet_id))
            elif type(packet) is p.Pubrel:
                client.send(p.Pubcomp(packet.packet_id))
    return found


def full(policy: str, qos: int = 1, **limits: Any) -> tuple[Core, Client]:
    """A queue of three that is full, and a publisher."""
    core = Core(is_durable=True, queue_full=policy, max_queued_messages=3, **limits)
    away(core, qos=qos)
    publisher = core.client("pub", 5)
    for packet_id in (1, 2, 3):
        publisher.publish("a", b"%d" % packet_id, qos, packet_id)
    assert [code for _, code in codes(publisher)] == [0, 0, 0]
    return core, publisher


# -- drop-oldest --


def test_drop_oldest_takes_the_message_and_counts_what_gave_way() -> None:
    core, publisher = full("drop-oldest")
    publisher.publish("a", b"4", 1, 4)
    assert codes(publisher) == [(4, 0)]
    assert core.broker.counters.dropped_queue_full == 1
    assert payloads(core.client("away", clean_start=False)) == [b"2", b"3", b"4"]


# -- reject --


@pytest.mark.parametrize("qos", [1, 2])
def test_reject_refuses_with_quota_exceeded_and_keeps_what_was_acknowledged(qos: int) -> None:
    core, publisher = full("reject", qos)
    publisher.publish("a", b"4", qos, 4)
    assert codes(publisher) == [(4, QUOTA_EXCEEDED)]
    assert core.broker.counters.refused_queue_full == 1 and core.broker.counters.dropped == 0
    assert payloads(core.client("away", clean_start=False)) == [b"1", b"2", b"3"]
    publisher.publish("a", b"5", qos, 4)  # the identifier is free again
    assert codes(publisher) == [(4, 0)]


def test_reject_closes_a_3_1_1_publisher_without_acknowledgement() -> None:
    core, _ = full("reject")
    old = core.client("old", 4)
    old.take()
    old.publish("a", b"4", 1, 4)
    assert old.take() == [] and not old.is_open
    assert payloads(core.client("away", clean_start=False)) == [b"1", b"2", b"3"]


def test_a_3_1_1_client_gets_what_it_is_owed_before_it_is_refused() -> None:
    core, _ = full("reject", max_inflight_messages=1)
    both = core.client("away", clean_start=False, version=4)
    for packet_id in (4, 5):  # to its own queue: one is in flight, two wait, so the second finds it full
        both.publish("a", b"%d" % packet_id, 1, packet_id)
    assert both.is_open
    got: list[bytes] = []
    while len(got) < 5:
        got += payloads(both)
        core.advance(0)
    assert got == [b"1", b"2", b"3", b"4", b"5"]


def test_one_full_queue_refuses_the_message_for_all_so_that_nobody_gets_it_twice() -> None:
    core, publisher = full("reject")
    here = core.client("here")
    here.subscribe("a", 1)
    here.take()
    publisher.publish("a", b"4", 1, 4, retain=True)
    assert codes(publisher) == [(4, QUOTA_EXCEEDED)]
    assert here.take() == [] and core.broker.retained.count == 0
    core.client("away", clean_start=True).lose()  # it gives up what it was owed
    publisher.publish("a", b"4", 1, 5, retain=True)
    assert codes(publisher) == [(5, 0)]
    assert payloads(here) == [b"4"] and core.broker.retained.count == 1


def test_qos_0_and_other_topics_pass_a_full_queue() -> None:
    core, publisher = full("reject")
    here = core.client("here")
    here.subscribe("#", 0)
    publisher.publish("a", b"zero", 0)
    publisher.publish("b", b"other", 1, 4)
    assert codes(publisher) == [(4, 0)]
    assert payloads(here) == [b"zero", b"other"]


def test_a_shared_subscription_refuses_only_when_no_member_has_room() -> None:
    core = Core(is_durable=True, queue_full="reject", max_queued_messages=2)
    for name in ("one", "two"):
        away(core, name, "$share/g/a")
    publisher = core.client("pub", 5)
    for packet_id in range(1, 6):
        publisher.publish("a", b"%d" % packet_id, 1, packet_id)
    assert [code for _, code in codes(publisher)] == [0, 0, 0, 0, QUOTA_EXCEEDED]
    got = [payloads(core.client(name, clean_start=False)) for name in ("one", "two")]
    assert sorted(got[0] + got[1]) == [b"1", b"2", b"3", b"4"] and len(got[0]) == 2


def test_a_queue_is_full_by_its_bytes_too() -> None:
    core = Core(is_durable=True, queue_full="reject", max_queued_bytes=250)
    away(core)
    publisher = core.client("pub", 5)
    for packet_id in (1, 2, 3):
        publisher.publish("a", b"x" * 99, 1, packet_id)
    assert [code for _, code in codes(publisher)] == [0, 0, QUOTA_EXCEEDED]


# -- wait --


@pytest.mark.parametrize("qos", [1, 2])
def test_wait_holds_the_acknowledgement_until_there_is_room_and_keeps_the_order(qos: int) -> None:
    core, publisher = full("wait", qos)
    for packet_id in range(4, 10):
        publisher.publish("a" if packet_id % 2 else "b", b"%d" % packet_id, qos, packet_id)
    # What would have had room (topic b) waits behind what hasn't, and nothing is acknowledged. The order at 4:
    # topic b, which has room.
    assert codes(publisher) == [(4, ReasonCode.NO_MATCHING_SUBSCRIBERS)]
    assert core.broker.pressure.publishers_waiting == 1
    sub = core.client("away", clean_start=False)
    got: list[bytes] = []
    for _ in range(20):
        got += payloads(sub)
        core.advance(0)
    assert got == [b"1", b"2", b"3", b"5", b"7", b"9"]
    assert [packet_id for packet_id, _ in codes(publisher)] == [5, 6, 7, 8, 9]
    assert core.broker.pressure.publishers_waiting == 0
    assert core.broker.counters.dropped == 0


def test_a_waiting_publisher_is_answered_otherwise_and_exceeds_its_receive_maximum_like_any_other() -> None:
    core, publisher = full("wait", receive_maximum=5)
    publisher.publish("a", b"4", 1, 4)
    publisher.send(p.Pingreq())
    publisher.publish("a", b"zero", 0)
    assert [type(packet) for packet in publisher.take()] == [p.Pingresp]
    for packet_id in range(5, 9):
        publisher.publish("a", b"x", 1, packet_id)
    assert publisher.is_open
    publisher.publish("a", b"x", 1, 9)
    assert [packet.reason_code for packet in publisher.take()] == [ReasonCode.RECEIVE_MAXIMUM_EXCEEDED]
    assert core.broker.pressure.publishers_waiting == 0


def test_a_waiting_publisher_that_did_not_read_is_answered_once_it_reads_again() -> None:
    core, publisher = full("wait")
    publisher.subscribe("b")
    publisher.publish("a", b"4", 1, 4)
    publisher.connection.is_paused = True
    core.client("other").publish("b", b"not read yet")
    sub = core.client("away", clean_start=False)
    for _ in range(3):
        payloads(sub)
        core.advance(0)
    publisher.connection.is_paused = False
    publisher.flush()
    assert [type(packet) for packet in publisher.take()] == [p.Publish, p.Puback]


def test_what_waited_with_a_lost_connection_was_never_taken() -> None:
    core, publisher = full("wait")
    publisher.publish("a", b"4", 1, 4)
    publisher.lose()
    assert payloads(core.client("away", clean_start=False)) == [b"1", b"2", b"3"]


def test_a_topic_with_too_many_levels_that_waited_behind_others_ends_its_connection_alone() -> None:
    core, publisher = full("wait", max_topic_levels=2)
    other = core.client("other", 5)
    for client in (publisher, other):
        client.publish("a", b"4", 1, 4)
    publisher.publish("a/b/c", b"5", 1, 5)
    assert codes(publisher) == [] and codes(other)[1:] == []
    sub = core.client("away", clean_start=False)
    for _ in range(20):
        payloads(sub)
        core.advance(0)
    assert publisher.take() == [p.Puback(4), p.Disconnect(ReasonCode.TOPIC_NAME_INVALID)]
    assert not publisher.is_open and codes(other) == [(4, 0)]


def test_an_ended_session_makes_room_for_those_who_wait_for_it() -> None:
    core, publisher = full("wait")
    publisher.publish("a", b"4", 1, 4)
    assert codes(publisher) == []
    core.client("away", clean_start=True)
    core.advance(0)
    assert codes(publisher) == [(4, ReasonCode.NO_MATCHING_SUBSCRIBERS)]


def test_other_limits_after_a_reload_let_those_go_on_who_wait() -> None:
    core, publisher = full("wait")
    publisher.publish("a", b"4", 1, 4)
    limits = type(core.broker.limits)(max_queued_messages=100)
    core.broker.set_limits(limits)
    core.advance(0)
    assert codes(publisher) == [(4, 0)]


def test_a_3_1_1_publisher_without_a_window_is_not_read_from_any_more() -> None:
    core, _ = full("wait", receive_maximum=10)
    old = core.client("old", 4)
    for packet_id in range(1, 20):
        old.publish("a", b"x", 1, packet_id)
    assert old.is_held
    core.client("away", clean_start=True)
    core.advance(0)
    assert not old.is_held
    assert [packet_id for packet_id, _ in codes(old)] == list(range(1, 20))


# -- rules for some sessions --


def test_each_queue_has_the_policy_of_the_first_rule_that_fits_its_client() -> None:
    core = Core(is_durable=True, max_queued_messages=3)
    rules = [
        SessionRule("logger-*", max_queued_messages=4, queue_full="reject"),
        SessionRule("l*", queue_full="wait"),
    ]
    core.broker.set_limits(core.broker.limits, rules)
    away(core, "logger-1", "a")
    away(core, "lamp", "b")
    away(core, "other", "c")
    publisher = core.client("pub", 5)
    for packet_id in range(1, 6):
        publisher.publish("a", b"a", 1, packet_id)
        publisher.publish("c", b"c", 1, packet_id + 100)
    found = dict(codes(publisher))
    assert [found[i] for i in range(1, 6)] == [0, 0, 0, 0, QUOTA_EXCEEDED]
    assert [found[i] for i in range(101, 106)] == [0] * 5
    assert core.broker.counters.dropped_queue_full == 2  # other's
    for packet_id in range(201, 205):
        publisher.publish("b", b"b", 1, packet_id)
    assert codes(publisher) == [(201, 0), (202, 0), (203, 0)]  # the fourth waits


def test_of_several_full_queues_the_one_that_rejects_decides() -> None:
    core = Core(is_durable=True, max_queued_messages=1)
    rules = [SessionRule("w", queue_full="wait"), SessionRule("r", queue_full="reject")]
    core.broker.set_limits(core.broker.limits, rules)
    for name in ("w", "r", "other"):
        away(core, name)
    publisher = core.client("pub", 5)
    publisher.publish("a", b"1", 1, 1)
    publisher.publish("a", b"2", 1, 2)
    assert codes(publisher) == [(1, 0), (2, QUOTA_EXCEEDED)]
    core.client("r", clean_start=True)
    publisher.publish("a", b"2", 1, 2)
    assert codes(publisher) == []
    core.client("w", clean_start=True)
    core.advance(0)
    assert codes(publisher) == [(2, 0)]
    assert payloads(core.client("other", clean_start=False)) == [b"2"]


def test_rules_hold_for_sessions_that_were_there_before_them_and_end_with_them() -> None:
    core = Core(is_durable=True, max_queued_messages=1)
    away(core)
    publisher = core.client("pub", 5)
    publisher.publish("a", b"1", 1, 1)
    core.broker.set_limits(core.broker.limits, [SessionRule("*", queue_full="reject")])
    publisher.publish("a", b"2", 1, 2)
    core.broker.set_limits(core.broker.limits)
    publisher.publish("a", b"3", 1, 3)
    assert codes(publisher) == [(1, 0), (2, QUOTA_EXCEEDED), (3, 0)]
    assert payloads(core.client("away", clean_start=False)) == [b"3"]


# -- the store can't be written --


def failing(*, qos: int = 1) -> Core:
    """A store that fails with a message under way; a session that is owed messages."""
    core = Core(is_durable=True)
    away(core, qos=qos)
    core.client("before", 5).publish("a", b"before", qos, 1)
    old, new = core.client("old", 4, clean_start=False), core.client("new", 5)
    old.take(), new.take()
    old.publish("a", b"unkept old", qos, 1, commit=False)
    new.publish("a", b"unkept new", qos, 1, commit=False)
    core.fail_store()
    # Neither was acknowledged; 5.0 is told why.
    assert old.take() == [] and not old.is_open
    assert [packet.reason_code for packet in new.take()] == [QUOTA_EXCEEDED] and not new.is_open
    return core


def test_while_the_store_fails_what_needs_it_is_refused_and_everything_else_goes_on() -> None:
    core = failing()
    publisher, here = core.client("pub", 5), core.client("here", 5)
    assert publisher.take()[0].reason_code == 0
    assert here.subscribe("#", 1) == 1
    publisher.publish("a", b"1", 1, 1)
    publisher.publish("kept", b"2", 1, 2, retain=True)
    publisher.publish("a", b"zero", 0)
    publisher.publish("b", b"one", 1, 3)
    publisher.publish("b", b"two", 2, 4)
    assert codes(publisher) == [(1, QUOTA_EXCEEDED), (2, QUOTA_EXCEEDED), (3, 0), (4, 0)]
    assert payloads(here) == [b"zero", b"one", b"two"]
    old = core.client("old", 4)
    old.take()
    old.publish("a", b"1", 1, 1)
    assert old.take() == [] and not old.is_open
    # Sessions that last can connect, are sent what they are owed, and can acknowledge it.
    sub = core.client("away", clean_start=False)
    assert sub.received[0].session_present
    assert payloads(sub) == [b"before", b"unkept old", b"unkept new"]
    sub.send(p.Pingreq())
    assert [type(packet) for packet in sub.take()] == [p.Pingresp]
    assert core.client("new session", 5, clean_start=False, properties={"session_expiry_interval": 9}).subscribe(
        "x", 1
    ) == (QUOTA_EXCEEDED)
    assert core.broker.counters.refused_store_failing == 3


def test_when_there_is_space_again_all_goes_on_and_nothing_is_lost() -> None:
    core = failing()
    core.recover_store()
    publisher = core.client("pub", 5)
    publisher.take()
    publisher.publish("a", b"after", 1, 1)
    assert codes(publisher) == [(1, 0)]
    again = core.restarted()
    got = payloads(again.client("away", clean_start=False))
    assert got == [b"before", b"unkept old", b"unkept new", b"after"]


def test_qos_2_waits_for_the_store_and_is_still_delivered_once() -> None:
    core = failing(qos=2)
    # The publisher whose PUBREC never came sends again, under the same identifier.
    old = core.client("old", 4, clean_start=False)
    old.take()
    old.publish("a", b"unkept old", 2, 1, dup=True)
    assert old.take() == []
    sub = core.client("away", clean_start=False)
    assert [type(packet) for packet in sub.take()] == [p.Connack]  # its packet identifiers can't be kept yet
    core.recover_store()
    assert [type(packet) for packet in old.take()] == [p.Pubrec]
    old.send(p.Pubrel(1))
    assert [type(packet) for packet in old.take()] == [p.Pubcomp]
    assert payloads(sub) == [b"before", b"unkept old", b"unkept new"]


def test_an_exchange_of_qos_2_that_was_under_way_goes_on_after_the_store() -> None:
    core = Core(is_durable=True)
    sub = core.client("sub", clean_start=False)
    sub.subscribe("a", 2)
    sub.take()
    publisher = core.client("pub", 5, clean_start=False, properties={"session_expiry_interval": 99})
    publisher.publish("a", b"x", 2, 7)
    publisher.take()
    (sent,) = sub.take(p.Publish)
    core.client("other", 5, clean_start=False, properties={"session_expiry_interval": 99}).lose()
    core.client("another", clean_start=False).send(p.Disconnect(0, None), commit=False)
    core.fail_store()
    sub.send(p.Pubrec(sent.packet_id))
    publisher.send(p.Pubrel(7))
    assert sub.take() == [] and publisher.take() == []
    sub.send(p.Pingreq())
    assert [type(packet) for packet in sub.take()] == [p.Pingresp]
    core.recover_store()
    assert [type(packet) for packet in sub.take()] == [p.Pubrel]
    assert [type(packet) for packet in publisher.take()] == [p.Pubcomp]


def test_connack_that_waits_for_a_failing_store_becomes_a_refusal() -> None:
    core = Core(is_durable=True)
    client = core.client(connect=False, version=5)
    properties: Any = {"session_expiry_interval": 99}
    client.send(p.Connect("one", False, 0, 5, False, None, None, None, properties), commit=False)
    core.fail_store()
    assert [(type(packet), packet.reason_code) for packet in client.take()] == [(p.Connack, QUOTA_EXCEEDED)]
    assert not client.is_open
