"""device/midge_client.py against a scripted server, on the unix port and on CPython."""

import contextlib
import socket
import time

import pytest
from client_board import CONNACK, CONNACK_SESSION_PRESENT, DISCONNECT, Server, publish, seconds_since

GO = publish("go")
BUSY_S = 2  # what a busy machine may add to a time


@pytest.fixture
def run(start_board, server):
    return lambda scenario, *arguments: start_board("client_scenarios.py", scenario, server.port, *arguments)


def test_publish_returns_when_its_qos_is_reached(run, server):
    board = run("publish_each_qos")
    peer = server.accepted()
    board.says("connected", False)
    board.says("published", "q0")
    peer.expect(publish("t", "q0"), publish("t", "q1", 1, 1))
    board.is_silent(0.05)
    peer.send("40020001")
    board.says("published", "q1")
    peer.expect(publish("t", "q2", 2, 2))
    peer.send("50020002")
    peer.expect("62020002")
    board.is_silent(0.05)
    peer.send("70020002")
    board.says("published", "q2")
    peer.expect(DISCONNECT)
    peer.expect_close()
    board.says("disconnected")
    board.has_ended()


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5])
def test_refused_connect_raises_what_the_server_said(run, server, code):
    board = run("connect")
    server.accepted(f"200200{code:02x}").expect_close()
    board.says("MQTTError", f"refused: {code}", code)
    board.has_ended()


def test_server_that_never_sends_connack_ends_in_an_error_in_time(run, server):
    board = run("connect")
    peer = server.connection()
    peer.packet()
    start = time.monotonic()
    assert board.said()[0] == "MQTTTimeout"
    assert seconds_since(start) < 0.5 + BUSY_S
    peer.expect_close()
    board.has_ended()


def test_connect_to_nobody_raises_oserror(run, server):
    server.close()
    board = run("connect")
    assert board.said()[0] in ("OSError", "ConnectionRefusedError")
    board.has_ended()


def test_server_that_closes_before_connack_is_an_error(run, server):
    board = run("connect")
    peer = server.connection()
    peer.packet()
    peer.close()
    assert board.said()[:2] == ["MQTTError", "closed by the server"]
    board.has_ended()


def test_connection_lost_in_the_instant_in_which_it_was_accepted_is_made_again(run, server):
    board = run("reconnect")
    peer = server.connection()
    peer.packet()
    peer.send(CONNACK)
    peer.close()
    board.says("connected", False)
    board.says("lost", "closed by the server")
    peer = server.accepted()
    peer.expect(publish("t", "back"), publish("t", "back", 1, 1))
    peer.send("40020001")
    board.says("published", "back")
    board.says("published", "back")
    peer.expect(DISCONNECT)
    board.has_ended()


def test_disconnect_ends_a_client_that_is_closing_a_lost_connection(run, server):
    board = run("disconnect_while_closing")
    for _ in range(8):
        peer = server.accepted()
        peer.expect(publish("t", "up"))
        peer.close()
        board.says("connected", False)
        board.says("disconnected", False)
    board.has_ended()


def test_unacked_messages_are_resent_in_order_with_dup_and_the_same_identifiers_after_a_reset(run, server):
    board = run("publish_three")
    peer = server.accepted()
    peer.expect(publish("t", "a", 1, 1), publish("t", "b", 2, 2), publish("t", "c", 1, 3))
    peer.reset()
    peer = server.accepted(CONNACK_SESSION_PRESENT)
    peer.expect(publish("t", "a", 1, 1, dup=True), publish("t", "b", 2, 2, dup=True), publish("t", "c", 1, 3, dup=True))
    peer.send("40020001", "50020002")
    peer.expect("62020002")
    peer.reset()  # the second half of QoS 2 is left, and c
    peer = server.accepted(CONNACK_SESSION_PRESENT)
    peer.expect("62020002", publish("t", "c", 1, 3, dup=True))
    peer.send("70020002", "40020003")
    board.says("connected", False)
    assert sorted(board.said() for _ in "abc") == [["published", name] for name in "abc"]
    peer.expect(DISCONNECT)
    board.has_ended()


def test_acknowledgement_of_an_unknown_identifier_is_harmless(run, server):
    run("receive")
    peer = server.accepted(CONNACK_SESSION_PRESENT)
    peer.send("40020007", "70020007", "50020007")
    peer.expect("62020007")  # so that the server can let go of it
    peer.send("62020008")
    peer.expect("70020008")


