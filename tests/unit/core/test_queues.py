"""Durable queues: one consumer each, in order, kept until it has it."""

from __future__ import annotations

from typing import Any

import pytest

from midge.core.connection import HELD_BY_RATE
from midge.core.durable_queue import QueueSettings
from midge.core.session import NEVER_EXPIRES
from midge.protocol import packets as p
from unit.core.harness import Client, Core

TOPIC = "$queue/jobs"


def queue_core(**settings: Any) -> Core:
    return Core(is_durable=True, queues=[QueueSettings("jobs", **settings)])


def worker(core: Core, name: str, qos: int = 1, version: int = 4, **fields: Any) -> Client:
    client = core.client(name, version, **fields)
    assert client.subscribe(TOPIC, qos) == qos
    client.take()
    return client


def kept(core: Core, name: str, qos: int = 1, version: int = 5) -> Client:
    """A worker whose session outlives its connection."""
    properties = {"session_expiry_interval": NEVER_EXPIRES} if version == 5 else {}
    client = core.client(name, version, clean_start=False, properties=properties)
    assert client.subscribe(TOPIC, qos) == qos
    client.take()
    return client


def jobs(client: Client) -> list[bytes]:
    return [packet.payload for packet in client.take(p.Publish)]


def job(client: Client) -> p.Publish:
    (packet,) = client.take(p.Publish)
    return packet


def put(core: Core, *payloads: bytes, qos: int = 1, topic: str = TOPIC, version: int = 5) -> list[int]:
    """Publish each; the reason codes that came."""
    producer = core.client("producer", version)
    producer.take()
    for number, payload in enumerate(payloads, 1):
        producer.publish(topic, payload, qos, number)
    return [packet.reason_code for packet in producer.take() if type(packet) in (p.Puback, p.Pubrec)]


def depth(core: Core, name: str = "jobs") -> int:
    return core.broker.queues.by_name[name].count


@pytest.mark.parametrize("is_durable", [True, False])
def test_messages_wait_for_a_consumer_and_come_in_order(is_durable: bool) -> None:
    core = Core(is_durable)
    assert put(core, b"1", b"2", b"3") == [0, 0, 0]
    one = worker(core, "one", version=4)
    core.turn()
    # It took the first with its SUBACK; `worker` has thrown that away.
    (lent,) = one.connection.session.in_flight.values()
    assert lent.message.payload == b"1"
    one.send(p.Puback(1))
    got = [b"1"]
    for _ in range(2):
        packet = job(one)
        assert not packet.dup and packet.qos == 1 and packet.topic == TOPIC
        got.append(packet.payload)
        one.send(p.Puback(packet.packet_id))
    assert got == [b"1", b"2", b"3"]
    assert depth(core) == 0


def test_each_message_goes_to_one_consumer_in_turn() -> None:
    core = queue_core()
    workers = [worker(core, name) for name in ("a", "b", "c")]
    put(core, b"1", b"2", b"3", b"4", b"5")
    assert [jobs(each) for each in workers] == [[b"1"], [b"2"], [b"3"]]
    workers[1].send(p.Puback(1))  # whoever is done gets the next
    assert [jobs(each) for each in workers] == [[], [b"4"], []]


def test_whoever_has_most_room_comes_first() -> None:
    core = queue_core()
    worker(core, "narrow")
    wide = worker(core, "wide", version=5, properties={"receive_maximum": 3})
    put(core, b"1", b"2", b"3")
    assert jobs(wide) == [b"1", b"2"]  # 3 to 1, 2 to 1, then a tie that was the other's turn


def test_a_slow_consumer_hoards_no_more_than_its_prefetch() -> None:
    core = queue_core(prefetch=2)
    slow, fast = worker(core, "slow"), worker(core, "fast")
    put(core, *(b"%d" % number for number in range(20)))
    done = []
    while packets := fast.take(p.Publish):
        for packet in packets:
            done.append(packet.payload)
            fast.send(p.Puback(packet.packet_id))
    assert len(jobs(slow)) == 2
    assert len(done) == 18
    assert depth(core) == 2


def test_a_consumer_that_joins_gets_the_next_message() -> None:
    core = queue_core()
    worker(core, "one")
    put(core, b"1", b"2", b"3")
    two = core.client("two")
    two.subscribe(TOPIC, 1)
    assert jobs(two) == [b"2"]


