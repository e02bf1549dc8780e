"""MQTT over a serial cable, for boards without a radio: several channels on one UART or USB line, MicroPython 1.22+.
It must not know what the channels carry; the client and the broker take one as if it were a socket."""

# A frame:   END  escaped(kind|channel, number, acknowledged, data..., CRC-32)  END
#
# - SLIP (RFC 1055), since a reader that starts anywhere, or after garbage, is right again at the next END, and since
#   bytes.replace() does it in C. COBS would save a byte or two but loops in Python, and can't spare control characters:
#   bytes 1 to 5 are escaped too, so that what a terminal or the REPL understands (Ctrl-C, Ctrl-D) never lies in a
#   frame, and a Ctrl-C from a terminal still interrupts the program. What stands between frames is console output.
# - CRC-32, since every port has it in C (binascii); a CRC-16 would be a loop. It starts from both sides' nonces, so a
#   frame of an earlier start is as wrong as a damaged one.
# - Frames are numbered, and one that isn't acknowledged is sent again. A lost frame must cost itself and not the MQTT
#   connection above it: at a bit error rate of 1e-3 hardly a connection would live long enough for one message.
# - Credit: unacknowledged bytes never exceed the other side's receive buffer, which its hello tells (a UART has 256).
#
# Hello: a frame of kind 0 with the text "midge 1 BUFFER NONCE ECHO UP NAME", NONCE being new at each start and ECHO the
# other side's, 0 while it is unknown. The link is up when the own nonce came back; who isn't up is answered.

import asyncio
import binascii
import io
import random
import time

try:
    from micropython import const
    from time import ticks_diff, ticks_ms
except ImportError:
    def const(value):
        return value

    def ticks_ms():
        return time.monotonic_ns() // 1_000_000 & 0x3FFFFFFF

    def ticks_diff(end, start):
        return ((end - start + 0x20000000) & 0x3FFFFFFF) - 0x20000000

# ------------------------------------------------------------------------------------------------------ constants

_HELLO = const(0x00)
_ACK = const(0x10)  # unnumbered; so is _HELLO
_GAP = const(0x20)  # _ACK that says: the next one is missing, later ones are here
_FULL = const(0x30)  # _ACK that says: alive, but the reader of a channel has to catch up first
_OPEN = const(0x50)  # numbered, as all from here on
_CLOSE = const(0x60)  # answered by _CLOSE; then the channel can be opened again
_DATA = const(0x70)

_END = b"\xc0"
# The byte that escapes goes first on the way out and last on the way in.
_ESCAPES = ((b"\xdb", b"\xdb\xdd"), (b"\xc0", b"\xdb\xdc"), (b"\x01", b"\xdb\x81"), (b"\x02", b"\xdb\x82"),
            (b"\x03", b"\xdb\x83"), (b"\x04", b"\xdb\x84"), (b"\x05", b"\xdb\x85"))

# bytes of the other side's buffer that frames don't use: room for two acknowledgements, each escaped.
_RESERVE = const(24)
# bytes of data in a frame: so many that two frames and the reserve fit into the other side's buffer, 104 with a UART's
# usual 256, since while one is acknowledged the other is on the line. Each loss halves the size, down to a frame that
# survives a bit error rate of 1e-3 in 4 of 5 cases.
_DATA_MAX = const(240)
_OVERHEAD = const(12)  # bytes of a frame beside its data, with three of them escaped
_DATA_MIN = const(16)
# bytes without END that can't be a frame any more: garbage, or a console that talks.
_FRAME_MAX = const(512)
# bytes without acknowledgement at most, also where the other side holds more: what is sent again has to wait for all
# that is under way. 89 ms at 115,200 baud; a USB converter alone may take 16 to hand over what has come (FTDI).
_WINDOW = const(1024)
# frames without acknowledgement at most: on a line so bad that they are small, the next one's loss shows sooner.
_FRAMES_MAX = const(6)
# bytes under way that keep the line busy until an acknowledgement comes: meanwhile a frame waits until it is full.
_BUSY = const(200)