def test_acknowledgement_of_another_qos_closes_the_connection(run, server):
    run("publish_three")
    peer = server.accepted()
    peer.expect(publish("t", "a", 1, 1), publish("t", "b", 2, 2), publish("t", "c", 1, 3))
    peer.send("40020002")
    peer.expect_close()


def test_half_open_link_is_found_within_one_and_a_half_keep_alive(run, server):
    run("stay")
    peer = server.accepted()
    start = time.monotonic()
    peer.expect("c000")
    peer.expect_close()
    assert 1.75 < seconds_since(start) < 1.5 * 2 + BUSY_S


def test_qos0_chatter_does_not_hide_a_half_open_link(run, server):
    run("chatter")
    peer = server.accepted()
    server.accepted().close()  # the first link was given up, though there was always something to send
    peer.close()


def test_ping_is_sent_within_the_keep_alive_when_nothing_else_is(run, server):
    run("stay")
    peer = server.accepted()
    for _ in range(2):
        start = time.monotonic()
        peer.expect("c000")
        assert 1.5 < seconds_since(start) < 2 + BUSY_S
        peer.send("d000")


@pytest.mark.parametrize("scenario", ["busy", "ticks_wrap"])
def test_no_ping_is_sent_while_there_is_traffic(run, server, scenario):
    board = run(scenario)
    peer = server.accepted()
    board.says("connected", False)
    for i in range(12):  # 2.4 s at a keep alive of 2 s
        peer.expect(publish("t", str(i), 1, i + 1))
        peer.send(f"4002{i + 1:04x}")
        board.says("published", str(i))
    peer.expect(DISCONNECT)
    board.has_ended()


def test_lost_puback_ends_in_a_resend_even_if_the_link_lives(run, server):
    board = run("lost_puback")
    peer = server.accepted()
    peer.expect(publish("t", "a", 1, 1))
    peer.expect_close()
    peer = server.accepted()
    peer.expect(publish("t", "a", 1, 1, dup=True))
    peer.send("40020001")
    board.says("connected", False)
    board.says("published", "a")


def test_subscribe_gives_the_granted_qos_and_subscriptions_are_renewed_without_a_session(run, server):
    board = run("subscribe", "persistent")
    peer = server.accepted()
    board.says("connected", False)
    peer.expect("8208 0001 0003 612f2b 01")
    peer.send("9003000100")
    board.says("granted", 0)
    peer.expect("820b 0002 0006 736563726574 01")
    peer.send("9003000280")
    board.says("refused", 0x80)
    peer.expect("8208 0003 0003 622f23 02")
    peer.send("9003000302")
    peer.expect("a207 0004 0003 612f2b")
    peer.send("b0020004")
    board.says("unsubscribed")
    peer.close()
    peer = server.accepted(CONNACK_SESSION_PRESENT)
    peer.expect_silence(0.1)
    peer.close()
    peer = server.accepted(CONNACK)
    peer.expect("8208 0005 0003 622f23 02")


def test_subscribe_is_sent_again_when_the_connection_was_lost_before_suback(run, server):
    board = run("subscribe")
    peer = server.accepted()
    peer.expect("8208 0001 0003 612f2b 01")
    peer.reset()
    peer = server.accepted()
    peer.expect("8208 0001 0003 612f2b 01")
    peer.send("9003000101")
    board.says("connected", False)
    board.says("granted", 1)


def test_inbound_qos2_is_delivered_once(run, server):
    board = run("receive")
    peer = server.accepted(CONNACK_SESSION_PRESENT)
    board.says("connected", True)
    peer.send(publish("t", "once", 2, 7))
    peer.expect("50020007")
    peer.send(publish("t", "once", 2, 7, dup=True))
    peer.expect("50020007")
    peer.reset()
    peer = server.accepted(CONNACK_SESSION_PRESENT)
    peer.send(publish("t", "once", 2, 7, dup=True))
    peer.expect("50020007")
    peer.send("62020007")
    peer.expect("70020007")
    peer.send("62020007")  # PUBCOMP was lost, say
    peer.expect("70020007")
    peer.send(publish("t", "next", 2, 7))
    peer.expect("50020007")
    board.says("received", "t", "once", False)
    board.says("received", "t", "next", False)


