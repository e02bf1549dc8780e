"""The link on a serial cable: frames, acknowledgements, credit and channels (docs/serial-cable.md).
Sans-IO: knows neither device nor clock. `device/midge_serial.py` is the other end and explains the choices.
"""

from __future__ import annotations

import binascii
import secrets
from collections.abc import Callable
from dataclasses import dataclass

# Kinds of frames, in the high half of the first byte; the low half is the channel.
HELLO = 0x00
ACK = 0x10  # unnumbered; so are the next two
GAP = 0x20  # an ACK that says: the next one is missing, later ones are here
FULL = 0x30  # an ACK that says: alive, but the reader of a channel has to catch up first
OPEN = 0x50  # numbered, as the next two
CLOSE = 0x60  # answered by CLOSE; then the channel can be opened again
DATA = 0x70

LOG = 0  # the channel that is always open: text for whoever watches
# Channels that we open, to the board's broker; it opens 1 to 7, to ours.
HOST_CHANNELS = range(8, 16)

_END = b"\xc0"
# The byte that escapes goes first on the way out and last on the way in.
_ESCAPES = (
    (b"\xdb", b"\xdb\xdd"),
    (b"\xc0", b"\xdb\xdc"),
    *((bytes([n]), bytes([0xDB, 0x80 + n])) for n in range(1, 6)),
)

_RESERVE = 24  # bytes of the other side's buffer that frames don't use: room for two acknowledgements, each escaped
_DATA_MAX = 240  # bytes of data in a frame; 104 where two frames and the reserve have to fit into a UART's usual 256
_OVERHEAD = 12  # bytes of a frame beside its data, with three of them escaped
_DATA_MIN = 16  # survives a bit error rate of 1e-3 in 4 of 5 cases
_FRAME_MAX = 512  # bytes without END that can't be a frame any more
# bytes without acknowledgement at most, also where the other side holds more: what is sent again has to wait for all
# that is under way. 89 ms at 115,200 baud; a USB converter alone may take 16 to hand over what has come (FTDI).
_WINDOW = 1024
_FRAMES_MAX = 6  # without acknowledgement: on a line so bad that they are small, the next one's loss shows sooner
# bytes under way that keep the line busy until an acknowledgement comes: meanwhile a frame waits until it is full.
_BUSY = 200
# s until a frame is sent again: twice what acknowledgements take, and this; from the fourth time on twice as long
_RETRY_S = 0.02
_RETRY_MAX_S = 2.5  # a full window takes 1.07 s at 9,600 baud
_USUAL_S = 0.06  # what acknowledgements take, as long as nothing is known
_DEAD_S = 15.0  # without any progress until the link starts anew and its channels end
_HELLO_S = 1.0  # between hellos while nobody answers
_WAITING_MAX = 512  # bytes that wait in one lane, each way


def encode_frame(kind: int, number: int, acknowledged: int, data: bytes, seed: int) -> bytes:
    """One frame, END on both sides. *seed*: of the CRC; both nonces combined, 0 for a hello."""
    body = bytes((kind, number, acknowledged)) + data
    body += binascii.crc32(body, seed).to_bytes(4, "little")
    for plain, escaped in _ESCAPES:
        body = body.replace(plain, escaped)
    return _END + body + _END


def decode_frame(body: bytes, seed: int) -> tuple[int, int, int, bytes] | None:
    """(kind | channel, number, acknowledged, data) of what stood between two ENDs; None if it is no frame."""
    for plain, escaped in reversed(_ESCAPES):
        body = body.replace(escaped, plain)
    if len(body) < 7 or binascii.crc32(body[:-4], seed) != int.from_bytes(body[-4:], "little"):
        return None
    return body[0], body[1], body[2], body[3:-4]


