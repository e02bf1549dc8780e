"""What the board's broker has beyond 3.1.1's letter: shared subscriptions, the hook `allow`, counters by cause, 5.0.

5.0 itself is shown by tests/spec and by Paho in tests/interop; here is what those don't know.
"""

import shutil
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import mqtt_wire
from mqtt_wire import (
    CONNACK_PRESENT,
    INTERPRETERS,
    Message,
    Wire,
    client,
    connect,
    packet,
    puback,
    publish,
    pubrec,
    start,
    subscribe,
    subscriber,
    sys_value,
    text,
)

from brokers import LISTENING, ROOT, RunningBroker, micropython


@pytest.fixture(params=INTERPRETERS)
def interpreter(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=INTERPRETERS, scope="module")
def port(request: pytest.FixtureRequest):
    with start(request.param, max_clients=12) as broker:
        yield broker.port
        assert broker.is_running(), broker.output()


# -- shared subscriptions --


def taken(wire: Wire) -> list[bytes]:
    return [mqtt_wire.message(data).payload for data in wire.until_ping() if data[0] >> 4 == 3]


def test_each_shared_message_goes_to_one_member_in_turn_and_to_everyone_else(port: int):
    with (
        subscriber(port, "m1", ("$share/crew/s/#", 1)) as one,
        subscriber(port, "m2", ("$share/crew/s/#", 1)) as two,
        subscriber(port, "m3", ("$share/other/s/#", 1), ("s/#", 0)) as three,
        client(port, "p") as sender,
    ):
        for number in range(8):
            sender.send(publish("s/t", b"%d" % number, 1, number + 1))
            sender.expect(puback(number + 1))
        assert sorted(taken(one) + taken(two)) == [b"%d" % number for number in range(8)]
        # Its own group, and an ordinary subscription beside it.
        assert len(taken(three)) == 16


def test_a_busy_member_is_passed_over_and_an_absent_one_waited_for_only_alone(port: int):
    busy = subscriber(port, "busy", ("$share/work/w", 1), clean=False)
    with client(port, "p") as sender:
        for number in range(3):
            sender.send(publish("w", b"%d" % number, 1, 1))
            sender.expect(puback(1))
        assert len(busy.messages(3)) == 3  # unacknowledged
        with subscriber(port, "free", ("$share/work/w", 1)) as free:
            for number in range(1, 4):
                sender.send(publish("w", b"free", 1, 1))
                sender.expect(puback(1))
                assert free.messages(1)[0].payload == b"free"
                free.send(puback(number))
            busy.abort()
            sender.send(publish("w", b"still", 1, 1))
            sender.expect(puback(1))
            assert free.messages(1)[0].payload == b"still"
            free.send(puback(4))  # else it would go to the other, as below
            free.leave()
        sender.send(publish("w", b"alone", 1, 1))
        sender.expect(puback(1))
    with Wire(port, connect("busy", clean=False)) as back:
        back.expect(CONNACK_PRESENT)
        assert [m.payload for m in back.messages(4)] == [b"0", b"1", b"2", b"alone"]


def test_what_a_member_did_not_take_goes_to_another_when_its_session_ends(port: int):
    leaving = subscriber(port, "leaving", ("$share/heirs/h", 2))
    with client(port, "p") as sender:
        sender.send(publish("h", b"qos 1", 1, 1) + publish("h", b"qos 2", 2, 2))
        sender.expect(puback(1), pubrec(2))
        leaving.messages(2)
        with subscriber(port, "heir", ("$share/heirs/h", 1)) as heir:
            leaving.abort()
            assert heir.messages(1)[0].payload == b"qos 1"
            heir.expect_silence()  # [MQTT-4.8.2-5]


def test_shared_subscriptions_survive_a_kill(tmp_path: Path):
    with start("micropython", store=tmp_path / "journal") as broker:
        subscriber(broker.port, "m", ("$share/g/t", 1), clean=False).leave()
        broker.kill()
    with start("micropython", store=tmp_path / "journal") as broker, client(broker.port, "p") as sender:
        sender.send(publish("t", b"x", 1, 1))
        sender.expect(puback(1))
        with Wire(broker.port, connect("m", clean=False)) as back:
            back.expect(CONNACK_PRESENT)
            assert back.messages(1)[0].payload == b"x"


# -- allow --


