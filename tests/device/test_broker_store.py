"""The board's broker with a journal on flash: what survives an end without warning, and what of a damaged journal."""

import shutil
import signal
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
    message,
    packet,
    puback,
    pubcomp,
    publish,
    pubrec,
    pubrel,
    run_on_board,
    start,
    subscribe,
    subscriber,
    sys_value,
    text,
    unsubscribe,
)


@pytest.fixture(params=INTERPRETERS)
def interpreter(request: pytest.FixtureRequest) -> str:
    return request.param


def back(port: int, client_id: str, answer: bytes = CONNACK_PRESENT) -> Wire:
    wire = Wire(port, connect(client_id, clean=False))
    wire.expect(answer)
    return wire


def test_sessions_subscriptions_messages_and_retained_survive_a_kill(interpreter: str, tmp_path: Path):
    store = tmp_path / "journal"
    with start(interpreter, store=store) as broker:
        for name, qos in (("one", 1), ("two", 2)):
            subscriber(broker.port, name, ("t/#", qos), clean=False).leave()
        with client(broker.port, "p") as sender:
            sender.send(publish("t/a", b"1", 1, 1) + publish("t/b", b"2", 2, 2, retain=True) + pubrel(2))
            sender.expect(puback(1), pubrec(2), pubcomp(2))
        broker.kill()
    with start(interpreter, store=store) as broker:
        with back(broker.port, "one") as one:
            assert one.messages(2) == [Message("t/a", b"1", 1, 1, dup=True), Message("t/b", b"2", 1, 2, dup=True)]
            one.send(puback(1))
        with back(broker.port, "two") as two:
            assert two.messages(2) == [Message("t/a", b"1", 1, 1, dup=True), Message("t/b", b"2", 2, 2, dup=True)]
        with subscriber(broker.port, "new", ("t/#", 0)) as new, client(broker.port, "p") as sender:
            assert new.messages(1) == [Message("t/b", b"2", retain=True)]
            sender.send(publish("t/c", b"3", 1, 1))
            sender.expect(puback(1))
        broker.kill()
    with start(interpreter, store=store) as broker, back(broker.port, "two") as two:
        assert [m.payload for m in two.messages(3)] == [b"1", b"2", b"3"]


def test_what_was_undone_before_the_kill_stays_undone(interpreter: str, tmp_path: Path):
    store = tmp_path / "journal"
    with start(interpreter, store=store) as broker:
        with subscriber(broker.port, "s", ("kept", 1), ("left", 1), clean=False) as wire:
            wire.send(unsubscribe(2, "left"))
            wire.receive()
        subscriber(broker.port, "gone", ("kept", 1), clean=False).leave()
        client(broker.port, "gone").leave()
        with client(broker.port, "p") as sender:
            sender.send(publish("kept", b"x", 1, 1, retain=True) + publish("kept", b"", 1, 2, retain=True))
            sender.expect(puback(1), puback(2))
        broker.kill()
    with start(interpreter, store=store) as broker:
        back(broker.port, "gone", CONNACK_NEW).abort()
        with client(broker.port, "p") as sender, back(broker.port, "s") as wire:
            assert [m.payload for m in wire.messages(2)] == [b"x", b""]
            wire.send(puback(1) + puback(2))
            sender.send(publish("left", b"x", 1, 1))
            sender.expect(puback(1))
            wire.expect_silence()
        with subscriber(broker.port, "new", ("kept", 0)) as new:
            new.expect_silence()


@pytest.mark.parametrize("step", ["publish", "pubrel"])
def test_qos_2_from_a_client_is_delivered_once_over_a_kill(interpreter: str, tmp_path: Path, step: str):
    store = tmp_path / "journal"
    with start(interpreter, store=store) as broker:
        subscriber(broker.port, "s", ("t", 2), clean=False).leave()
        with client(broker.port, "p", clean=False) as sender:
            sender.send(publish("t", b"1", 2, 9))
            sender.expect(pubrec(9))
            if step == "pubrel":
                sender.send(pubrel(9))
                sender.expect(pubcomp(9))
        broker.kill()
    with start(interpreter, store=store) as broker:
        with back(broker.port, "p") as sender:
            # The same message again, or after PUBREL a new one with its identifier.
            sender.send(publish("t", b"2", 2, 9, dup=step == "publish") + pubrel(9))
            sender.expect(pubrec(9), pubcomp(9))
        with back(broker.port, "s") as wire:
            expected = [b"1"] if step == "publish" else [b"1", b"2"]
            assert [m.payload for m in wire.messages(len(expected))] == expected
            wire.expect_silence()


