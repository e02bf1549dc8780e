"""What the board's broker does, on both interpreters: delivery, sessions, retained messages, wills, the host."""

import contextlib
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from mqtt_wire import (
    CONNACK_NEW,
    CONNACK_PRESENT,
    INTERPRETERS,
    PINGREQ,
    PINGRESP,
    Message,
    Wire,
    client,
    connect,
    puback,
    pubcomp,
    publish,
    pubrec,
    pubrel,
    start,
    subscribe,
    subscriber,
    sys_value,
    unsubscribe,
)


@pytest.fixture(params=INTERPRETERS)
def interpreter(request: pytest.FixtureRequest) -> str:
    return request.param


# One broker for all tests of a module and interpreter: names of clients and topics are each test's own.
@pytest.fixture(params=INTERPRETERS, scope="module")
def port(request: pytest.FixtureRequest):
    with start(request.param, max_clients=12, connect_timeout_s=2) as broker:
        yield broker.port
        assert broker.is_running(), broker.output()


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    return request.node.originalname


# -- delivery --


@pytest.mark.parametrize("subscribed", [0, 1, 2])
@pytest.mark.parametrize("published", [0, 1, 2])
def test_messages_arrive_at_the_lower_of_both_qos(port: int, topic: str, published: int, subscribed: int):
    with subscriber(port, "s", (topic, subscribed)) as receiver, client(port, "p") as sender:
        sender.send(publish(topic, b"hello", published, 77))
        if published:
            sender.expect((puback if published == 1 else pubrec)(77))
        qos = min(published, subscribed)
        assert receiver.messages(1) == [Message(topic, b"hello", qos, 1 if qos else 0)]


def test_packet_identifiers_of_a_session_count_from_one(port: int, topic: str):
    with subscriber(port, "s", (topic, 1)) as receiver, client(port, "p") as sender:
        for number in range(1, 5):
            sender.send(publish(topic, b"", 1, 1000 + number))
            assert receiver.messages(1)[0].packet_id == number
            receiver.send(puback(number))


def test_qos_2_is_delivered_once_whatever_is_sent_twice(port: int, topic: str):
    with subscriber(port, "s", (topic, 2)) as receiver, client(port, "p") as sender:
        for dup in (False, True, True):
            sender.send(publish(topic, b"once", 2, 5, dup=dup))
            sender.expect(pubrec(5))
        sender.send(pubrel(5) + pubrel(5))
        sender.expect(pubcomp(5), pubcomp(5))
        assert receiver.messages(1) == [Message(topic, b"once", 2, 1)]
        receiver.send(pubrec(1) + pubrec(1))
        receiver.expect(pubrel(1), pubrel(1))
        receiver.send(pubcomp(1))
        receiver.expect_silence()
        sender.send(publish(topic, b"again", 2, 5))
        assert receiver.messages(1) == [Message(topic, b"again", 2, 2)]


@pytest.mark.parametrize("qos", [0, 1])
def test_overlapping_subscriptions_get_one_copy_at_the_highest_qos(port: int, topic: str, qos: int):
    filters = ((topic + "/#", 0), (topic + "/+", 2), (topic + "/a", 1))
    with subscriber(port, "s", *filters) as receiver, client(port, "p") as sender:
        sender.send(publish(topic + "/a", b"x", qos, 1))
        assert receiver.messages(1)[0].qos == qos
        assert not [data for data in receiver.until_ping() if data[0] >> 4 == 3]


def test_a_subscription_again_replaces_the_first(port: int, topic: str):
    with subscriber(port, "s", (topic, 1)) as receiver, client(port, "p") as sender:
        receiver.send(subscribe(2, (topic, 0)))
        receiver.expect(b"\x90\x03\x00\x02\x00")
        sender.send(publish(topic, b"x", 1, 1))
        assert receiver.messages(1) == [Message(topic, b"x")]
        receiver.expect_silence()


def test_after_unsubscribe_nothing_comes(port: int, topic: str):
    with subscriber(port, "s", (topic, 0), (topic + "/b", 0)) as receiver, client(port, "p") as sender:
        receiver.send(unsubscribe(9, topic, "never/subscribed"))
        receiver.expect(b"\xb0\x02\x00\x09")
        sender.send(publish(topic, b"x") + publish(topic + "/b", b"y"))
        assert receiver.messages(1) == [Message(topic + "/b", b"y")]


def test_many_topics_in_one_burst_arrive_in_order(port: int, topic: str):
    # More topics than the broker remembers the receivers of, and receivers that want only some of them.
    with (
        subscriber(port, "all", (topic + "/#", 0)) as everything,
        subscriber(port, "odd", (topic + "/1/#", 0)) as some,
        client(port, "p") as sender,
    ):
        topics = [f"{topic}/{number % 2}/{number % 25}" for number in range(200)]
        sender.send(b"".join(publish(each, b"%d" % number) for number, each in enumerate(topics)))
        expected = [Message(each, b"%d" % number) for number, each in enumerate(topics)]
        assert everything.messages(200) == expected
        assert some.messages(100) == expected[1::2]


