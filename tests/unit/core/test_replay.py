"""`$replay/FROM/FILTER`: what was kept comes in order, then what is published, each once; a session goes on where it
was."""

from __future__ import annotations

from typing import Any

import pytest

from midge.core.access import ANYBODY, Identity
from midge.core.history import SEQUENCE, HistoryRule
from midge.protocol import packets as p
from midge.protocol.reasons import ReasonCode

from .harness import Client, Core

KEPT = [HistoryRule("s/#", 3600.0, 1000, 1_000_000)]


def core_with(rules: list[HistoryRule] = KEPT, **fields: Any) -> Core:
    core = Core(is_durable=True, **fields)
    core.broker.replay.set_rules(rules)
    return core


def restarted(core: Core, **limits: Any) -> Core:
    again = core.restarted(**limits)
    again.broker.replay.set_rules(KEPT)
    return again


def keep(core: Core, count: int, first: int = 1, topic: str = "s/t", qos: int = 1, commit: bool = True) -> None:
    client = core.client(f"publisher of {first}")
    for number in range(first, first + count):
        client.publish(topic, str(number).encode(), qos, packet_id=number % 60_000 + 1, commit=commit)
    client.send(p.Disconnect(0, None), commit=commit)


def payloads(client: Client) -> list[int]:
    """What has come since the last call, acknowledged until no more comes."""
    found: list[int] = []
    while True:
        packets = client.take(p.Publish)
        found += [int(packet.payload) for packet in packets]
        answers: list[p.Packet] = [p.Puback(packet.packet_id, 0) for packet in packets if packet.qos == 1]
        for packet in packets:
            if packet.qos == 2:
                answers += [p.Pubrec(packet.packet_id, 0), p.Pubcomp(packet.packet_id, 0)]
        if not packets:
            before = len(client.received)
            client.core.advance(0.1)
            if len(client.received) == before:
                return found
        client.send(*answers)


def numbers(client: Client) -> list[int]:
    """Sequence numbers of what has come to a client of 5.0 at QoS 0."""
    packets = client.take(p.Publish)
    return [int(dict(packet.properties["user_property"])[SEQUENCE]) for packet in packets]


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("version", [4, 5])
def test_what_was_kept_comes_in_order_and_what_is_published_then(version: int, qos: int) -> None:
    core = core_with()
    keep(core, 100, qos=2)
    reader = core.client("reader", version)
    assert reader.subscribe("$replay/all/s/#", qos) == qos
    assert payloads(reader) == list(range(1, 101))
    keep(core, 50, 101, qos=2)
    assert payloads(reader) == list(range(101, 151))


def test_messages_come_with_their_own_topics_and_their_number() -> None:
    core = core_with()
    keep(core, 1, 7, "s/a/b")
    reader = core.client("reader", 5)
    reader.subscribe("$replay/all/s/#", properties={"subscription_identifier": [9]})
    core.advance(0.1)
    keep(core, 1, 8, "s/c")
    first, second = reader.take(p.Publish)
    assert (first.topic, second.topic) == ("s/a/b", "s/c")
    assert [dict(each.properties["user_property"])[SEQUENCE] for each in (first, second)] == ["1", "2"]
    assert first.properties["subscription_identifier"] == [9]


def test_a_number_that_it_had_elsewhere_gives_way_to_its_own() -> None:
    core = core_with()
    elsewhere = {"user_property": [("a", "b"), (SEQUENCE, "77")]}
    core.client("publisher", 5).publish("s/t", b"1", 1, properties=elsewhere)
    reader = core.client("reader", 5)
    reader.subscribe("$replay/all/s/#")
    core.advance(0.1)
    (packet,) = reader.take(p.Publish)
    assert packet.properties["user_property"] == [("a", "b"), (SEQUENCE, "1")]