@pytest.mark.parametrize("qos", [1, 2])
def test_what_a_dead_consumer_held_goes_to_another_at_once_counted_and_with_dup(qos: int) -> None:
    core = queue_core(prefetch=2)
    one, two = worker(core, "one", qos), worker(core, "two", qos, version=5)
    put(core, b"1", b"2", b"3")
    assert jobs(one) == [b"1", b"3"]
    assert jobs(two) == [b"2"]
    one.lose()
    packet = job(two)
    assert packet.payload == b"1" and packet.dup
    assert packet.properties["user_property"] == [("midge-deliveries", "2")]
    assert core.broker.queues.by_name["jobs"].redelivered == 1


def test_a_kept_session_that_disconnects_holds_nothing() -> None:
    core = queue_core()
    one, two = kept(core, "one"), worker(core, "two")
    put(core, b"1", b"2")
    assert jobs(one) == [b"1"]
    two.send(p.Puback(job(two).packet_id))
    one.send(p.Disconnect())
    assert jobs(two) == [b"1"]
    again = core.client("one", 5, clean_start=False)
    put(core, b"3")
    assert jobs(again) == [b"3"]  # it is a consumer again without subscribing anew
    assert depth(core) == 2


def test_a_qos_2_message_that_its_consumer_has_taken_goes_to_nobody_else() -> None:
    core = queue_core()
    one, two = kept(core, "one", 2), worker(core, "two", 2)
    put(core, b"1", b"2")
    one.send(p.Pubrec(job(one).packet_id))
    assert one.take(p.Pubrel)
    two.send(p.Pubrec(1), p.Pubcomp(1))
    one.lose()
    assert jobs(two) == [b"2"]
    assert depth(core) == 0
    again = core.client("one", 5, clean_start=False)
    assert [type(packet) for packet in again.take()] == [p.Connack, p.Pubrel]


def test_an_identifier_that_was_taken_back_is_not_used_for_another_message() -> None:
    """A client that remembers it would take the other for a duplicate [MQTT-4.3.3-10]."""
    core = queue_core()
    one, two = kept(core, "one", 2), worker(core, "two", 2)
    put(core, b"1")
    assert job(one).packet_id == 1
    one.lose()
    assert jobs(two) == [b"1"]
    again = core.client("one", 4, clean_start=False)
    again.connection.session.last_packet_id = 65_535
    put(core, b"2")
    assert job(again).packet_id == 2
    again.send(p.Pubrec(1))  # of the message that another has
    assert again.take(p.Pubrel) == []
    restarted = core.restarted()
    again = restarted.client("one", 4, clean_start=False)
    assert sorted(again.connection.session.avoided) == [1, 2]
    assert job(again).packet_id == 3


def test_a_restart_loses_nothing_and_remembers_how_often_something_was_delivered() -> None:
    core = queue_core()
    worker(core, "one")
    put(core, b"1", b"2", b"3")
    restarted = core.restarted()
    assert depth(restarted) == 3
    two = restarted.client("two", 5)
    two.subscribe(TOPIC, 1)
    first = job(two)
    assert first.payload == b"1" and first.dup
    assert first.properties["user_property"] == [("midge-deliveries", "2")]
    two.send(p.Puback(1))
    second = job(two)
    assert second.payload == b"2" and not second.dup and not second.properties
    assert restarted.restarted().broker.queues.by_name["jobs"].count == 2


def test_a_restart_gives_a_qos_2_message_back_only_before_its_pubrec() -> None:
    core = queue_core(prefetch=2)
    one = kept(core, "one", 2, version=4)
    put(core, b"1", b"2")
    one.send(p.Pubrec(1))
    restarted = core.restarted()
    assert depth(restarted) == 1
    again = restarted.client("one", 4, clean_start=False)
    assert [(type(packet), packet.packet_id) for packet in again.take()[1:]] == [(p.Pubrel, 1), (p.Publish, 3)]


def test_pubrel_waits_for_the_commit_also_of_a_clean_session() -> None:
    core = queue_core()
    one = worker(core, "one", 2)
    put(core, b"1")
    one.take()
    one.send(p.Pubrec(1), commit=False)
    assert not core.broker.release_what_is_gone() and one.take() == []
    core.turn()
    assert [type(packet) for packet in one.take()] == [p.Pubrel]


@pytest.mark.parametrize("qos", [1, 2])
def test_a_refused_message_goes_to_another(qos: int) -> None:
    core = queue_core()
    one, two = worker(core, "one", qos, 5), worker(core, "two", qos, 5)
    put(core, b"1")
    refusal = p.Puback(1, 0x83) if qos == 1 else p.Pubrec(1, 0x83)
    one.send(refusal)
    assert jobs(one) == [b"1"]
    assert job(two).dup
    two.send(refusal)
    assert jobs(one) == [b"1"]