def test_what_is_not_allowed_is_not_done(interpreter: str):
    # Everyone may write below "own/NAME", and read what doesn't begin with "secret".
    with start(interpreter, allow=1) as broker:
        port = broker.port
        with client(port, "a") as a, subscriber(port, "b", ("#", 1)) as b:
            a.send(publish("own/a", b"1", 1, 1) + publish("own/b", b"no", 1, 2) + publish("own/b", b"no", 0))
            a.expect(puback(1), puback(2))  # 3.1.1 has no other answer [MQTT-3.3.5-2]
            assert b.messages(1) == [Message("own/a", b"1", 1, 1)]
            b.expect_silence()
            a.send(publish("secret/a", b"2", 1, 3, retain=True))
            a.expect(puback(3))
            b.expect_silence()  # its filter matches, but the topic may not be read
            b.send(subscribe(2, ("secret/#", 1), ("+/a", 1)))
            b.expect(packet(0x90, b"\x00\x02\x80\x01"))
            b.expect_silence()  # nor when it is retained
        with Wire(port, connect("c", will=("own/d", b"", 0, False))) as refused:
            assert refused.expect_close() == b"\x20\x02\x00\x05"
        assert sys_value(port, "messages/dropped/denied") == 2
        assert sys_value(port, "messages/dropped") == 2


def test_only_the_broker_publishes_below_sys(port: int):
    with subscriber(port, "s", ("$SYS/mine", 0)) as watcher, client(port, "p") as sender:
        sender.send(publish("$SYS/mine", b"x", 1, 1) + publish("$SYS/mine", b"x"))
        sender.expect(puback(1))
        with Wire(port, connect("bridge", will=("$SYS/mine", b"x", 0, True))) as bridge:
            assert bridge.receive() == b"\x20\x02\x00\x00"  # a bridge tells of itself there: let in all the same
        with Wire(port, connect("bridge")) as again:
            again.receive()  # by now the first connection's end has been seen
        assert not [data for data in watcher.until_ping() if data[0] >> 4 == 3 and b"mine" in data]


# -- 5.0 --


def connect_5(client_id: str, properties: bytes = b"", clean: bool = True) -> bytes:
    flags = bytes((5, 2 if clean else 0, 0, 0, len(properties)))
    return packet(0x10, text("MQTT") + flags + properties + text(client_id))


def test_a_client_of_5_0_and_one_of_3_1_1_understand_each_other(port: int):
    with subscriber(port, "old", ("v/#", 1)) as old, Wire(port, connect_5("new")) as new:
        answer = new.receive()
        assert answer[0] == 0x20 and answer[2:4] == b"\x00\x00"
        new.send(packet(0x82, b"\x00\x01\x00" + text("v/#") + b"\x01"))
        new.expect(packet(0x90, b"\x00\x01\x00\x01"))
        properties = b"\x03" + text("text/plain") + b"\x08" + text("answers") + b"\x09" + text(b"\x01\x02")
        data = packet(0x32, text("v/x") + b"\x00\x01" + bytes((len(properties),)) + properties + b"payload")
        new.send(data)
        new.expect(puback(1), data)  # the same packet identifier, by chance: the first of each
        assert old.messages(1) == [Message("v/x", b"payload", 1, 1)]
        old.send(publish("v/y", b"from 3.1.1"))
        new.expect(packet(0x30, text("v/y") + b"\x00from 3.1.1"))