def test_the_qos_is_the_lower_of_both_and_the_retain_flag_is_kept() -> None:
    core = core_with()
    publisher = core.client("publisher")
    publisher.publish("s/t", b"1", 0)
    publisher.publish("s/t", b"2", 1, retain=True)
    publisher.publish("s/t", b"3", 2, 2)
    reader = core.client("reader", 5)
    reader.subscribe("$replay/all/s/#", 1, retain_as_published=True)
    core.advance(0.1)
    assert [(each.qos, each.retain) for each in reader.take(p.Publish)] == [(0, False), (1, True), (1, False)]


def test_only_what_matches_both_filters_comes() -> None:
    core = core_with()
    publisher = core.client("publisher")
    for topic in ("s/a", "o/a", "s/b", "s/a"):
        publisher.publish(topic, topic.encode())
    core.turn()
    reader = core.client("reader")
    reader.subscribe("$replay/all/+/a")
    core.advance(0.1)
    publisher.publish("s/a", b"s/a")
    publisher.publish("o/a", b"o/a")
    assert [each.payload for each in reader.take(p.Publish)] == [b"s/a"] * 3


def test_an_age_a_time_and_a_number_choose_where_it_begins() -> None:
    core = core_with(now=1_000_000.0)  # 1970-01-12T13:46:40Z
    for number in range(1, 31):
        keep(core, 1, number)
        core.advance(10)
    for start, first in (
        ("100s", 21),
        ("1h", 1),
        ("1970-01-12T13:48:20Z", 11),
        ("1970-01-12T13:48:20.5Z", 12),
        ("2970-01-12T13:46:40Z", 31),
        ("after/25", 26),
        ("after/30", 31),
        ("after/31", 1),  # a number of another store
    ):
        reader = core.client("reader")
        assert reader.subscribe(f"$replay/{start}/s/#") == 0
        core.advance(0.05)
        assert payloads(reader) == list(range(first, 31)), start
        reader.lose()


@pytest.mark.parametrize(
    ("topic_filter", "why"),
    [
        ("$replay/s/#", "FROM must be"),
        ("$replay/yesterday/s/#", "FROM must be"),
        ("$replay/1y/s/#", "FROM must be"),
        ("$replay/2026-13-01T00:00:00Z/s/#", "month"),
        ("$replay/2026-11-25T00:00:00/s/#", "FROM must be"),
        ("$replay/after/x/s/#", "not the number"),
        ("$replay/after/1", "a topic filter must follow"),
        ("$replay/all", "a topic filter must follow"),
        ("$replay/all/$SYS/#", "begin with $"),
        ("$replay/all/other/#", "no [[history]]"),
        ("$share/g/$replay/all/s/#", "can't be shared"),
    ],
)
def test_what_cannot_be_replayed_is_refused_with_a_reason(topic_filter: str, why: str) -> None:
    core = core_with()
    told: list[str] = []
    core.broker.replay.on_refused = lambda connection, topic_filter, reason: told.append(reason)
    assert core.client("old", 4).subscribe(topic_filter) == 0x80
    code = ReasonCode.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED if "$share" in topic_filter else 0x8F
    assert core.client("new", 5).subscribe(topic_filter) == code
    assert len(told) == 2 and why in told[0], told
    assert core.broker.replay.count == 0


def test_no_local_is_refused_since_nobody_knows_who_sent_what_is_kept() -> None:
    core = core_with()
    assert core.client("new", 5).subscribe("$replay/all/s/#", no_local=True) == 0x8F


def test_publishing_to_a_replay_is_not_allowed() -> None:
    core = core_with()
    client = core.client("new", 5)
    client.publish("$replay/all/s/t", b"x", 1)
    assert client.take(p.Puback)[0].reason_code == ReasonCode.NOT_AUTHORIZED


def test_puback_waits_for_the_commit_of_a_message_that_is_kept() -> None:
    core = core_with()
    publisher = core.client("publisher")
    publisher.take()
    publisher.publish("s/t", b"1", 1, commit=False)
    publisher.publish("s/t", b"2", 2, 2, commit=False)
    assert publisher.take() == []
    core.turn()
    assert [type(packet) for packet in publisher.take()] == [p.Puback, p.Pubrec]