def test_after_max_deliveries_a_message_is_a_dead_letter_with_the_reason() -> None:
    core = queue_core(max_deliveries=2, dead_letter="jobs/failed")
    watcher = core.client("watcher", 5)
    watcher.subscribe("jobs/failed", 1)
    one = worker(core, "one", version=5)
    put(core, b"bad", b"good")
    one.send(p.Puback(1, 0x80))
    assert jobs(one) == [b"bad", b"bad"]
    one.send(p.Puback(2, 0x80))
    assert jobs(one) == [b"good"]
    letter = job(watcher)
    assert letter.payload == b"bad" and letter.topic == "jobs/failed"
    assert letter.properties["user_property"] == [
        ("midge-dead-letter-queue", "jobs"),
        ("midge-dead-letter-reason", "delivered 2 times; lastly: refused with reason 0x80"),
        ("midge-dead-letter-topic", TOPIC),
        ("midge-deliveries", "2"),
    ]
    assert core.broker.queues.by_name["jobs"].dead_lettered == 1


def test_dead_letters_wait_in_a_queue_of_their_own_if_nothing_else_is_said() -> None:
    core = queue_core(max_deliveries=1)
    one = worker(core, "one")
    put(core, b"1")
    one.lose()
    assert (depth(core), depth(core, "jobs.dead")) == (0, 1)
    undertaker = core.restarted().client("undertaker", 5)
    undertaker.subscribe("$queue/jobs.dead", 1)
    assert dict(job(undertaker).properties["user_property"])["midge-dead-letter-reason"] == (
        "delivered 1 times; lastly: its consumer 'one' left"
    )
    undertaker.lose()  # there is no queue for the dead of the dead


def test_dead_letters_that_come_round_are_dropped() -> None:
    core = queue_core(max_deliveries=1, dead_letter=TOPIC)
    one = worker(core, "one", version=5)
    put(core, b"1")
    one.send(p.Puback(1, 0x80))
    one.send(p.Puback(2, 0x80))
    assert len(jobs(one)) == 2
    queue = core.broker.queues.by_name["jobs"]
    assert (queue.count, queue.dropped) == (0, 1)


def test_what_no_consumer_can_take_is_a_dead_letter() -> None:
    core = queue_core(max_deliveries=3)
    worker(core, "small", version=5, properties={"maximum_packet_size": 50})
    put(core, bytes(100), b"1")
    assert depth(core) == 1
    assert depth(core, "jobs.dead") == 1


def test_a_full_queue_refuses_5_0_and_makes_3_1_1_wait() -> None:
    core = queue_core(max_messages=2)
    assert put(core, b"1", b"2", b"3") == [0, 0, 0x97]
    old = core.client("old", 4)
    old.take()
    old.publish(TOPIC, b"4", 1, 1)
    old.publish("elsewhere", b"", 1, 2)  # acknowledgements keep their order [MQTT-4.6.0-2]
    assert old.take() == []
    one = core.client("one")
    one.subscribe(TOPIC, 1)
    one.send(p.Puback(1))
    core.advance(0)
    assert [packet.packet_id for packet in old.take(p.Puback)] == [1, 2]
    assert not core.broker.pressure.publishers_waiting
    one.send(p.Puback(2), p.Puback(3))
    assert jobs(one) == [b"1", b"2", b"4"]
    assert not core.broker.pressure.is_on


@pytest.mark.parametrize(
    ("full", "version", "codes"),
    [("reject", 5, [0, 0x97]), ("wait", 5, [0]), ("wait", 4, [0]), ("reject", 4, [0]), ("drop-oldest", 5, [0, 0])],
)
def test_what_happens_when_it_is_full(full: str, version: int, codes: list[int]) -> None:
    core = queue_core(max_messages=1, full=full)
    assert put(core, b"1", b"2", version=version) == codes
    one = core.client("one")
    one.subscribe(TOPIC, 1)
    assert jobs(one) == ([b"2"] if full == "drop-oldest" else [b"1"])
    one.send(p.Puback(1))
    core.advance(0)
    assert jobs(one) == ([b"2"] if full == "wait" else [])


def test_a_producer_that_waits_is_not_read_from_for_ever() -> None:
    core = queue_core(max_messages=1, full="wait")
    flood = core.client("flood", 4)
    for number in range(1, 1100):
        if not flood.is_held:
            flood.publish(TOPIC, b"x", 1, number)
    assert flood.is_held
    assert core.broker.pressure.waiting(flood.connection) <= 1001