# ms until a frame without acknowledgement is sent again: twice what acknowledgements take, and this, up to the maximum;
# from the fourth time on twice as long. A full window takes 89 ms at 115,200 baud and 1070 at 9,600.
_RETRY_MS = const(20)
_RETRY_MAX_MS = const(2500)
_USUAL_MS = const(60)  # what acknowledgements take, as long as nothing is known
# ms without any progress until the link starts anew and its channels end.
_DEAD_MS = const(15000)
# ms between hellos while nobody answers.
_HELLO_MS = const(1000)

# bytes that wait in one channel: to be sent, until write() takes no more; received, until the other side is told _FULL.
_WAITING_MAX = const(512)

LOG = 0  # the channel that is always open: text for whoever watches


# ----------------------------------------------------------------------------------------------------------- codec


def encode(kind, number, acknowledged, data, seed):
    body = bytes((kind, number, acknowledged)) + data
    body += binascii.crc32(body, seed).to_bytes(4, "little")
    for plain, escaped in _ESCAPES:
        body = body.replace(plain, escaped)
    return _END + body + _END


# The frame (kind|channel, number, acknowledged, data) between two ENDs; None if it is none.
def decode(body, seed):
    for plain, escaped in reversed(_ESCAPES):
        body = body.replace(escaped, plain)
    if len(body) < 7 or binascii.crc32(body[:-4], seed) != int.from_bytes(body[-4:], "little"):
        return None
    return body[0], body[1], body[2], body[3:-4]


# ----------------------------------------------------------------------------------------------------------- link


# One use of a channel, from its opening to its end. Its owner reads `input` by read(), also after the end.
class Lane:
    def __init__(self, link, channel, to_open):
        self.link = link
        self.channel = channel
        self.input = b""
        self._output = b""
        self._to_open = to_open  # OPEN has to be sent first
        self._closing = False  # close() came, or the other side's CLOSE: ours follows the output
        self._closed = False  # our CLOSE was sent
        self.is_ended = False  # the other side's CLOSE came, or the link was lost

    # bytes that write() takes now.
    def room(self):
        return 0 if self._closing else _WAITING_MAX - len(self._output)

    # What of *data* was taken, bytes; 0 if there is no room.
    def write(self, data):
        taken = min(len(data), self.room())
        self._output += bytes(data[:taken])
        return taken

    # What came, up to *limit* bytes; b"" if there is nothing (yet; or any more, if is_ended).
    def read(self, limit):
        data = self.input[:limit]
        if data:
            was_full = len(self.input) >= _WAITING_MAX
            self.input = self.input[limit:]
            if was_full and len(self.input) < _WAITING_MAX:
                self.link._advance()
        return data

    # Nothing more is read; what was written still goes out.
    def close(self):
        self._closing = True
        self.input = b""


