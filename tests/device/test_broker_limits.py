"""The board's broker when it is full, flooded or left alone: what it refuses, drops and counts."""

import contextlib
import sys
import threading
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
    Closed,
    Wire,
    client,
    connect,
    message,
    packet,
    puback,
    publish,
    start,
    subscribe,
    subscriber,
    sys_value,
)


@pytest.fixture(params=INTERPRETERS)
def interpreter(request: pytest.FixtureRequest) -> str:
    return request.param


def numbers(wire: Wire) -> list[int]:
    """The payloads of what is waiting for the client, acknowledged as they come."""
    received = []
    wire.send(PINGREQ)
    while (data := wire.receive()) != PINGRESP:
        received.append(int(message(data).payload))
        wire.send(puback(message(data).packet_id))
    return received


# -- queues --


def test_past_max_queued_messages_the_oldest_go_and_are_counted(interpreter: str):
    with start(interpreter, max_queued_messages=20) as broker, client(broker.port, "p") as sender:
        subscriber(broker.port, "s", ("t", 1), clean=False).leave()
        for number in range(50):
            sender.send(publish("t", b"%d" % number, 1, number + 1))
            sender.expect(puback(number + 1))
        assert sys_value(broker.port, "messages/dropped") == 30
        with Wire(broker.port, connect("s", clean=False)) as back:
            back.expect(CONNACK_PRESENT)
            assert numbers(back) == list(range(30, 50))


def test_past_max_session_bytes_the_oldest_go_and_small_ones_of_others_stay(interpreter: str):
    with start(interpreter, max_session_bytes=2000) as broker, client(broker.port, "p") as sender:
        for name in ("large", "small"):
            subscriber(broker.port, name, (name, 1), clean=False).leave()
        for number in range(20):
            sender.send(publish("large", b"%0300d" % number, 1, 1) + publish("small", b"%d" % number, 1, 2))
            sender.expect(puback(1), puback(2))
        with Wire(broker.port, connect("large", clean=False)) as back:
            back.expect(CONNACK_PRESENT)
            kept = numbers(back)
            assert kept == list(range(20 - len(kept), 20)) and 4 <= len(kept) <= 6
        with Wire(broker.port, connect("small", clean=False)) as back:
            back.expect(CONNACK_PRESENT)
            assert numbers(back) == list(range(20))


def test_a_few_large_messages_give_way_before_many_small_ones(interpreter: str):
    with start(interpreter, max_queued_bytes=8000) as broker, client(broker.port, "p") as sender:
        for name in ("few", "many"):
            subscriber(broker.port, name, (name, 1), clean=False).leave()
        for number in range(40):
            sender.send(publish("few", b"%01000d" % number, 1, 1) + publish("many", b"%d" % number, 1, 2))
            sender.expect(puback(1), puback(2))
        with Wire(broker.port, connect("many", clean=False)) as back:
            back.expect(CONNACK_PRESENT)
            assert numbers(back) == list(range(40))


def test_past_max_queued_bytes_the_longest_queue_pays(interpreter: str):
    with start(interpreter, max_queued_bytes=4000) as broker, client(broker.port, "p") as sender:
        subscriber(broker.port, "modest", ("modest", 1), clean=False).leave()
        subscriber(broker.port, "hog", ("hog", 1), clean=False).leave()
        sender.send(publish("modest", b"1", 1, 1))
        sender.expect(puback(1))
        for number in range(100):
            sender.send(publish("hog", b"%0100d" % number, 1, 2))
            sender.expect(puback(2))
        sender.send(publish("modest", b"2", 1, 3))
        sender.expect(puback(3))
        with Wire(broker.port, connect("modest", clean=False)) as back:
            back.expect(CONNACK_PRESENT)
            assert [m.payload for m in back.messages(2)] == [b"1", b"2"]
        with Wire(broker.port, connect("hog", clean=False)) as back:
            back.expect(CONNACK_PRESENT)
            kept = numbers(back)
            assert kept == list(range(100 - len(kept), 100)) and 15 <= len(kept) < 40
        assert sys_value(broker.port, "messages/dropped") > 60


