"""The host's end of the serial cable's link, against itself and against the board's."""

import sys
from pathlib import Path

import pytest

from midge.protocol import serial_link
from midge.protocol.serial_link import DATA, HELLO, Lane, Link, decode_frame, encode_frame

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT / "device"), str(ROOT / "tests" / "device" / "on_board")]

import midge_serial  # noqa: E402
from serial_link import exchange  # noqa: E402


class InMs:
    """The host's link with the board's clock, ms, so that one harness drives both."""

    def __init__(self, link: Link):
        self.link = link

    def __getattr__(self, name):
        return getattr(self.link, name)

    def __setattr__(self, name, value):
        object.__setattr__(self, name, value) if name == "link" else setattr(self.link, name, value)

    def receive_data(self, data, now):
        self.link.receive_data(data, now / 1000)

    def tick(self, now):
        self.link.tick(now / 1000)

    def data_to_send(self, now):
        return self.link.data_to_send(now / 1000)


@pytest.mark.parametrize("error_rate", [0, 1e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_bytes_arrive_in_order_between_the_host_and_the_board(seed, error_rate):
    board = midge_serial.Link("board", 0, 256)
    again = exchange(InMs(Link("host", 0.0)), board, seed, error_rate, 5000)
    assert board.peer_name == "host"
    if not error_rate:
        assert again == 0


@pytest.mark.parametrize("data", [b"", b"plain", bytes(range(256)), b"\xc0" * 20, b"\xdb\xdd\xdb\xdc\xdb\x83\x03"])
def test_both_ends_encode_the_same_frame_and_read_it(data):
    frame = encode_frame(DATA | 3, 7, 250, data, 0x1234_5678)
    assert frame == midge_serial.encode(DATA | 3, 7, 250, data, 0x1234_5678)
    body = frame.strip(b"\xc0")
    assert decode_frame(body, 0x1234_5678) == midge_serial.decode(body, 0x1234_5678) == (DATA | 3, 7, 250, data)
    assert decode_frame(body, 0x1234_5679) is None  # of another start of the link
    assert not set(body) & {1, 2, 3, 4, 5, 0xC0}  # nothing that a terminal or the REPL acts on


def joined() -> tuple[Link, Link]:
    """Two ends that have said hello."""
    one, other = Link("one", 0.0), Link("other", 0.0)
    pass_on(one, other)
    assert one.is_up and other.is_up and one.peer_name == "other"
    return one, other


def pass_on(one: Link, other: Link, now: float = 0.0) -> None:
    while (data := one.data_to_send(now)) + (back := other.data_to_send(now)):
        other.receive_data(data, now)
        one.receive_data(back, now)


def test_garbage_before_between_and_in_frames_is_skipped_and_shown():
    one, other = joined()
    shown: list[bytes] = []
    other.on_console = shown.append
    lane = one.open(1)
    assert lane is not None
    lane.write(b"data")
    other.receive_data(b"Traceback (most recent call last):\r\n" + one.data_to_send(0.0) + b">>> \xc0", 0.0)
    assert shown == [b"Traceback (most recent call last):\r\n", b">>> "]
    pass_on(one, other)
    assert other.frames_bad == 2


def test_a_side_that_starts_anew_ends_the_channels_and_the_link_comes_up_again():
    one, other = joined()
    opened: list[Lane] = []
    ended: list[Lane] = []
    other.on_open, other.on_ended = opened.append, ended.append
    assert one.open(1)
    pass_on(one, other)
    again = Link("one", 1.0)
    pass_on(again, other, 1.0)
    assert ended == opened and len(opened) == 1
    assert again.is_up and other.is_up


def test_frames_of_before_a_restart_are_not_taken():
    one, other = joined()
    lane = one.open(1)
    assert lane is not None
    lane.write(b"old")
    late = one.data_to_send(0.0)
    again = Link("one", 1.0)
    pass_on(again, other, 1.0)
    opened: list[Lane] = []
    other.on_open = opened.append
    other.receive_data(late, 1.0)
    assert opened == []


def test_a_channel_is_opened_again_only_after_both_sides_have_closed_it():
    one, other = joined()
    opened: list[Lane] = []
    other.on_open = opened.append
    lane = one.open(1)
    assert lane is not None and one.open(1) is None
    lane.write(b"last words")
    lane.close()
    pass_on(one, other)
    assert opened[0].is_ended and opened[0].read() == b"last words"
    assert one.open(1) is not None
    pass_on(one, other)
    assert len(opened) == 2 and opened[1].read() == b""


def test_a_lane_that_is_not_read_stops_its_sender_and_loses_nothing():
    one, other = joined()
    opened: list[Lane] = []
    other.on_open = opened.append
    lane = one.open(1)
    assert lane is not None
    sent = received = b""
    now = 0.0
    for _ in range(100):
        chunk = bytes([len(sent) & 0x7F]) * 100
        sent += chunk[: lane.write(chunk)]
        pass_on(one, other, now)
        now += 0.01
    assert lane.room == 0
    assert len(opened[0].input) < 1500  # bounded, whatever the sender has
    while data := opened[0].read(100):
        received += data
        pass_on(one, other, now)
    assert received == sent


def test_a_dead_line_is_noticed_and_hello_is_said_until_somebody_answers():
    one, _ = joined()
    ended: list[Lane] = []
    ups: list[bool] = []
    one.on_ended, one.on_up = ended.append, ups.append
    assert one.open(1)
    now = 0.0
    hellos = 0
    while now < 40:
        one.tick(now)
        for part in one.data_to_send(now).split(b"\xc0"):
            frame = decode_frame(part, 0)
            hellos += frame is not None and frame[0] == HELLO
        due = one.next_deadline()
        assert due is not None and due > now - 1e-9
        now = max(due, now + 1e-3)
    assert ups == [False] and len(ended) == 1
    assert 20 <= hellos <= 30


def test_the_log_channel_needs_no_opening():
    one, other = joined()
    lines: list[bytes] = []
    other.on_input = lambda lane: lines.append(lane.read()) if lane.channel == serial_link.LOG else None
    one.log.write(b"hello\n")
    pass_on(one, other)
    assert lines == [b"hello\n"]


def test_a_small_buffer_of_the_other_side_is_never_overrun():
    one, other = Link("one", 0.0), Link("other", 0.0, buffer=128)
    pass_on(one, other)
    lane = one.open(1)
    assert lane is not None
    lane.write(b"\x03" * 512)  # each of them takes two bytes on the line
    assert 0 < len(one.data_to_send(0.0)) <= 128