# One end of the cable, without the cable: bytes in, bytes out. `now`: ticks_ms(). The other end follows the same rules.
# on_up(is_up), on_open(lane), on_input(lane), on_room(lane), on_ended(lane) are called from receive_data() and tick().
class Link:
    def __init__(self, name, now, buffer=256):
        self.name = name
        self.buffer = buffer  # bytes that our receiver holds
        self.peer_name = ""
        self.is_up = False
        self.frames_bad = 0  # that came damaged; console output counts too
        self.frames_again = 0  # that we had to send again
        self.on_up = self.on_open = self.on_input = self.on_room = self.on_ended = lambda _: None
        self._partial = b""
        self.log = Lane(self, LOG, False)
        self._lanes = {}
        self._restart(now)

    # Nothing gets through: both sides forget what was under way.
    def _restart(self, now):
        self._nonce = random.getrandbits(29) + 1
        self._peer = 0  # the other side's nonce
        self._hello_due = True
        self._reset(now)

    def _reset(self, now):
        was_up, lanes = self.is_up, self._lanes
        self.is_up = False
        self._lanes = {LOG: self.log}
        self._credit = 0  # bytes that the other side's receiver holds; its hello tells
        self._size_max = _DATA_MIN  # of data in a frame; the hello tells, too
        # The present one: small at first, as a large frame on a bad line is sent a dozen times until one is whole.
        self._size = 2 * _DATA_MIN
        self._number = 0  # of the next frame that we send
        self._expected = 0  # of the next frame that we take
        # [number, when it was first sent, bytes on the line, kind|channel, data, when it was sent again or None]
        self._unacknowledged = []
        self._under_way = 0  # their bytes on the line
        self._again = False  # the first of them has to be sent again
        self._again_at = now  # when that last happened
        self._early = {}  # frames that came before the one that is missing, by number
        self._answer = 0  # kind of acknowledgement that is due
        self._turn = 0  # channel that comes first
        self._usual_ms = _USUAL_MS
        self._tries = 0  # of the first unacknowledged frame, beyond the first
        self._hello_at = self._sent_at = self._progress_at = now
        for channel in lanes:
            if channel != LOG:
                self._end(lanes[channel])
        if was_up:
            self.on_up(False)

    def _end(self, lane):
        lane.is_ended = True
        lane._output = b""
        if not lane._closing:
            lane._closing = True
            self.on_ended(lane)

    # A lane on *channel* (1 to 15) from this side; None if the link is down or the last use of it hasn't ended yet.
    def open(self, channel):
        if not self.is_up or channel in self._lanes:
            return None
        lane = self._lanes[channel] = Lane(self, channel, True)
        return lane

    # -- bytes in --

    def receive_data(self, data, now):
        parts = (self._partial + data).split(_END)
        self._partial = parts.pop()
        if len(self._partial) > _FRAME_MAX:
            self._partial = b""
            self.frames_bad += 1
        for part in parts:
            if part:
                self._receive(part, now)

    def _receive(self, part, now):
        frame = decode(part, self._nonce ^ self._peer) if self.is_up else None
        if frame:
            kind = frame[0] & 0xF0
            self._receive_acknowledgement(kind, frame[2], now)
            if kind >= _OPEN:
                self._receive_numbered(kind, frame[0] & 0x0F, frame[1], frame[3])
            return
        frame = decode(part, 0)
        if frame and frame[0] == _HELLO:
            self._receive_hello(frame[3], now)
        else:
            self.frames_bad += 1

    def _receive_hello(self, text, now):
        fields = bytes(text).decode().split(" ", 6)
        if len(fields) != 7 or fields[0] != "midge" or fields[1] != "1":
            return
        nonce = int(fields[3])
        if nonce != self._peer:  # the other side has started anew
            self._reset(now)
            self._peer = nonce
        if fields[5] == "0":
            self._hello_due = True
        if int(fields[4]) == self._nonce and not self.is_up:
            self._credit = min(max(int(fields[2]), 128) - _RESERVE, _WINDOW)
            self._size_max = min(_DATA_MAX, self._credit // 2 - _OVERHEAD)
            self.peer_name = fields[6]
            self.is_up = self._hello_due = True
            self.on_up(True)

    def _receive_acknowledgement(self, kind, acknowledged, now):
        waiting = self._unacknowledged
        while waiting and (acknowledged - waiting[0][0] - 1) & 0xFF < len(waiting):
            _, sent_at, size, _, _, _ = waiting.pop(0)
            self._under_way -= size
            self._size = min(self._size_max, self._size + 4)
            if ticks_diff(sent_at, self._again_at) > 0:  # else it may have waited for another that was lost
                self._usual_ms = (3 * self._usual_ms + ticks_diff(now, sent_at)) // 4
            self._tries = 0
            self._sent_at = self._progress_at = now
        if kind == _FULL:
            self._progress_at = now
        elif kind == _GAP and waiting:
            last = waiting[0][5]
            # None: the line keeps the order, so it is lost. Else it may already be on its way once more.
            if last is None or ticks_diff(now, last) >= self._usual_ms:
                self._send_again()

    def _send_again(self):
        self._again = True
        self._size = max(_DATA_MIN, self._size // 2)

    def _receive_numbered(self, kind, channel, number, data):
        if (number - self._expected) & 0x80:  # an old one: its acknowledgement was lost
            self._answer = self._answer or _ACK
            return
        self._early[number] = (kind, channel, data)
        self._answer = self._answer or _ACK
        self._advance()

    # Take what is next, as far as it is here and there is room for it.
    def _advance(self):
        while self._expected in self._early:
            if not self._take(*self._early[self._expected]):
                self._answer = _FULL
                return
            del self._early[self._expected]
            self._expected = (self._expected + 1) & 0xFF
            self._answer = _ACK
        if self._early:
            self._answer = _GAP

    # False: the lane's reader must catch up first.
    def _take(self, kind, channel, data):
        lane = self._lanes.get(channel)
        if kind == _OPEN:
            if not lane:
                lane = self._lanes[channel] = Lane(self, channel, False)
                self.on_open(lane)
        elif not lane:
            pass  # the rest of a use that both sides have ended
        elif kind == _CLOSE:
            self._end(lane)
            if lane._closed:
                del self._lanes[channel]
        elif not lane._closing:
            if len(lane.input) >= _WAITING_MAX:
                return False
            lane.input += data
            self.on_input(lane)
        return True

    # -- bytes out --

    # Call it when next_deadline() has passed, and data_to_send() after it.
    def tick(self, now):
        if not self.is_up:
            self._hello_due = self._hello_due or ticks_diff(now, self._hello_at) >= _HELLO_MS
        elif self._unacknowledged:
            if ticks_diff(now, self._progress_at) >= _DEAD_MS:
                self._restart(now)
            elif self._retry_in(now) <= 0:
                self._tries += 1
                self._send_again()

    def _retry_in(self, now):
        retry_ms = (2 * self._usual_ms + _RETRY_MS) << (self._tries > 3)
        return min(_RETRY_MAX_MS, retry_ms) - ticks_diff(now, self._sent_at)

    # ms until tick() is due.
    def next_deadline(self, now):
        if not self.is_up:
            return max(0, _HELLO_MS - ticks_diff(now, self._hello_at))
        return max(0, self._retry_in(now)) if self._unacknowledged else _DEAD_MS

    # What is to be written to the cable now.
    def data_to_send(self, now):
        output = b""
        if self._hello_due:
            self._hello_due = False
            self._hello_at = now
            text = "midge 1 %d %d %d %d %s" % (self.buffer, self._nonce, self._peer, self.is_up, self.name)
            output = encode(_HELLO, 0, 0, text.encode(), 0)
        if not self.is_up:
            return output
        if self._again:
            self._again = False
            if self._unacknowledged:
                self._sent_at = self._again_at = now
                self.frames_again += 1
                first = self._unacknowledged[0]
                first[5] = now
                output += self._encode(first[3], first[0], first[4])  # anew: with what is acknowledged by now
        frame = self._next_frame(now)
        while frame:
            output += frame
            if self._answer == _ACK:
                self._answer = 0  # it rode along
            frame = self._next_frame(now)
        if self._answer:
            output += self._encode(self._answer, 0, b"")
            self._answer = 0
        return output

    def _encode(self, kind, number, data):
        return encode(kind, number, self._expected, data, self._nonce ^ self._peer)

    # Each lane in turn has one frame; None if there is nothing, or no credit for it.
    def _next_frame(self, now):
        if len(self._unacknowledged) >= _FRAMES_MAX:
            return None
        for i in range(16):
            channel = (self._turn + i) & 15
            lane = self._lanes.get(channel)
            if not lane or lane._closed:
                continue
            if lane._to_open:
                kind = _OPEN
            elif lane._output:
                kind = _DATA
                if len(lane._output) < self._size and self._under_way >= _BUSY:
                    continue
            elif lane._closing:
                kind = _CLOSE
            else:
                continue
            size = self._size if kind == _DATA else 0
            data = lane._output[:size]
            frame = self._encode(kind | channel, self._number, data)
            while len(frame) > self._credit - self._under_way:
                size //= 2
                if not size or self._under_way >= _BUSY:
                    return None
                data = lane._output[:size]
                frame = self._encode(kind | channel, self._number, data)
            if not self._unacknowledged:
                self._sent_at = self._progress_at = now
            self._unacknowledged.append([self._number, now, len(frame), kind | channel, data, None])
            self._number = (self._number + 1) & 0xFF
            self._under_way += len(frame)
            self._turn = channel + 1
            self._sent_from(lane, kind, size)
            return frame
        return None

    def _sent_from(self, lane, kind, size):
        if kind == _OPEN:
            lane._to_open = False
        elif kind == _CLOSE:
            lane._closed = True
            if lane.is_ended:
                del self._lanes[lane.channel]
        else:
            lane._output = lane._output[size:]
            self.on_room(lane)


# ------------------------------------------------------------------------------------------------------------ API


# A lane as a stream that can be polled: readinto(), write(), close(). Client and broker take it for a socket.
class Channel(io.IOBase):
    def __init__(self, cable, lane):
        self._cable = cable
        self._lane = lane

    def readinto(self, buffer):
        data = self._lane.read(len(buffer))
        n = len(data)
        if n:
            buffer[:n] = data
            self._cable.flush()
        elif not self._lane.is_ended:
            return None
        return n

    # As MicroPython's streams have it; None: there is no room now.
    def write(self, data, offset=0, length=None):
        if self._lane.is_ended:
            raise OSError(104)  # ECONNRESET
        end = len(data) if length is None else offset + length
        n = self._lane.write(memoryview(data)[offset:end])
        self._cable.flush()
        return n or None

    def ioctl(self, request, flags):
        if request == 4:  # MP_STREAM_CLOSE
            self.close()
            return 0
        if request != 3:  # MP_STREAM_POLL; 1: readable, 4: writable (py/stream.h)
            return -22  # EINVAL: above all, there is no file descriptor that could be polled instead
        lane = self._lane
        ready = 0
        if lane.input or lane.is_ended:
            ready |= 1
        if lane.is_ended or lane.room():
            ready |= 4
        return ready & flags

    def close(self):
        self._lane.close()
        self._cable.flush()


# The board's end. `stream`: a UART, or what has read(n) and can be polled; `out`: what is written to, if it is another
# one, as sys.stdin.buffer and sys.stdout.buffer are for USB. Keep run() running.
# on_channel(channel): the host has opened a channel, to this board's broker; Broker.attach takes it.
class Cable:
    def __init__(self, stream, out=None, name="board", buffer=256, on_channel=None):
        self._stream = stream
        self._out = out or stream
        self._unwritten = b""
        self._on_channel = on_channel
        self.link = Link(name, ticks_ms(), buffer)
        self.link.on_open = self._open

    def _open(self, lane):
        if self._on_channel:
            self._on_channel(Channel(self, lane))
        else:
            lane.close()

    # What Client's `dial` asks for: a channel to the host's broker, once the cable is up.
    async def dial(self, _host=None, _port=0):
        while True:
            for channel in range(1, 8):
                lane = self.link.open(channel)
                if lane:
                    self.flush()
                    return Channel(self, lane)
            await asyncio.sleep_ms(20)

    # A line for whoever watches on the laptop; what doesn't fit is left out.
    def log(self, text):
        self.link.log.write((text + "\n").encode())
        self.flush()

    # Write what is due. A window of frames fits the UART's buffer, so this doesn't block.
    def flush(self):
        output = self._unwritten + self.link.data_to_send(ticks_ms())
        if output:
            self._unwritten = output[self._out.write(output) or 0 :]

    async def run(self):
        ticking = asyncio.create_task(self._tick())
        try:
            reader = asyncio.StreamReader(self._stream)
            while True:
                data = await reader.read(256)
                if not data:  # a UART that woke up for nothing, or a terminal that went away
                    await asyncio.sleep_ms(50)
                self.link.receive_data(data or b"", ticks_ms())
                self.flush()
        finally:
            ticking.cancel()

    async def _tick(self):
        while True:
            await asyncio.sleep_ms(min(100, self.link.next_deadline(ticks_ms()) + 1))
            self.link.tick(ticks_ms())
            self.flush()