def test_a_reader_is_sent_nothing_that_a_crash_could_undo() -> None:
    core = core_with()
    reader = core.client("reader")
    reader.subscribe("$replay/all/s/#")
    keep(core, 3, qos=0, commit=False)
    assert reader.take(p.Publish) == []
    core.turn()
    assert payloads(reader) == [1, 2, 3]


def test_a_client_without_readers_waits_for_nothing() -> None:
    core = core_with()
    live = core.client("live")
    live.subscribe("s/#")
    keep(core, 1, qos=0, commit=False)
    assert [each.payload for each in live.take(p.Publish)] == [b"1"]


def test_no_more_is_sent_than_the_window_has_room_for() -> None:
    core = core_with(max_inflight_messages=5)
    keep(core, 100)
    reader = core.client("reader", clean_start=False)
    reader.subscribe("$replay/all/s/#", 1)
    core.advance(1)
    assert [int(each.payload) for each in reader.received if type(each) is p.Publish] == [1, 2, 3, 4, 5]
    session = core.broker.sessions["reader"]
    assert session.queue.count == 0
    assert payloads(reader) == list(range(1, 101))
    assert session.queue.count == 0


def test_a_client_that_does_not_read_is_sent_no_more_until_it_does() -> None:
    core = core_with()
    keep(core, 100)
    reader = core.client("reader")
    reader.connection.is_paused = True
    reader.send(p.Subscribe(1, [p.Subscription("$replay/all/s/#", 0)], None))
    core.advance(1)
    assert len(reader.connection.out) == 1  # SUBACK
    reader.connection.is_paused = False
    reader.flush()
    core.advance(1)
    assert payloads(reader) == list(range(1, 101))


def test_a_long_replay_comes_in_portions_between_which_others_have_their_turns() -> None:
    core = core_with()
    keep(core, 2000, qos=0)
    reader = core.client("reader")
    reader.subscribe("$replay/all/s/#")
    assert len(reader.received) < 600
    assert payloads(reader) == list(range(1, 2001))


def test_a_persistent_session_goes_on_where_it_was_and_clients_subscribe_anew_each_time() -> None:
    core = core_with()
    keep(core, 30)
    reader = core.client("reader", clean_start=False)
    reader.subscribe("$replay/all/s/#", 1)
    assert payloads(reader) == list(range(1, 31))
    reader.lose()
    keep(core, 30, 31)
    reader = core.client("reader", clean_start=False)
    assert reader.subscribe("$replay/all/s/#", 1) == 1
    assert payloads(reader) == list(range(31, 61))
    reader.lose()
    keep(core, 5, 61)
    reader = core.client("reader", clean_start=False)  # and who doesn't has it too
    assert payloads(reader) == list(range(61, 66))


def test_who_unsubscribes_begins_anew() -> None:
    core = core_with()
    keep(core, 3)
    reader = core.client("reader", 5, clean_start=False)
    reader.subscribe("$replay/all/s/#", 1)
    assert payloads(reader) == [1, 2, 3]
    reader.send(p.Unsubscribe(2, ["$replay/all/s/#", "$replay/1h/s/#"], None))
    assert reader.take(p.Unsuback)[0].reason_codes == [0, ReasonCode.NO_SUBSCRIPTION_EXISTED]
    assert core.broker.replay.count == 0
    keep(core, 1, 4)
    assert payloads(reader) == []
    reader.subscribe("$replay/all/s/#", 1)
    assert payloads(reader) == [1, 2, 3, 4]