def test_messages_that_are_too_old_are_given_up() -> None:
    core = queue_core(max_age=100, max_messages=2)
    put(core, b"1", b"2")
    assert put(core, b"3") == [0x97]
    core.advance(120)
    assert depth(core) == 0
    assert core.broker.queues.by_name["jobs"].dropped == 2
    assert put(core, b"4") == [0]
    core.advance(99)
    one = core.client("one")
    one.subscribe(TOPIC, 1)
    assert jobs(one) == [b"4"]


def test_a_message_expiry_interval_holds_in_a_queue() -> None:
    core = queue_core()
    producer = core.client("producer", 5)
    producer.publish(TOPIC, b"short", 1, 1, properties={"message_expiry_interval": 10})
    producer.publish(TOPIC, b"long", 1, 2)
    core.advance(11)
    one = core.client("one")
    one.subscribe(TOPIC, 1)
    assert jobs(one) == [b"long"]


def test_ordinary_topics_feed_a_queue_once_beside_their_subscribers() -> None:
    core = queue_core(filters=("encode/#", "encode/+", "other"))
    listener = core.client("listener")
    listener.subscribe("encode/#", 0)
    assert put(core, b"1", topic="encode/a") == [0]
    put(core, b"2", qos=0, topic="encode/b")
    assert depth(core) == 2
    one = core.client("one")
    one.subscribe(TOPIC, 2)
    packet = job(one)
    assert (packet.topic, packet.payload, packet.qos) == ("encode/a", b"1", 2)
    assert jobs(listener) == [b"1", b"2"]
    core.broker.queues.configure([], core.now)
    assert put(core, b"3", topic="encode/a") == [0]  # to the listener only
    assert depth(core) == 2


def test_subscriptions_that_are_no_consumers_are_refused() -> None:
    core = Core(max_queues=1)
    new, old = core.client("new", 5), core.client("old", 4)
    assert new.subscribe(TOPIC, 0) == 0x83
    assert old.subscribe(TOPIC, 0) == 0x80
    for topic_filter in ("$queue/#", "$queue/+", "$queue/", "$share/group/$queue/jobs"):
        assert new.subscribe(topic_filter, 1) == 0x8F
    assert new.subscribe(TOPIC, 1) == 1
    assert new.subscribe("$queue/second", 1) == 0x97
    assert new.subscribe("a/$queue/#", 0) == 0


def test_queues_that_nobody_configured_are_bounded() -> None:
    core = Core(is_durable=True, max_queues=2)
    for name in ("a", "b"):
        assert put(core, b"1", topic=f"$queue/{name}") == [0]
    assert put(core, b"1", topic="$queue/c") == [0x97]
    assert core.broker.counters.limits_met["max_queues"]
    one = core.client("one")
    one.subscribe("$queue/a", 1)
    one.send(p.Puback(1), p.Unsubscribe(1, ["$queue/a"]))
    core.advance(0)
    assert put(core, b"1", topic="$queue/c") == [0]  # in place of the one that is empty
    assert sorted(core.restarted().broker.queues.by_name) == ["b", "c"]


def test_what_unsubscribed_may_still_be_acknowledged_and_comes_back_if_it_is_not() -> None:
    core = queue_core(prefetch=2)
    one = worker(core, "one")
    put(core, b"1", b"2", b"3")
    one.send(p.Unsubscribe(1, [TOPIC]))
    one.send(p.Puback(1))
    assert jobs(one) == [b"1", b"2"]
    assert depth(core) == 2
    one.lose()
    two = core.client("two")
    two.subscribe(TOPIC, 1)
    assert jobs(two) == [b"2", b"3"]


def test_nothing_is_retained_on_a_queue() -> None:
    core = queue_core()
    producer = core.client("producer", 4)
    producer.publish(TOPIC, b"1", 1, 1, retain=True)
    one = core.client("one")
    one.subscribe(TOPIC, 1)
    assert not job(one).retain
    one.send(p.Puback(1))
    two = core.client("two")
    two.subscribe(TOPIC, 1)
    assert jobs(two) == []


def test_beyond_the_memory_messages_are_on_disk_only() -> None:
    core = Core(True, queues=[QueueSettings("jobs")], max_message_memory=20_000)
    put(core, *(b"%d" % number for number in range(200)))
    queue = core.broker.queues.by_name["jobs"]
    assert queue.store.queue.stored > 150
    core = core.restarted()
    one = core.client("one")
    one.subscribe(TOPIC, 1)
    got = []
    while packets := one.take(p.Publish):
        got += [packet.payload for packet in packets]
        one.send(*(p.Puback(packet.packet_id) for packet in packets))
    assert got == [b"%d" % number for number in range(200)]
    assert not core.broker.backlog.bytes