def test_inbound_qos2_identifiers_are_forgotten_with_the_session(run, server):
    board = run("receive")
    peer = server.accepted()
    board.says("connected", False)
    peer.send(publish("t", "old", 2, 7))
    peer.expect("50020007")
    peer.reset()
    server.accepted(CONNACK).send(publish("t", "new", 2, 7))
    board.says("received", "t", "old", False)
    board.says("received", "t", "new", False)


def test_messages_are_acknowledged_when_the_program_takes_them_not_before(run, server):
    board = run("receive_slowly")
    peer = server.accepted()
    board.says("connected", False)
    peer.send(GO)
    board.says("going")
    peer.send(publish("t", "a", 1, 1), publish("t", "b", 2, 2, retain=True))
    peer.expect("40020001", "50020002")
    board.says("received", "t", "a", False)
    board.says("received", "t", "b", True)


def test_unread_messages_are_not_acknowledged_and_shown_once_after_a_reconnect(run, server):
    board = run("not_reading")
    peer = server.accepted()
    peer.expect(publish("t", "ready", 1, 1))
    peer.send("40020001", publish("t", "a", 1, 1), publish("t", "b", 2, 2))
    peer.expect_silence(0.1)
    peer.reset()
    # A clean session has no memory: what the server won't send again is shown, and not acknowledged.
    peer = server.accepted()
    board.says("connected", False)
    board.says("published", "ready")
    board.says("received", "t", "a", False)
    board.says("received", "t", "b", False)
    peer.expect_silence(0.1)


def test_program_that_does_not_read_holds_the_server_up_and_loses_nothing(run, server):
    board = run("not_reading")
    peer = server.accepted()
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    board.says("connected", False)
    peer.expect(publish("t", "ready", 1, 1))
    peer.send("40020001")
    board.says("published", "ready")
    for i in range(2000):
        peer.send(publish("t", f"{i:0100}"))
    for i in range(2000):
        board.says("received", "t", f"{i:0100}", False)


def test_publish_in_the_reading_loop_does_not_wait_for_itself(run, server):
    board = run("echo")
    peer = server.accepted()
    board.says("connected", False)
    peer.send(*[publish("t", str(i), 1, i + 1) for i in range(10)])
    acknowledged = set()
    for i in range(10):
        while True:
            packet = peer.packet()
            if packet[0] != 0x40:
                break
            acknowledged.add(packet[3])
        assert packet[0] == 0x32
        peer.send(b"\x40\x02" + packet[5:7])
        board.says("published", f"re:{i}")
    assert acknowledged == set(range(1, 11))


def test_packet_identifiers_wrap_round_and_skip_those_in_use(run, server):
    board = run("identifiers")
    peer = server.accepted()
    peer.expect(publish("t", "a", 1, 0xFFFE), publish("t", "b", 1, 0xFFFF))
    peer.send(GO)
    peer.expect(publish("t", "c", 1, 1))
    peer.send("40020001")
    peer.expect(publish("t", "d", 1, 1), publish("t", "e", 1, 2))
    peer.send("4002fffe", "4002ffff", "40020001", "40020002")
    board.says("connected", False)
    assert sorted(board.said()[1] for _ in range(5)) == list("abcde")


def test_cancelled_publish_stays_in_flight_until_the_server_has_answered(run, server):
    board = run("cancel")
    peer = server.accepted()
    board.says("connected", False)
    peer.expect(publish("t", "sent", 2, 1))
    peer.send(GO)
    board.says("cancelled", 1)
    peer.expect(publish("t", "next", 1, 2))
    peer.send("40020002", "50020001")
    board.says("published", "next")
    peer.expect("62020001")
    peer.send("70020001", GO)
    board.says("left", 0)


def test_cancelled_publish_of_which_nothing_was_sent_is_taken_back(run, server):
    board = run("cancel_unsent")
    peer = server.accepted()
    board.says("connected", False)
    peer.send(GO)
    peer.close()
    board.says("cancelled", 1)
    peer = server.accepted()
    peer.expect(publish("t", "kept", 1, 2))
    peer.send("40020002")
    board.says("published", "kept")