@pytest.mark.parametrize("qos", [1, 2])
def test_after_a_restart_a_session_has_what_was_in_flight_again_and_goes_on_behind_it(qos: int) -> None:
    core = core_with(max_inflight_messages=3)
    keep(core, 10, qos=2)
    reader = core.client("reader", clean_start=False, properties={})
    reader.subscribe("$replay/all/s/#", qos)
    assert [int(each.payload) for each in reader.take(p.Publish)] == [1, 2, 3]
    again = restarted(core, max_inflight_messages=3)
    assert again.broker.replay.history.last == 10
    reader = again.client("reader", clean_start=False)
    first = [packet for packet in reader.received if type(packet) is p.Publish]
    assert [(int(each.payload), each.dup) for each in first] == [(1, True), (2, True), (3, True)]
    assert payloads(reader) == list(range(1, 11))
    keep(again, 2, 11)
    assert payloads(reader) == [11, 12]


def test_numbers_go_on_after_a_restart() -> None:
    core = core_with()
    keep(core, 3)
    again = restarted(core)
    reader = again.client("reader", 5)
    reader.subscribe("$replay/after/3/s/#")
    keep(again, 2, 4)
    assert numbers(reader) == [4, 5]


def test_a_session_that_ends_leaves_nothing() -> None:
    core = core_with()
    keep(core, 3)
    reader = core.client("reader", clean_start=False)
    reader.subscribe("$replay/all/s/#", 1)
    reader.lose()
    core.client("reader", clean_start=True)
    assert core.broker.replay.count == 0
    assert core.store.load().positions == {}


class ReadsOnly:
    """May read one topic, and subscribe to what could match it."""

    def __init__(self, topic: str) -> None:
        self.topic = topic

    def connect(self, connect: p.Connect, address: str, answer: Any) -> None:
        answer(ReasonCode.SUCCESS, ANYBODY)

    def authenticator(self, method: str, address: str) -> None:
        return None

    def permissions(self, client_id: str, identity: Identity) -> ReadsOnly | None:
        return self if client_id == "reader" else None

    def may_publish(self, topic: str) -> bool:
        return True

    def may_read(self, topic: str) -> bool:
        return topic == self.topic

    def may_subscribe(self, topic_filter: str) -> bool:
        return topic_filter in ("s/#", self.topic)


def test_who_may_not_read_a_topic_is_not_sent_what_was_kept_of_it() -> None:
    core = core_with(access=ReadsOnly("s/a"))
    keep(core, 2, 1, "s/a")
    keep(core, 2, 3, "s/b")
    reader = core.client("reader", 5)
    assert reader.subscribe("$replay/all/s/b") == ReasonCode.NOT_AUTHORIZED
    assert reader.subscribe("$replay/all/s/#") == 0
    core.advance(0.1)
    keep(core, 1, 5, "s/a")
    keep(core, 1, 6, "s/b")
    assert payloads(reader) == [1, 2, 5]
    core.broker.set_permissions(reader.connection, core.broker.sessions["reader"])
    reader.connection.access = ReadsOnly("s/b")
    core.broker.set_permissions(reader.connection, core.broker.sessions["reader"])
    keep(core, 1, 7, "s/a")
    keep(core, 1, 8, "s/b")
    assert payloads(reader) == [8]


def test_what_has_expired_is_not_replayed() -> None:
    core = core_with()
    publisher = core.client("publisher", 5)
    publisher.publish("s/t", b"1", 1, properties={"message_expiry_interval": 10})
    publisher.publish("s/t", b"2", 1, properties={"message_expiry_interval": 100})
    core.advance(20)
    reader = core.client("reader", 5)
    reader.subscribe("$replay/all/s/#")
    core.advance(0.1)
    (packet,) = reader.take(p.Publish)
    assert packet.payload == b"2" and packet.properties["message_expiry_interval"] == 80