def test_qos_2_to_a_client_is_not_sent_again_after_pubrec(interpreter: str, tmp_path: Path):
    store = tmp_path / "journal"
    with start(interpreter, store=store) as broker:
        with subscriber(broker.port, "s", ("t", 2), clean=False) as wire, client(broker.port, "p") as sender:
            sender.send(publish("t", b"1", 2, 1) + publish("t", b"2", 2, 2))
            assert [m.packet_id for m in wire.messages(2)] == [1, 2]
            wire.send(pubrec(1))
            wire.expect(pubrel(1))
        broker.kill()
    for _ in range(2):
        with start(interpreter, store=store) as broker, back(broker.port, "s") as wire:
            # PUBREL may come with the next write: the first packets are one of each.
            received = [wire.receive(), wire.receive()]
            assert sorted(received) == sorted([pubrel(1), publish("t", b"2", 2, 2, dup=True)])
            broker.kill()


def connect_5(client_id: str, clean: bool, expiry_s: int) -> bytes:
    properties = b"\x11" + expiry_s.to_bytes(4, "big")
    return packet(0x10, text("MQTT") + bytes((5, 2 if clean else 0, 0, 0, len(properties))) + properties
                  + text(client_id))


def test_what_a_5_0_message_carries_survives_a_kill_and_so_does_its_end(tmp_path: Path):
    store = tmp_path / "journal"
    lasting = b"\x02\x00\x00\x03\xe8" + b"\x08" + text("answers") + b"\x09" + text(b"\x01\x02")
    with start("micropython", store=store) as broker:
        with Wire(broker.port, connect_5("s", True, 1000)) as wire:
            wire.receive()
            wire.send(packet(0x82, b"\x00\x01\x00" + text("t") + b"\x01"))
            wire.receive()
        with Wire(broker.port, connect_5("p", True, 0)) as sender:
            sender.receive()
            sender.send(packet(0x32, text("t") + b"\x00\x01" + bytes((len(lasting),)) + lasting + b"long"))
            sender.send(packet(0x32, text("t") + b"\x00\x02\x05\x02\x00\x00\x00\x01" + b"short"))
            sender.expect(puback(1), puback(2))
        broker.kill()
    with start("micropython", store=store) as broker:
        while sys_value(broker.port, "messages/dropped/expired") == 0:  # the second of "short" passes
            with Wire(broker.port, connect_5("s", False, 1000)) as wire:
                received = [wire.receive() for _ in range(2)]
                assert received[0][2] == 1  # session present
                assert received[1].endswith(b"\x08" + text("answers") + b"\x09" + text(b"\x01\x02") + b"long")
                left_s = int.from_bytes(received[1][9:13], "big")
                assert 0 < left_s <= 1000
                wire.until_ping()


def test_a_will_that_waits_survives_a_kill_and_comes_once_unless_its_client_is_back(tmp_path: Path):
    store = tmp_path / "journal"

    def begin(port: int, client_id: str) -> Wire:
        will = b"\x05\x18\x00\x00\x00\x02" + text("wills") + text(b"end of " + client_id.encode())  # after 2 s
        flags = b"\x05\x0c\x00\x00\x05\x11\x00\x00\x03\xe8"  # will at QoS 1, session expiry 1000 s
        wire = Wire(port, packet(0x10, text("MQTT") + flags + text(client_id) + will))
        wire.receive()
        return wire

    with start("micropython", store=store) as broker:
        subscriber(broker.port, "s", ("wills", 1), clean=False).leave()
        for name in ("back", "gone"):
            begin(broker.port, name).abort()
        with begin(broker.port, "back") as wire:
            wire.send(b"\xe0\x00")
            wire.expect_close()
        while b"end of gone" not in store.read_bytes():
            time.sleep(0.02)
        broker.kill()
    for _ in range(2):  # each start compacts the journal
        with start("micropython", store=store) as broker:
            broker.kill()
    assert b"end of gone" in store.read_bytes() and b"end of back" not in store.read_bytes()
    with start("micropython", store=store) as broker, back(broker.port, "s") as wire:
        assert [(m.topic, m.payload, m.qos) for m in wire.messages(1)] == [("wills", b"end of gone", 1)]
        broker.kill()
    with start("micropython", store=store) as broker, back(broker.port, "s") as wire:
        will = wire.messages(1)[0]  # sent again, since it wasn't acknowledged
        assert will.payload == b"end of gone" and will.dup
        wire.send(puback(will.packet_id))
        wire.expect_silence()
        broker.kill()
    with start("micropython", store=store):
        assert b"end of" not in store.read_bytes()