def test_order_is_kept_while_qos_is_mixed_in_one_burst(port: int, topic: str):
    with subscriber(port, "s", (topic, 1)) as receiver, client(port, "p") as sender:
        sender.send(b"".join(publish(topic, b"%d" % n, n % 2, n) for n in range(30)))
        received = []
        while len(received) < 30:
            received += receiver.messages(1)
            if received[-1].qos:
                receiver.send(puback(received[-1].packet_id))
        for qos in (0, 1):
            assert [int(m.payload) for m in received if m.qos == qos] == list(range(qos, 30, 2))


def test_a_client_may_hear_itself(port: int, topic: str):
    with subscriber(port, "s", (topic, 0)) as wire:
        wire.send(publish(topic, b"me"))
        assert wire.messages(1) == [Message(topic, b"me")]


def test_nothing_is_echoed_to_a_bridge(port: int, topic: str):
    with subscriber(port, "b", (topic, 1), level=0x84) as bridge, subscriber(port, "s", (topic, 1)) as other:
        bridge.send(publish(topic, b"0") + publish(topic, b"1", 1, 3))
        bridge.expect(puback(3))
        assert {m.payload for m in other.messages(2)} == {b"0", b"1"}
        bridge.expect_silence()
        other.send(publish(topic, b"back"))
        assert bridge.messages(1) == [Message(topic, b"back")]
        # It is told what is retained, as nobody else is [MQTT-3.3.1-9], so that the other side can retain it too.
        other.send(publish(topic, b"kept", retain=True) + publish(topic, b"", retain=True))
        assert [m.retain for m in bridge.messages(2)] == [True, True]
        assert [m.retain for m in other.messages(3)] == [False, False, False]


# -- retained --


def test_retained_messages_come_with_the_subscription_and_are_replaced_and_deleted(port: int, topic: str):
    with client(port, "p") as sender:
        for payload, qos in ((b"old", 2), (b"new", 1)):
            sender.send(publish(topic, payload, qos, 1, retain=True))
            sender.receive()
        with subscriber(port, "s", (topic, 2)) as first:
            assert first.messages(1) == [Message(topic, b"new", 1, 1, retain=True)]
            sender.send(publish(topic, b"", retain=True))
            assert first.messages(1) == [Message(topic, b"")]  # to who is there already: not retained
        with subscriber(port, "s", (topic, 2)) as second:
            second.expect_silence()


def test_a_retained_message_is_not_marked_for_who_subscribed_before(port: int, topic: str):
    with subscriber(port, "s", (topic, 0)) as receiver, client(port, "p") as sender:
        sender.send(publish(topic, b"x", retain=True))
        assert receiver.messages(1) == [Message(topic, b"x")]
        receiver.send(subscribe(2, (topic, 0)))
        receiver.expect(b"\x90\x03\x00\x02\x00")
        assert receiver.messages(1) == [Message(topic, b"x", retain=True)]


def test_more_retained_messages_than_a_queue_takes_all_come(interpreter: str):
    with start(interpreter, max_queued_messages=20) as broker, client(broker.port, "p") as sender:
        for number in range(40):
            sender.send(publish(f"r/{number}", b"%d" % number, 0, retain=True))
        sender.expect_silence()
        with subscriber(broker.port, "s", ("r/#", 0)) as receiver:
            assert sorted(int(m.payload) for m in receiver.messages(40)) == list(range(40))


# -- sessions --


def test_an_absent_session_gets_its_messages_in_order_and_a_clean_one_none(port: int, topic: str):
    subscriber(port, "kept", (topic, 1), clean=False).leave()
    subscriber(port, "lost", (topic, 1)).leave()
    with client(port, "p") as sender:
        for number in range(30):
            sender.send(publish(topic, b"%d" % number, 1, number + 1))
            sender.expect(puback(number + 1))
        sender.send(publish(topic, b"QoS 0 is not kept"))
        sender.expect_silence()
    with Wire(port, connect("kept", clean=False)) as back:
        back.expect(CONNACK_PRESENT)
        for number in range(30):
            assert back.messages(1) == [Message(topic, b"%d" % number, 1, number + 1)]
            back.send(puback(number + 1))
        back.expect_silence()
    with Wire(port, connect("lost", clean=False)) as other:
        other.expect(CONNACK_NEW)