def test_a_stuck_reader_costs_its_own_messages_only(interpreter: str):
    with (
        start(interpreter) as broker,
        client(broker.port, "p") as sender,
        subscriber(broker.port, "well", ("t", 1)) as well,
    ):
        stuck = Wire(broker.port, connect("stuck") + subscribe(1, ("t", 0)), receive_buffer_bytes=2048)
        stuck.expect(CONNACK_NEW, packet(0x90, b"\x00\x01\x00"))
        dropped = 0
        deadline = time.monotonic() + 20
        number = 0
        # Far more than the kernel buffers for the one that doesn't read.
        while not dropped:
            assert time.monotonic() < deadline
            for _ in range(1000):
                number += 1
                sender.send(publish("t", b"%01000d" % number, 1, number & 0xFF | 1))
                sender.expect(puback(number & 0xFF | 1))
                taken = well.messages(1)[0]
                assert int(taken.payload) == number
                well.send(puback(taken.packet_id))
            dropped = sys_value(broker.port, "messages/dropped")
        stuck.abort()


def test_a_burst_to_a_receiver_that_acknowledges_loses_nothing(interpreter: str):
    count = 3000
    with (
        start(interpreter) as broker,
        subscriber(broker.port, "s", ("t", 1)) as receiver,
        client(broker.port, "p") as sender,
    ):
        data = b"".join(publish("t", b"%d" % number, 1, number + 1) for number in range(count))
        sending = threading.Thread(target=sender.send, args=(data,))
        sending.start()
        for number in range(count):
            taken = receiver.messages(1)[0]
            assert int(taken.payload) == number
            receiver.send(puback(taken.packet_id))
        sending.join()
        sender.expect(*(puback(number + 1) for number in range(count)))


# -- sizes --


def test_a_packet_larger_than_the_maximum_ends_the_connection_as_soon_as_its_header_is_read(interpreter: str):
    with start(interpreter, max_packet=1000) as broker, client(broker.port, "good") as good:
        with client(broker.port, "large") as wire:
            wire.send(packet(0x30, bytes(998))[:3])  # 1001 bytes announced, none of the body sent
            assert wire.expect_close() == b""
        with subscriber(broker.port, "s", ("t", 1)) as receiver:
            data = publish("t", bytes(1000 - 3 - 3 - 2), 1, 1)
            assert len(data) == 1000
            good.send(data)
            good.expect(puback(1))
            receiver.expect(data)
        broker.wait_for_output("packet too large")


def test_a_retained_message_that_does_not_fit_is_delivered_but_not_kept(interpreter: str):
    with start(interpreter, max_retained_bytes=1000) as broker, subscriber(broker.port, "s", ("r/#", 0)) as receiver:
        for number in range(10):
            receiver.send(publish(f"r/{number}", bytes(100), 0, retain=True))
        assert len(receiver.messages(10)) == 10
        refused = sys_value(broker.port, "retained/refused")
        with subscriber(broker.port, "later", ("r/#", 0)) as later:
            assert len(later.messages(10 - refused)) == 10 - refused
            later.expect_silence()
        assert 0 < refused < 10
        receiver.send(publish("r/0", b"", 0, retain=True) + publish("r/9", bytes(100), 0, retain=True))
        assert len(receiver.messages(2)) == 2
        assert sys_value(broker.port, "retained/refused") == refused


def test_subscriptions_past_their_limit_are_refused_in_suback(interpreter: str):
    with start(interpreter, max_subscription_bytes=200) as broker, client(broker.port) as wire:
        wire.send(subscribe(1, *((f"filter/number/{n}", 1) for n in range(10))))
        codes = wire.receive()[4:]
        assert codes.count(1) and codes.count(0x80) and sorted(codes) == list(codes)
        wire.leave()
        assert sys_value(broker.port, "subscriptions/refused") == codes.count(0x80)