class Lane:
    """One use of a channel, from its opening to its end. What came can be read also after the end."""

    def __init__(self, link: Link, channel: int, to_open: bool) -> None:
        self.link = link
        self.channel = channel
        self.input = b""
        self.output = b""
        self.to_open = to_open  # OPEN has to be sent first
        self.is_closing = False  # `close` was called, or the other side's CLOSE came: ours follows the output
        self.is_closed = False  # our CLOSE was sent
        self.is_ended = False  # the other side's CLOSE came, or the link was lost

    @property
    def room(self) -> int:
        """bytes that `write` takes now."""
        return 0 if self.is_closing else _WAITING_MAX - len(self.output)

    def write(self, data: bytes) -> int:
        """How many bytes of *data* were taken; 0 if there is no room."""
        taken = min(len(data), self.room)
        self.output += data[:taken]
        return taken

    def read(self, limit: int = _WAITING_MAX) -> bytes:
        """What came, up to *limit* bytes; b"" if there is nothing."""
        data = self.input[:limit]
        if data:
            was_full = len(self.input) >= _WAITING_MAX
            self.input = self.input[limit:]
            if was_full and len(self.input) < _WAITING_MAX:
                self.link.advance()
        return data

    def close(self) -> None:
        """Nothing more is read; what was written still goes out."""
        self.is_closing = True
        self.input = b""


def _ignore(_: object) -> None:
    pass


@dataclass(slots=True)
class _Sent:
    """A frame without acknowledgement."""

    number: int
    first_at: float  # when it was first sent
    size: int  # bytes on the line
    header: int
    data: bytes
    last_at: float | None = None  # when it was sent again