def test_unacknowledged_messages_are_resent_with_dup_and_the_same_packet_identifier(port: int, topic: str):
    first = subscriber(port, topic, (topic, 2), clean=False)
    with client(port, "p") as sender:
        sender.send(b"".join(publish(topic, b"%d" % n, 1 + n % 2, n) for n in range(1, 7)))
        sent = first.messages(6)
        first.send(puback(2) + pubrec(1))
        first.expect(pubrel(1))
        first.abort()
    for _ in range(2):
        with Wire(port, connect(topic, clean=False)) as back:
            back.expect(CONNACK_PRESENT)
            received = [back.receive() for _ in range(5)]
            assert pubrel(1) in received
            received.remove(pubrel(1))
            expected = [publish(topic, m.payload, m.qos, m.packet_id, dup=True) for m in sent[2:]]
            assert received == expected
            back.expect_silence()


def test_a_new_message_follows_those_resent(port: int, topic: str):
    subscriber(port, topic, (topic, 1), clean=False).leave()
    with client(port, "p") as sender:
        sender.send(publish(topic, b"1", 1, 1))
        sender.expect(puback(1))
        with Wire(port, connect(topic, clean=False)) as back:
            back.expect(CONNACK_PRESENT)
            assert back.messages(1) == [Message(topic, b"1", 1, 1)]
            back.leave()
        sender.send(publish(topic, b"2", 1, 2))
        sender.expect(puback(2))
    with Wire(port, connect(topic, clean=False)) as back:
        back.expect(CONNACK_PRESENT)
        assert back.messages(2) == [Message(topic, b"1", 1, 1, dup=True), Message(topic, b"2", 1, 2)]


def test_qos_2_from_a_client_is_delivered_once_over_reconnects(port: int, topic: str):
    with subscriber(port, "s", (topic, 2)) as receiver:
        for _ in range(3):
            with client(port, "p", clean=False) as sender:
                sender.send(publish(topic, b"once", 2, 9, dup=True))
                sender.expect(pubrec(9))
        with client(port, "p", clean=False) as sender:
            sender.send(pubrel(9))
            sender.expect(pubcomp(9))
        assert receiver.messages(1) == [Message(topic, b"once", 2, 1)]
        receiver.expect_silence()


def test_a_clean_connect_ends_the_session_before(port: int, topic: str):
    subscriber(port, topic, (topic, 1), clean=False).leave()
    client(port, topic, clean=True).leave()
    with client(port, "p") as sender:
        sender.send(publish(topic, b"x", 1, 1))
        sender.expect(puback(1))
    with Wire(port, connect(topic, clean=False)) as back:
        back.expect(CONNACK_NEW)
        back.expect_silence()


def test_no_more_than_the_window_is_in_flight(interpreter: str):
    with (
        start(interpreter, max_inflight=3) as broker,
        client(broker.port, "p") as sender,
        subscriber(broker.port, "s", ("t", 1)) as receiver,
    ):
        sender.send(b"".join(publish("t", b"%d" % n, 1, n) for n in range(1, 6)))
        assert [m.packet_id for m in receiver.messages(3)] == [1, 2, 3]
        receiver.send(puback(2))
        assert [m.packet_id for m in receiver.messages(1)] == [4]


def test_pingresp_follows_what_was_queued(port: int, topic: str):
    subscriber(port, topic, (topic, 1), clean=False).leave()
    with client(port, "p") as sender:
        for number in range(1, 51):
            sender.send(publish(topic, b"%d" % number, 1, number))
            sender.expect(puback(number))
    # As a sleeping board does: everything in one write. 50 messages are more than one window.
    with Wire(port, connect(topic, clean=False) + publish("up", b"", 1, 1) + PINGREQ) as back:
        received = []
        while not received or received[-1] != PINGRESP:
            received.append(back.receive())
            if received[-1][0] >> 4 == 3:
                back.send(puback(int.from_bytes(received[-1][4 + len(topic) :][:2], "big")))
        assert received[0] == CONNACK_PRESENT and puback(1) in received
        assert sum(data[0] >> 4 == 3 for data in received) == 50


def test_a_client_identifier_is_given_when_it_is_empty(port: int):
    with client(port, "") as one, client(port, "") as other:
        one.expect_silence()
        other.expect_silence()


# -- wills, takeover, deadlines --


def test_the_will_is_published_when_the_connection_is_lost(port: int, topic: str):
    with subscriber(port, "s", (topic, 1)) as receiver:
        client(port, "w", will=(topic, b"gone", 1, True)).abort()
        assert receiver.messages(1) == [Message(topic, b"gone", 1, 1)]
    with subscriber(port, "s", (topic, 0)) as later:
        assert later.messages(1) == [Message(topic, b"gone", retain=True)]