def test_will_delay_and_expiry_of_messages_and_sessions_are_right_across_the_clock_s_wrap_around():
    def seconds(name: int, value: int) -> bytes:
        return bytes((name,)) + value.to_bytes(4, "big")

    with start("micropython", "broker_wrapping_clock.py") as broker:  # it wraps one second after its start
        for name, expiry_s in (("brief", 2), ("lasting", 1000)):
            with Wire(broker.port, connect_5(name, seconds(0x11, expiry_s))) as wire:
                wire.receive()
                wire.send(packet(0x82, b"\x00\x01\x00" + text("t") + b"\x01"))
                wire.receive()
        with Wire(broker.port, connect_5("p")) as sender:
            sender.receive()
            for packet_id, expiry_s in ((1, 2), (2, 1000)):
                properties = b"\x05" + seconds(0x02, expiry_s)
                sender.send(packet(0x32, text("t") + bytes((0, packet_id)) + properties + b"%d" % expiry_s))
            sender.expect(puback(1), puback(2))
        with subscriber(broker.port, "s", ("wills", 0)) as watcher:
            begin = time.monotonic()
            will = b"\x05" + seconds(0x18, 4) + text("wills") + text(b"gone")
            wire = Wire(broker.port, packet(0x10, text("MQTT") + b"\x05\x06\x00\x00\x05" + seconds(0x11, 1000)
                                            + text("w") + will))
            wire.receive()
            wire.abort()
            watcher.expect_silence()
            assert watcher.messages(1)[0].payload == b"gone"
            assert 4 <= time.monotonic() - begin < 15  # once a second it looks; the rest is for a busy machine
        for name, is_present in (("brief", 0), ("lasting", 1)):
            with Wire(broker.port, connect_5(name, seconds(0x11, 1000), clean=False)) as wire:
                assert wire.receive()[2] == is_present
                received = [data for data in wire.until_ping() if data[0] >> 4 == 3]
                if is_present:  # ... but the message of two seconds
                    assert len(received) == 1 and received[0].endswith(b"1000")
                    assert 900 < int.from_bytes(received[0][9:13], "big") < 1000
                else:
                    assert not received
        assert sys_value(broker.port, "messages/dropped/expired") == 1


def test_without_its_file_clients_of_5_0_are_told_to_speak_3_1_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = mqtt_wire.compiled()
    assert folder
    shutil.copy(Path(folder) / "midge_broker.mpy", tmp_path)
    monkeypatch.setattr(mqtt_wire, "compiled", lambda: str(tmp_path))
    with start("micropython") as broker:
        with Wire(broker.port, connect_5("new")) as new:
            assert new.expect_close() == b"\x20\x02\x00\x01"  # [MQTT-3.1.2-2]
        with client(broker.port) as wire:
            wire.send(subscribe(1, ("$share/g/t", 1), ("t", 1)))
            wire.expect(packet(0x90, b"\x00\x01\x80\x01"))


# -- memory that the hosting program takes --


def test_a_hosting_program_that_takes_all_memory_costs_messages_but_not_the_broker():
    with start("micropython", "broker_hungry_host.py") as broker:
        port = broker.port
        subscriber(port, "absent", ("t", 1), clean=False).leave()
        sent = 0
        with subscriber(port, "present", ("t", 1)) as present, client(port, "p") as sender:
            sender.send(publish("take", b""))
            sender.expect_silence()
            for _ in range(400):
                if not sent % 50:
                    Wire(port, connect(f"more{sent}")).abort()
                sender.send(publish("t", bytes(600), 1, 1))
                sender.expect(puback(1))
                present.send(puback(present.messages(1)[0].packet_id))
                sent += 1
        assert broker.is_running()
        with client(port) as wire:
            wire.send(publish("give", b""))
            wire.expect_silence()
        lost = sys_value(port, "messages/dropped/memory") + sys_value(port, "messages/dropped/full")
        with Wire(port, connect("absent", clean=False)) as back:
            back.expect(CONNACK_PRESENT)
            received = 0
            back.send(mqtt_wire.PINGREQ)
            while (data := back.receive()) != mqtt_wire.PINGRESP:
                received += 1
                back.send(puback(mqtt_wire.message(data).packet_id))
        assert received and lost >= sent - received
        assert "Traceback" not in broker.output()


# -- the example --


def test_the_hub_obeys_and_says_so(tmp_path: Path):
    folder = mqtt_wire.compiled()
    assert folder
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    shutil.copy(ROOT / "device" / "examples" / "hub.py", tmp_path)  # beside the broker, as on a board
    command = [micropython(), "-X", f"heapsize={mqtt_wire.HEAP}", tmp_path / "hub.py", "hub", "secret", "0"]
    with (
        RunningBroker("hub", command, LISTENING) as hub,
        subscriber(hub.port, "s", ("hub/#", 1)) as watcher,
    ):
        assert {(m.topic, m.payload, m.retain) for m in watcher.messages(2)} == {
            ("hub/status", b"online", True), ("hub/state/led", b"off", True)}
        watcher.send(publish("hub/set/led", b"on", 1, 1))
        received = [watcher.receive() for _ in range(3)]
        assert puback(1) in received
        assert {mqtt_wire.message(data)[:2] for data in received if data[0] >> 4 == 3} == {
            ("hub/set/led", b"on"), ("hub/state/led", b"on")}
        hub.wait_for_output("LED on")