def test_publish_has_a_deadline_and_the_message_stays_in_flight(run, server):
    board = run("impatient")
    peer = server.accepted()
    board.says("connected", False)
    assert sorted(board.said() for _ in "ab") == [["failed", name, "MQTTTimeout"] for name in "ab"]
    board.says("in flight", 2)
    peer.expect(publish("t", "a", 1, 1), publish("t", "b", 2, 2))
    peer.send("40020001", "50020002")
    peer.expect("62020002")
    peer.send("70020002", GO)
    board.says("in flight", 0)


def test_window_bounds_what_is_in_flight(run, server):
    board = run("window")
    peer = server.accepted()
    board.says("connected", False)
    peer.expect(*[publish("t", str(i), 1, i + 1) for i in range(3)])
    for i in range(8):
        peer.expect_silence(0.02)
        peer.send(f"4002{i + 1:04x}")
        if i + 3 < 8:
            peer.expect(publish("t", str(i + 3), 1, i + 4))
        board.says("published", str(i))
    peer.expect(DISCONNECT)
    board.has_ended()


def test_disconnect_ends_the_loop_and_fails_what_waits(run, server):
    board = run("disconnect_while_waiting")
    peer = server.accepted()
    peer.expect(publish("t", "a", 1, 1), DISCONNECT)
    peer.expect_close()
    board.says("connected", False)
    said = [board.said() for _ in range(3)]
    assert sorted(said[:2]) == [["ended"], ["failed", "a", "MQTTError"]]
    assert said[2] == ["refused after disconnect"]
    board.has_ended()


def test_publish_may_be_awaited_later_or_as_a_task(run, server):
    board = run("without_awaiting")
    peer = server.accepted()
    board.says("connected", False)
    payloads = []
    while True:
        packet = peer.packet()
        if packet[0] == 0xE0:
            break
        payloads.append(packet[-1:])
        if packet[0] == 0x32:
            peer.send(b"\x40\x02" + packet[5:7])
        if len(payloads) == 3:
            peer.send(GO)
    assert sorted(payloads) == [b"0", b"1", b"2", b"3", b"4", b"5", b"6"]
    board.says("all published")


@pytest.mark.parametrize("end", ["close", "reset"])
def test_client_comes_back_after_the_server_restarted(run, server, end):
    board = run("reconnect")
    peer = server.accepted()
    board.says("connected", False)
    port = server.port
    server.close()
    getattr(peer, end)()
    assert board.said()[0] == "lost"
    again = Server(port)
    with contextlib.closing(again):
        peer = again.accepted()
        peer.expect(publish("t", "back"), publish("t", "back", 1, 1))
        peer.send("40020001")
        board.says("published", "back")
        board.says("published", "back")
        peer.expect(DISCONNECT)
        board.has_ended()


def test_packet_larger_than_max_packet_ends_the_connection_before_it_has_arrived(run, server):
    board = run("fail")
    peer = server.accepted()
    board.says("connected", False)
    board.says("published", "x" * 200)
    assert len(peer.packet()) == 206
    peer.send("308001")  # 128 bytes to follow
    peer.expect_close()
    board.says("lost", "max_packet")
    board.has_ended()


def test_packet_cut_anywhere_is_put_together(run, server):
    board = run("receive")
    peer = server.accepted()
    board.says("connected", False)
    stream = bytes.fromhex("".join(publish("t", f"{i:03}" * 30) for i in range(5)))
    for i in range(0, len(stream), 7):
        peer.send(stream[i:i + 7])
        time.sleep(0.001)  # so that most pieces arrive by themselves
    for i in range(5):
        board.says("received", "t", f"{i:03}" * 30, False)


def test_what_is_queued_in_one_turn_leaves_in_one_write(run, server):
    board = run("count_writes")
    peer = server.accepted()
    qos = [0, 1, 2, 0, 1, 2]
    ids = [0, 1, 2, 0, 3, 4]
    sizes = [len(publish("t", "0", q, i)) // 2 for q, i in zip(qos, ids, strict=True)]
    peer.expect(*[publish("t", str(n), q, i) for n, (q, i) in enumerate(zip(qos, ids, strict=True))])
    peer.send("40020001", "50020002", "40020003", "50020004")
    peer.expect("62020002", "62020004")
    peer.send("70020002", "70020004")
    peer.expect(DISCONNECT)
    board.says("connected", False)
    for _ in range(6):
        assert board.said()[0] == "published"
    connect_size = 10 + 2 + 5 + 2
    board.says("writes", [connect_size, sum(sizes), 8, 2])