def test_the_will_is_published_after_a_malformed_packet(port: int, topic: str):
    with subscriber(port, "s", (topic, 0)) as receiver, client(port, "w", will=(topic, b"bad", 0, False)) as wire:
        wire.send(b"\xff\x00")
        assert receiver.messages(1) == [Message(topic, b"bad")]


def test_disconnect_discards_the_will(port: int, topic: str):
    with subscriber(port, "s", (topic, 0)) as receiver:
        client(port, "w", will=(topic, b"gone", 0, False)).leave()
        receiver.expect_silence()


def test_a_second_connection_takes_the_identifier_over_and_the_will_of_the_first_goes_out(port: int, topic: str):
    with subscriber(port, "s", (topic, 0)) as receiver:
        first = client(port, "w", will=(topic, b"first", 0, False))
        with client(port, "w", will=(topic, b"second", 0, False)) as second:
            assert first.expect_close() == b""
            assert receiver.messages(1) == [Message(topic, b"first")]
            second.expect_silence()
        assert receiver.messages(1) == [Message(topic, b"second")]


def test_takeover_keeps_the_session_and_resends(port: int, topic: str):
    first = subscriber(port, topic, (topic, 1), clean=False)
    with client(port, "p") as sender:
        sender.send(publish(topic, b"x", 1, 1))
        first.messages(1)
        with Wire(port, connect(topic, clean=False)) as second:
            second.expect(CONNACK_PRESENT, publish(topic, b"x", 1, 1, dup=True))
    first.expect_close()


@pytest.mark.parametrize("script", ["broker_program.py", "broker_wrapping_clock.py"])
def test_silence_of_one_and_a_half_keep_alives_ends_a_connection(interpreter: str, script: str):
    # The second script's clock wraps around in the middle of it.
    with start(interpreter, script) as broker:
        begin = time.monotonic()
        with (
            client(broker.port, "silent", keep_alive_s=1) as silent,
            client(broker.port, "patient", keep_alive_s=60) as patient,
            client(broker.port, "pings", keep_alive_s=1) as pings,
        ):
            silent.socket.settimeout(0.5)
            while time.monotonic() < begin + 10:
                pings.expect_silence()
                with contextlib.suppress(TimeoutError):
                    assert silent.expect_close() == b""
                    break
            took_s = time.monotonic() - begin
            pings.expect_silence()
            patient.expect_silence()
        assert 1.5 <= took_s < 8, took_s  # once a second it looks; the rest is for a busy machine
        broker.wait_for_output("closed silent: ")


def test_who_does_not_send_connect_is_closed(port: int):
    with Wire(port) as wire:
        assert wire.expect_close() == b""


# -- who may connect --


@pytest.mark.parametrize(("user", "password", "code"), [
    ("kitchen", b"secret", 0), ("kitchen", b"wrong", 5), ("kitchen", None, 5), (None, None, 5),
])
def test_the_auth_hook_decides(interpreter: str, user: str | None, password: bytes | None, code: int):
    hello = connect("c", user=user, password=password)
    with start(interpreter, user="kitchen") as broker, Wire(broker.port, hello) as wire:
        wire.expect(bytes((0x20, 2, 0, code)))
        if code:
            assert wire.expect_close() == b""


@pytest.mark.parametrize("level", [6, 127])
def test_another_protocol_level_is_told_so(port: int, level: int):
    with Wire(port, connect("c", level=level)) as wire:
        assert wire.expect_close() == b"\x20\x02\x00\x01"


# -- the hosting program, $SYS, the command --


def test_the_hosting_program_hears_and_publishes(port: int):
    with subscriber(port, "s", ("echo/#", 2)) as receiver, client(port, "p") as sender:
        for qos in range(3):
            sender.send(publish("ask/x", b"%d" % qos, qos, 1))
            assert receiver.messages(1) == [Message("echo/ask/x", b"%d" % qos, 1, qos + 1)]
            receiver.send(puback(qos + 1))


def test_counters_are_published_to_their_subscribers(port: int):
    with client(port) as wire:
        before = sys_value(port, "messages/received")
        wire.send(publish("counted", b"", 1, 1))
        wire.receive()
        assert sys_value(port, "messages/received") == before + 1
        assert sys_value(port, "clients/connected") == 2
        wire.send(subscribe(1, ("#", 0)))
        wire.receive()
        assert not [m for m in wire.until_ping() if b"$SYS" in m]  # [MQTT-4.7.2-1]


def test_counters_are_published_again_and_again(interpreter: str):
    with start(interpreter, sys_interval_s=1) as broker, client(broker.port) as wire:
        wire.send(subscribe(1, ("$SYS/broker/uptime", 0)))
        wire.receive()
        assert [int(m.payload) for m in wire.messages(3)] == [0, 1, 2]