class Link:
    """One end of the cable: `receive_data`, `tick` when `next_deadline` says so, `data_to_send` after each.

    Times are seconds that only grow. The callbacks come from `receive_data`, `tick` and `data_to_send`.
    """

    def __init__(self, name: str, now: float, buffer: int = 4096) -> None:
        """*name*: told to the other side. *buffer*: bytes that our receiver holds; the kernel's, for a host."""
        self.name = name
        self.buffer = buffer
        self.peer_name = ""
        self.is_up = False
        self.frames_bad = 0  # that came damaged; console output counts too
        self.frames_again = 0  # that we had to send again
        self.on_up: Callable[[bool], None] = _ignore
        self.on_open: Callable[[Lane], None] = _ignore
        self.on_input: Callable[[Lane], None] = _ignore
        self.on_room: Callable[[Lane], None] = _ignore
        self.on_ended: Callable[[Lane], None] = _ignore
        self.on_console: Callable[[bytes], None] = _ignore  # what stood between frames
        self.log = Lane(self, LOG, False)
        self._partial = b""
        self._lanes: dict[int, Lane] = {}
        self._restart(now)

    def _restart(self, now: float) -> None:
        """Nothing gets through: both sides forget what was under way."""
        self._nonce = secrets.randbits(29) + 1
        self._peer = 0  # the other side's nonce
        self._hello_due = True
        self._reset(now)

    def _reset(self, now: float) -> None:
        was_up, lanes = self.is_up, self._lanes
        self.is_up = False
        self._lanes = {LOG: self.log}
        self._credit = 0  # bytes that the other side's receiver holds; its hello tells
        self._size_max = _DATA_MIN  # of data in a frame; the hello tells, too
        # The present one: small at first, as a large frame on a bad line is sent a dozen times until one is whole.
        self._size = 2 * _DATA_MIN
        self._number = 0  # of the next frame that we send
        self._expected = 0  # of the next frame that we take
        self._unacknowledged: list[_Sent] = []
        self._under_way = 0  # their bytes on the line
        self._again = False  # the first of them has to be sent again
        self._again_at = now  # when that last happened
        # (kind, channel, data) of frames that came before the one that is missing, by number
        self._early: dict[int, tuple[int, int, bytes]] = {}
        self._answer = 0  # kind of acknowledgement that is due
        self._turn = 0  # channel that comes first
        self._usual_s = _USUAL_S
        self._tries = 0  # of the first unacknowledged frame, beyond the first
        self._hello_at = self._sent_at = self._progress_at = now
        for channel, lane in lanes.items():
            if channel != LOG:
                self._end(lane)
        if was_up:
            self.on_up(False)

    def _end(self, lane: Lane) -> None:
        lane.is_ended = True
        lane.output = b""
        if not lane.is_closing:
            lane.is_closing = True
            self.on_ended(lane)

    def open(self, channel: int) -> Lane | None:
        """A lane on *channel* from this side; None if the link is down or the last use of it hasn't ended yet."""
        if not self.is_up or channel in self._lanes:
            return None
        lane = self._lanes[channel] = Lane(self, channel, True)
        return lane

    # -- bytes in --

    def receive_data(self, data: bytes, now: float) -> None:
        parts = (self._partial + data).split(_END)
        self._partial = parts.pop()
        if len(self._partial) > _FRAME_MAX:
            parts.append(self._partial)
            self._partial = b""
        for part in parts:
            if part:
                self._receive(part, now)

    def _receive(self, part: bytes, now: float) -> None:
        frame = decode_frame(part, self._nonce ^ self._peer) if self.is_up else None
        if frame is not None:
            header, number, acknowledged, data = frame
            self._receive_acknowledgement(header & 0xF0, acknowledged, now)
            if header >= OPEN:
                self._receive_numbered(header & 0xF0, header & 0x0F, number, data)
            return
        frame = decode_frame(part, 0)
        if frame is not None and frame[0] == HELLO:
            self._receive_hello(frame[3], now)
        else:
            self.frames_bad += 1
            self.on_console(part)

    def _receive_hello(self, text: bytes, now: float) -> None:
        fields = text.decode(errors="replace").split(" ", 6)
        if len(fields) != 7 or fields[:2] != ["midge", "1"] or not all(f.isdecimal() for f in fields[2:6]):
            return
        buffer, nonce, echo, is_up = (int(field) for field in fields[2:6])
        if nonce != self._peer:  # the other side has started anew
            self._reset(now)
            self._peer = nonce
        if not is_up:
            self._hello_due = True
        if echo == self._nonce and not self.is_up:
            self._credit = min(max(buffer, 128) - _RESERVE, _WINDOW)
            self._size_max = min(_DATA_MAX, self._credit // 2 - _OVERHEAD)
            self.peer_name = fields[6]
            self.is_up = self._hello_due = True
            self.on_up(True)

    def _receive_acknowledgement(self, kind: int, acknowledged: int, now: float) -> None:
        waiting = self._unacknowledged
        while waiting and (acknowledged - waiting[0].number - 1) & 0xFF < len(waiting):
            sent = waiting.pop(0)
            self._under_way -= sent.size
            self._size = min(self._size_max, self._size + 4)
            if sent.first_at > self._again_at:  # else it may have waited for another that was lost
                self._usual_s = 0.75 * self._usual_s + 0.25 * (now - sent.first_at)
            self._tries = 0
            self._sent_at = self._progress_at = now
        if kind == FULL:
            self._progress_at = now
        elif kind == GAP and waiting and not self._is_on_its_way(now):
            self._send_again()

    def _is_on_its_way(self, now: float) -> bool:
        """The first frame has been sent again lately. If it hasn't: the line keeps the order, so it is lost."""
        last_at = self._unacknowledged[0].last_at
        return last_at is not None and now - last_at < self._usual_s

    def _send_again(self) -> None:
        self._again = True
        self._size = max(_DATA_MIN, self._size // 2)

    def _receive_numbered(self, kind: int, channel: int, number: int, data: bytes) -> None:
        if (number - self._expected) & 0x80:  # an old one: its acknowledgement was lost
            self._answer = self._answer or ACK
            return
        self._early[number] = (kind, channel, data)
        self._answer = self._answer or ACK
        self.advance()

    def advance(self) -> None:
        """Take what is next, as far as it is here and there is room for it."""
        while self._expected in self._early:
            if not self._take(*self._early[self._expected]):
                self._answer = FULL
                return
            del self._early[self._expected]
            self._expected = (self._expected + 1) & 0xFF
            self._answer = ACK
        if self._early:
            self._answer = GAP

    def _take(self, kind: int, channel: int, data: bytes) -> bool:
        """False: the lane's reader must catch up first."""
        lane = self._lanes.get(channel)
        if kind == OPEN:
            if lane is None:
                lane = self._lanes[channel] = Lane(self, channel, False)
                self.on_open(lane)
        elif lane is None:
            pass  # the rest of a use that both sides have ended
        elif kind == CLOSE:
            self._end(lane)
            if lane.is_closed:
                del self._lanes[channel]
        elif not lane.is_closing:
            if len(lane.input) >= _WAITING_MAX:
                return False
            lane.input += data
            self.on_input(lane)
        return True

    # -- bytes out --

    def tick(self, now: float) -> None:
        """What time brings: hellos, frames sent again, the end of a link that is dead."""
        if not self.is_up:
            self._hello_due = self._hello_due or now - self._hello_at >= _HELLO_S
        elif self._unacknowledged:
            if now - self._progress_at >= _DEAD_S:
                self._restart(now)
            elif now >= self._retry_at:
                self._tries += 1
                self._send_again()

    @property
    def _retry_at(self) -> float:
        retry_s = (2 * self._usual_s + _RETRY_S) * (2 if self._tries > 3 else 1)
        return self._sent_at + min(_RETRY_MAX_S, retry_s)

    def next_deadline(self) -> float | None:
        """When `tick` is due; None: nothing waits."""
        if not self.is_up:
            return self._hello_at + _HELLO_S
        return self._retry_at if self._unacknowledged else None

    def data_to_send(self, now: float) -> bytes:
        output: list[bytes] = []
        if self._hello_due:
            self._hello_due = False
            self._hello_at = now
            text = f"midge 1 {self.buffer} {self._nonce} {self._peer} {self.is_up:d} {self.name}"
            output.append(encode_frame(HELLO, 0, 0, text.encode(), 0))
        if not self.is_up:
            return b"".join(output)
        if self._again:
            self._again = False
            if self._unacknowledged:
                self._sent_at = self._again_at = now
                self.frames_again += 1
                first = self._unacknowledged[0]
                first.last_at = now
                # Encoded anew: with what is acknowledged by now.
                output.append(self._encode(first.header, first.number, first.data))
        while (frame := self._next_frame(now)) is not None:
            output.append(frame)
            if self._answer == ACK:
                self._answer = 0  # it rode along
        if self._answer:
            output.append(self._encode(self._answer, 0, b""))
            self._answer = 0
        return b"".join(output)

    def _encode(self, header: int, number: int, data: bytes) -> bytes:
        return encode_frame(header, number, self._expected, data, self._nonce ^ self._peer)

    def _next_frame(self, now: float) -> bytes | None:
        """Each lane in turn has one; None if there is nothing, or no credit for it."""
        if len(self._unacknowledged) >= _FRAMES_MAX:
            return None
        for i in range(16):
            lane = self._lanes.get((self._turn + i) & 15)
            if lane is None or lane.is_closed:
                continue
            if lane.to_open:
                kind = OPEN
            elif lane.output:
                kind = DATA
                if len(lane.output) < self._size and self._under_way >= _BUSY:
                    continue
            elif lane.is_closing:
                kind = CLOSE
            else:
                continue
            size = self._size if kind == DATA else 0
            frame = self._encode(kind | lane.channel, self._number, lane.output[:size])
            while len(frame) > self._credit - self._under_way:
                size //= 2
                if not size or self._under_way >= _BUSY:
                    return None
                frame = self._encode(kind | lane.channel, self._number, lane.output[:size])
            if not self._unacknowledged:
                self._sent_at = self._progress_at = now
            sent = _Sent(self._number, now, len(frame), kind | lane.channel, lane.output[:size])
            self._unacknowledged.append(sent)
            self._number = (self._number + 1) & 0xFF
            self._under_way += len(frame)
            self._turn = lane.channel + 1
            self._sent_from(lane, kind, size)
            return frame
        return None

    def _sent_from(self, lane: Lane, kind: int, size: int) -> None:
        if kind == OPEN:
            lane.to_open = False
        elif kind == CLOSE:
            lane.is_closed = True
            if lane.is_ended:
                del self._lanes[lane.channel]
        else:
            lane.output = lane.output[size:]
            self.on_room(lane)