# -- connections --


def test_a_client_too_many_is_refused_and_a_takeover_is_not(interpreter: str):
    with start(interpreter, max_clients=3) as broker, contextlib.ExitStack() as stack:
        wires = [stack.enter_context(client(broker.port, f"c{n}")) for n in range(3)]
        with Wire(broker.port, connect("c3")) as more:
            assert more.expect_close() == b"\x20\x02\x00\x03"
        with client(broker.port, "c1") as again:
            assert wires[1].expect_close() == b""
            again.expect_silence()
        wires[0].expect_silence()


def test_when_all_sessions_are_taken_the_newcomer_is_refused_and_nobody_loses_his(interpreter: str):
    with start(interpreter, max_clients=3, max_sessions=3) as broker:
        for n in range(3):
            subscriber(broker.port, f"c{n}", ("t", 1), clean=False).leave()
        with Wire(broker.port, connect("c3", clean=False)) as wire:
            assert wire.expect_close() == b"\x20\x02\x00\x03"
        with Wire(broker.port, connect("c0", clean=False)) as wire:
            wire.expect(CONNACK_PRESENT)


def test_the_longest_absent_session_gives_way_once_it_has_expired(interpreter: str):
    with start(interpreter, max_clients=2, max_sessions=2, session_expiry_s=0) as broker:
        for n in range(4):
            subscriber(broker.port, f"c{n}", ("t", 1), clean=False).leave()
        with Wire(broker.port, connect("c0", clean=False)) as wire:
            wire.expect(CONNACK_NEW)


def test_connections_opened_and_abandoned_lock_nobody_out(interpreter: str):
    with start(interpreter) as broker:
        with client(broker.port, "good") as good:
            silent = [Wire(broker.port) for _ in range(100)]
            for n in range(100):
                Wire(broker.port, connect(f"gone{n}")[: n % 14]).abort()
                if n % 10 == 0:
                    good.expect_silence()
            with client(broker.port, "new") as new:
                new.expect_silence()
            good.expect_silence()
        for wire in silent:
            wire.abort()
        assert broker.is_running()


def test_who_sends_and_never_reads_is_closed(interpreter: str):
    with start(interpreter) as broker, client(broker.port, "good") as good:
        wire = Wire(broker.port, connect("rude"), receive_buffer_bytes=2048)
        data = b"".join(publish("t", b"", 1, 1) for _ in range(2000))
        with contextlib.suppress(ConnectionError):
            for _ in range(2000):
                wire.send(data)
        with contextlib.suppress(Closed):
            wire.expect_close()
        good.expect_silence()
        broker.wait_for_output("closed rude: ")


# -- memory --


# 128 kB of heap on this port are about 64 kB of a board of 32 bits.
@pytest.mark.parametrize(("clients", "heap"), [(8, "128k"), (16, "256k")])
def test_clients_that_all_subscribe_and_publish_at_qos_1_fit(clients: int, heap: str):
    rounds, payload = 60, bytes(60)
    with start("micropython", heap=heap, max_clients=clients) as broker, contextlib.ExitStack() as stack:
        wires = [stack.enter_context(subscriber(broker.port, f"c{n}", (f"to/{n}", 1))) for n in range(clients)]
        for number in range(rounds):
            # Each to the next, five at a time, before anyone reads.
            for n, wire in enumerate(wires):
                topic = f"to/{(n + 1) % clients}"
                wire.send(b"".join(publish(topic, b"%02d%02d" % (number, k) + payload, 1, k + 1) for k in range(5)))
            for wire in wires:
                received = [wire.receive() for _ in range(10)]
                messages = [message(data) for data in received if data[0] >> 4 == 3]
                assert [m.payload[:4] for m in messages] == [b"%02d%02d" % (number, k) for k in range(5)]
                assert [data for data in received if data[0] == 0x40] == [puback(k + 1) for k in range(5)]
                wire.send(b"".join(puback(m.packet_id) for m in messages))
        with subscriber(broker.port, "c0", ("$SYS/broker/messages/dropped", 0)) as watcher:
            assert int(watcher.messages(1)[0].payload) == 0