def test_pingresp_follows_what_is_replayed() -> None:
    """The drained marker by which a board knows that it may sleep."""
    core = core_with(max_inflight_messages=2)
    keep(core, 10)
    reader = core.client("reader", clean_start=False, keep_alive_s=60)
    reader.send(p.Subscribe(1, [p.Subscription("$replay/all/s/#", 1)], None), p.Pingreq())
    seen: list[type] = []
    while packets := reader.take():
        seen += [type(packet) for packet in packets]
        reader.send(*[p.Puback(packet.packet_id, 0) for packet in packets if type(packet) is p.Publish])
    assert seen == [p.Connack, p.Suback, *[p.Publish] * 10, p.Pingresp]


def test_what_comes_while_the_store_fails_is_refused_and_readers_wait() -> None:
    core = core_with()
    reader = core.client("reader")
    reader.subscribe("$replay/all/s/#")
    publisher = core.client("publisher", 5)
    publisher.publish("s/t", b"1", 0, commit=False)
    core.fail_store()
    assert not reader.is_open or reader.take(p.Publish) == []
    publisher = core.client("another", 5)
    assert publisher.is_open is False or publisher.take(p.Publish) == []
    core.recover_store()
    reader = core.client("reader again")
    reader.subscribe("$replay/all/s/#")
    assert payloads(reader) == [1]


def test_qos_1_is_refused_while_the_store_fails() -> None:
    core = core_with()
    publisher = core.client("publisher", 5)
    publisher.take()
    publisher.publish("s/t", b"1", 0, commit=False)
    core.fail_store()
    publisher.publish("s/t", b"2", 1)
    assert publisher.take(p.Puback)[0].reason_code == ReasonCode.QUOTA_EXCEEDED
    core.recover_store()
    publisher.publish("s/t", b"3", 1)
    reader = core.client("reader")
    reader.subscribe("$replay/all/s/#")
    assert payloads(reader) == [1, 3]


def test_the_first_rule_that_matches_keeps_a_message_once() -> None:
    core = core_with([HistoryRule("s/a", 60.0, 10, 1000), *KEPT])
    keep(core, 1, 1, "s/a")
    keep(core, 1, 2, "s/b")
    keep(core, 1, 3, "s/a")
    (batches,) = [[batch.kept for batch in core.written if batch.kept]]
    assert [list(kept) for kept in batches] == [["s/a"], ["s/#"], ["s/a"]]
    reader = core.client("reader")
    reader.subscribe("$replay/all/s/+")
    assert payloads(reader) == [1, 2, 3]


def test_rules_can_change_while_the_broker_runs() -> None:
    core = core_with()
    keep(core, 1, 1, "s/a")
    keep(core, 1, 2, "o/a")
    core.broker.replay.set_rules([HistoryRule("o/#", 60.0, 10, 1000)])
    keep(core, 1, 3, "s/a")
    keep(core, 1, 4, "o/a")
    reader = core.client("reader")
    reader.subscribe("$replay/all/+/a")
    assert payloads(reader) == [1, 4]


def test_a_message_that_a_queue_and_a_history_keep_is_written_once() -> None:
    core = core_with()
    sleeper = core.client("sleeper", clean_start=False)
    sleeper.subscribe("s/#", 1)
    sleeper.lose()
    keep(core, 1)
    (batch,) = [batch for batch in core.written if batch.kept]
    (queued,) = batch.queue[core.broker.sessions["sleeper"].key].values()
    payload = queued[0][2]
    assert batch.kept["s/#"][0][2][2] is payload  # so that the journal, which is pickled, has it once


def test_a_will_is_kept() -> None:
    core = core_with()
    will = p.Will("s/status", b"99", 1, False, {})
    client = core.client("dies", will=will)
    client.lose()
    reader = core.client("reader")
    reader.subscribe("$replay/all/s/#")
    assert payloads(reader) == [99]


def test_taking_over_a_session_takes_over_its_reading() -> None:
    core = core_with(max_inflight_messages=2)
    keep(core, 6)
    first = core.client("reader", clean_start=False)
    first.subscribe("$replay/all/s/#", 1)
    second = core.client("reader", clean_start=False)
    assert not first.is_open
    assert payloads(second) == [1, 2, 3, 4, 5, 6]