def test_packet_identifiers_go_on_where_they_were(interpreter: str, tmp_path: Path):
    store = tmp_path / "journal"
    with start(interpreter, store=store) as broker:
        subscriber(broker.port, "s", ("t", 1), clean=False).leave()
        with client(broker.port, "p") as sender:
            sender.send(publish("t", b"1", 1, 1) + publish("t", b"2", 1, 2))
            sender.expect(puback(1), puback(2))
        broker.kill()
    with start(interpreter, store=store) as broker, client(broker.port, "p") as sender, back(broker.port, "s") as wire:
        wire.messages(2)
        sender.send(publish("t", b"3", 1, 1))
        assert wire.messages(1) == [Message("t", b"3", 1, 3)]


def test_the_journal_stays_bounded_and_is_compacted(interpreter: str, tmp_path: Path):
    store = tmp_path / "journal"
    with start(interpreter, store=store, max_store_bytes=20_000) as broker:
        with subscriber(broker.port, "s", ("t", 1), clean=False) as wire, client(broker.port, "p") as sender:
            for number in range(600):
                sender.send(publish("t", b"%0100d" % number, 1, 1))
                sender.expect(puback(1))
                assert int(wire.messages(1)[0].payload) == number
                wire.send(puback(number + 1))
            assert store.stat().st_size < 22_000
            per_message = sys_value(broker.port, "store/bytes_per_message")
            # The message with its record, its acknowledgement, and what compacting wrote.
            assert 100 < per_message < 300, per_message
        assert not list(tmp_path.glob("*.new"))
        broker.kill()
    with start(interpreter, store=store) as broker, back(broker.port, "s") as wire:
        assert len([data for data in wire.until_ping() if data[0] >> 4 == 3]) < 50


def test_an_end_in_good_order_leaves_what_lasts_and_acknowledgements_too(tmp_path: Path):
    store = tmp_path / "journal"
    with start("cpython", store=store) as broker:
        with subscriber(broker.port, "s", ("t", 1), clean=False) as wire, client(broker.port, "p") as sender:
            sender.send(publish("t", b"1", 1, 1))
            wire.messages(1)
            wire.send(puback(1))
            wire.expect_silence()
        broker.send_signal(signal.SIGINT)
        broker.process.wait(20)
    with start("cpython", store=store) as broker, back(broker.port, "s") as wire:
        wire.expect_silence()


def test_a_journal_that_is_cut_or_corrupt_at_any_byte_gives_what_is_whole(tmp_path: Path):
    # In one process: the journal has some hundred bytes, and each is cut and changed.
    program = run_on_board("micropython", "broker_damaged_store.py")
    assert program.output().endswith("done\n"), program.output()
    program = run_on_board("cpython", "broker_damaged_store.py")
    assert program.output().endswith("done\n"), program.output()


def test_on_littlefs_every_write_may_be_the_last():
    program = run_on_board("micropython", "broker_store_power_cut.py")
    assert program.output().endswith("done\n"), program.output()
    print(program.output())


def test_without_room_on_flash_nothing_is_acknowledged_and_the_broker_goes_on():
    with start("micropython", "broker_store_full.py", heap="512k") as broker:
        subscriber(broker.port, "s", ("t", 1), clean=False).leave()
        acknowledged = 0
        closed = False
        while not closed:
            with client(broker.port, "p") as sender:
                for _ in range(10):
                    sender.send(publish("t", bytes(1000), 1, 1))
                    if sender.socket.recv(4) != puback(1):
                        closed = True
                        break
                    acknowledged += 1
            assert acknowledged < 100
        assert acknowledged
        with client(broker.port, "p") as sender:  # what needs no store goes on
            sender.send(publish("other", b"", 1, 1))
            sender.expect(puback(1))
        # When messages have been taken there is room again.
        with back(broker.port, "s") as wire:
            count = 0
            wire.send(PINGREQ)
            while (data := wire.receive()) != PINGRESP:
                count += 1
                wire.send(puback(message(data).packet_id))
            assert count >= acknowledged
        broker.wait_for_output("store recovered", 20)
        with client(broker.port, "p") as sender:
            sender.send(publish("t", b"", 1, 1))
            sender.expect(puback(1))


def test_a_journal_of_a_fat_file_system_is_found_under_its_new_name(tmp_path: Path):
    # FAT can't replace a file by renaming: the power may go when the old one is deleted.
    store = tmp_path / "journal"
    with start("cpython", store=store) as broker, client(broker.port, "p") as sender:
        sender.send(publish("t", b"x", 1, 1, retain=True))
        sender.expect(puback(1))
        broker.kill()
    shutil.move(store, str(store) + ".new")
    with start("cpython", store=store) as broker, client(broker.port) as wire:
        wire.send(subscribe(1, ("t", 0)))
        wire.receive()
        assert wire.messages(1) == [Message("t", b"x", retain=True)]