def test_the_heap_is_as_before_when_all_have_left():
    with start("micropython") as broker:
        port = broker.port

        def visit(clients: int) -> None:
            with contextlib.ExitStack() as stack:
                wires = [stack.enter_context(subscriber(port, f"c{n}", ("t/#", 1))) for n in range(clients)]
                for number in range(1, 16):
                    wires[0].send(publish(f"t/{number}", bytes(64), 1, number))
                for wire in wires:
                    with contextlib.suppress(Closed):
                        wire.until_ping()

        def free() -> int:
            # The value is taken while a client with its subscription is there; both times the same.
            return sys_value(port, "heap/free")

        visit(7)
        before = free()
        for _ in range(5):
            visit(7)
        # The collector is conservative: what an old value on its stack points to goes with a later collection.
        assert any(free() >= before - 1024 for _ in range(8)), broker.output()


# One at a time each is a wake-up of its own; of a burst, some packets are cut in two by a read and kept meanwhile.
@pytest.mark.parametrize(("burst", "bytes_each"), [(1, 8), (100, 20)])
def test_forwarding_at_qos_0_allocates_nothing(burst: int, bytes_each: float):
    with start("micropython", "broker_allocations.py") as broker, subscriber(broker.port, "s", ("t", 0)) as receiver:
        sender = client(broker.port, "p")
        data = publish("t", bytes(64)) * burst
        per_message = []
        for _ in range(3):
            for _ in range(1000 // burst):
                sender.send(data)
                receiver.messages(burst)
            sender.send(publish("measure", b"") + PINGREQ)
            sender.expect(PINGRESP)
            per_message.append(broker.wait_for_output(rf"(?m)^allocation {len(per_message) + 1}: (\S+)$").group(1))
        # The least that can be allocated is 32 bytes. What there is belongs to the tick that comes once a second.
        assert min(map(float, per_message)) < bytes_each, per_message


def test_at_qos_1_what_is_allocated_is_the_message():
    with (
        start("micropython", "broker_allocations.py", heap="8m") as broker,  # the collector is off
        subscriber(broker.port, "s", ("t", 1)) as receiver,
    ):
        sender = client(broker.port, "p")
        per_message = []
        for _ in range(3):
            for _ in range(500):
                sender.send(publish("t", bytes(64), 1, 7))
                receiver.send(puback(receiver.messages(1)[0].packet_id))
                sender.expect(puback(7))
            sender.send(publish("measure", b"") + PINGREQ)
            sender.expect(PINGRESP)
            per_message.append(broker.wait_for_output(rf"(?m)^allocation {len(per_message) + 1}: (\S+)$").group(1))
        # Its 69 bytes are 96 in blocks of 32, the object 32 and the slice that cuts it out 32.
        assert min(map(float, per_message)) <= 161, per_message


# -- beside the hosting program --


def test_streams_and_timeouts_of_the_hosting_program_work_beside_the_broker(interpreter: str):
    with (
        start(interpreter, "broker_beside_streams.py") as broker,
        subscriber(broker.port, "s", ("t", 1), ("done", 0)) as wire,
    ):
        wire.send(publish("start", b""))
        turns = 0
        while True:
            wire.send(publish("t", b"%d" % turns, 1, 1))
            received = [wire.receive()]
            while received[-1] != puback(1):
                received.append(wire.receive())
            messages = [message(data) for data in received[:-1]]
            wire.send(b"".join(puback(each.packet_id) for each in messages if each.qos))
            turns += 1
            if any(each.topic == "done" for each in messages):
                break
        broker.wait_for_output(r"waits cut short: \[20, 20, 20, 20\] lines served: 80")
        assert turns > 20
