"""The host's end of the serial cable's link, against itself and against the board's."""

import sys
from pathlib import Path
from random import Random

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


def pass_on(one: Link, other: Link, now: float = 0) -> None:
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


@pytest.mark.parametrize("make", [Link, midge_serial.Link])
@pytest.mark.parametrize(("buffer", "most"), [(128, 104), (256, 232), (4096, 1024)])
def test_what_is_under_way_fits_into_the_buffer_of_the_other_side(make, buffer, most):
    one, other = make("one", 0), Link("other", 0.0, buffer)
    other.on_input = lambda lane: lane.read()
    pass_on(one, other)
    lane = one.open(1)
    assert lane is not None
    pass_on(one, other)
    for data in (b"\x03" * 512, bytes(range(256)) * 2, b"x" * 512):  # the first take two bytes each on the line
        lane.write(data)
        lost = one.data_to_send(0)
        assert min(most, 512) // 2 < len(lost) <= most
        other.receive_data(lost, 0)
        pass_on(one, other)


def frames_of(data: bytes, seed: int) -> list[bytes]:
    """The data of its DATA frames."""
    frames = [decode_frame(part, seed) for part in data.split(b"\xc0") if part]
    return [frame[3] for frame in frames if frame is not None and frame[0] & 0xF0 == DATA]


@pytest.mark.parametrize("make", [Link, midge_serial.Link])
def test_what_is_written_while_the_line_is_busy_leaves_in_full_frames(make):
    one, other = make("one", 0), Link("other", 0.0)
    other.on_input = lambda lane: lane.read()
    pass_on(one, other)
    lane = one.open(1)
    assert lane is not None
    pass_on(one, other)
    seed = one._nonce ^ one._peer
    one._size = one._size_max  # as after fifty acknowledgements
    sent = []
    for _ in range(10):
        lane.write(b"x" * 60)
        sent.append(one.data_to_send(0))
    sizes = [len(each) for data in sent for each in frames_of(data, seed)]
    assert sizes == [60, 60, 60, 240], "an idle line is used at once, a busy one by whole frames"
    other.receive_data(b"".join(sent[:2]), 0)  # these are acknowledged, and there is still enough under way
    one.receive_data(other.data_to_send(0), 0)
    assert frames_of(one.data_to_send(0), seed) == []
    other.receive_data(b"".join(sent[2:]), 0)
    one.receive_data(other.data_to_send(0), 0)
    assert [len(each) for each in frames_of(one.data_to_send(0), seed)] == [180], "it doesn't wait for more"


@pytest.mark.parametrize("make", [Link, midge_serial.Link])
def test_of_two_frames_that_are_lost_together_both_come_again_without_waiting(make):
    one, other = make("one", 0), Link("other", 0.0, 256)
    pass_on(one, other)
    received = []
    other.on_input = lambda lane: received.append(lane.read())
    lane = one.open(1)
    assert lane is not None
    pass_on(one, other)
    sent = []
    for letter in b"abcde":
        lane.write(bytes([letter]) * 20)
        sent.append(one.data_to_send(0))
    for number in (0, 2, 4):  # b and d are lost
        other.receive_data(sent[number], 0)
        one.receive_data(other.data_to_send(0), 0)
    pass_on(one, other)
    assert [data[:1] for data in received] == [b"a", b"b", b"c", b"d", b"e"]
    assert one.frames_again == 2


class Wire:
    """One direction of a line with a speed, in steps of 1 ms; what arrives does so 2 ms later."""

    def __init__(self, baud: int, error_rate: float, seed: int):
        self._bytes_per_ms = baud / 10_000
        self._error_rate = error_rate
        self._random = Random(seed)
        self._waiting = b""
        self._due = 0.0  # bytes that the line has had time for
        self._arriving = [b"", b""]

    def step(self, data: bytes) -> bytes:
        self._waiting += data
        self._due = min(self._due + self._bytes_per_ms, len(self._waiting))
        carried, self._waiting = self._waiting[: int(self._due)], self._waiting[int(self._due) :]
        self._due -= len(carried)
        chance = self._random.random
        damaged = (byte ^ (chance() < 8 * self._error_rate) for byte in carried if chance() >= self._error_rate)
        self._arriving.append(bytes(damaged))
        return self._arriving.pop(0)


@pytest.mark.parametrize(
    ("baud", "error_rate", "part", "again"),
    [(115_200, 0, 0.92, 0), (921_600, 0, 0.92, 0), (9_600, 0, 0.8, 0), (115_200, 1e-4, 0.6, 150)],
)
def test_most_of_what_the_line_carries_is_data(baud: int, error_rate: float, part: float, again: int):
    board, host = midge_serial.Link("board", 0), InMs(Link("host", 0.0))
    taken: list[int] = []
    host.link.on_input = lambda lane: taken.append(len(lane.read()))
    up, down = Wire(baud, error_rate, 1), Wire(baud, error_rate, 2)
    lane = None
    seconds = 3 if baud > 100_000 else 10
    for now in range(1, 1000 * seconds):
        host.receive_data(up.step(board.data_to_send(now)), now)
        board.receive_data(down.step(host.data_to_send(now)), now)
        if now % 5 == 0:
            board.tick(now)
            host.tick(now)
        lane = lane or board.open(1)
        if lane:
            lane.write(b"x" * lane.room())
    assert sum(taken) > part * seconds * baud / 10
    assert board.frames_again + host.frames_again <= again