def test_the_window_is_shared_with_other_subscriptions() -> None:
    core = Core(True, queues=[QueueSettings("jobs", prefetch=5)], max_inflight_messages=2)
    one = worker(core, "one")
    one.subscribe("other", 1)
    put(core, b"o1", b"o2", topic="other")
    put(core, b"1")
    assert jobs(one) == [b"o1", b"o2"]
    one.send(p.Puback(1))
    assert jobs(one) == [b"1"]


def test_while_the_store_fails_a_queue_takes_nothing() -> None:
    core = queue_core()
    producer = core.client("producer", 5)
    producer.publish("x", b"1", 1, 1, retain=True, commit=False)
    core.fail_store()
    other = core.client("other", 5)
    other.take()
    other.publish(TOPIC, b"1", 1, 1)
    assert [packet.reason_code for packet in other.take(p.Puback)] == [0x97]
    core.recover_store()
    other.publish(TOPIC, b"2", 1, 2)
    assert [packet.reason_code for packet in other.take(p.Puback)] == [0]


# -- acknowledged in time --


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("version", [4, 5])
def test_who_sits_on_a_message_is_disconnected_and_another_gets_it(qos: int, version: int) -> None:
    core = queue_core(ack_timeout=30)
    idle = worker(core, "idle", qos, version)
    put(core, b"1")
    packet = job(idle)
    other = worker(core, "other", qos, version=5)
    core.advance(29)
    assert idle.is_open and jobs(other) == []
    core.advance(5)
    assert not idle.is_open
    assert [packet.reason_code for packet in idle.take(p.Disconnect)] == ([0x98] if version == 5 else [])
    again = job(other)
    assert again.payload == b"1" and again.dup
    assert again.properties["user_property"] == [("midge-deliveries", "2")]
    idle.send(p.Puback(packet.packet_id))  # too late
    assert depth(core) == 1
    core.advance(20)
    assert other.is_open  # its own time began when it got the message


def test_who_acknowledges_in_time_stays_however_long_a_job_waited_before() -> None:
    core = queue_core(ack_timeout=30)
    put(core, b"1", b"2", b"3")
    core.advance(100)
    one = core.client("one", 5)
    one.subscribe(TOPIC, 1)
    for payload in (b"1", b"2", b"3"):
        core.advance(25)
        packet = job(one)
        assert packet.payload == payload and not packet.dup
        one.send(p.Puback(packet.packet_id))
    core.advance(100)
    assert one.is_open
    put(core, b"4")
    core.advance(40)
    assert not one.is_open


def test_pubrec_makes_it_the_consumer_s_own_for_as_long_as_it_likes() -> None:
    core = queue_core(ack_timeout=30)
    one = worker(core, "one", 2)
    put(core, b"1")
    one.send(p.Pubrec(job(one).packet_id))
    core.advance(100)
    assert one.is_open and depth(core) == 0


def test_a_message_that_nobody_acknowledges_in_time_is_a_dead_letter_that_says_so() -> None:
    core = queue_core(ack_timeout=30, max_deliveries=2, dead_letter="failed")
    watcher = core.client("watcher", 5)
    watcher.subscribe("failed")
    put(core, b"1")
    one = kept(core, "one")
    for _ in range(2):
        core.advance(40)
        assert not one.is_open
        one = core.client("one", 5, clean_start=False)
    (letter,) = watcher.take(p.Publish)
    reason = dict(letter.properties["user_property"])["midge-dead-letter-reason"]
    assert reason == "delivered 2 times; lastly: its consumer 'one' acknowledged nothing of $queue/jobs for 30 s"
    assert jobs(one) == []


def test_after_unsubscribe_the_time_still_runs() -> None:
    core = queue_core(ack_timeout=30)
    one = worker(core, "one")
    put(core, b"1")
    one.send(p.Unsubscribe(2, [TOPIC]))
    core.advance(40)
    assert not one.is_open


def test_a_consumer_that_we_do_not_read_from_is_not_blamed() -> None:
    core = queue_core(ack_timeout=30)
    one = worker(core, "one")
    put(core, b"1")
    one.connection.hold(HELD_BY_RATE, True)
    core.advance(100)
    assert one.is_open
    one.connection.hold(HELD_BY_RATE, False)
    core.advance(40)
    assert not one.is_open


def test_a_time_that_is_set_later_holds_for_what_was_lent_before() -> None:
    core = queue_core()
    one = worker(core, "one")
    put(core, b"1")
    core.advance(100)
    core.broker.queues.configure([QueueSettings("jobs", ack_timeout=30)], core.now)
    core.advance(10)
    assert not one.is_open
