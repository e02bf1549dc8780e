"""MQTT clients that load a broker and check what comes back.

One thread of Python is both ends of every message. It is fast enough because, wherever it can, it decides nothing per
message: payloads are numbered 0 to 65,534 over and over, and so are brokers' packet identifiers, so that what has to
come back is known in advance and compared in whole chunks. Where that isn't possible (many topics for one subscriber,
large payloads), and where something else came than what had to, packets are looked at one by one. Each message that is
lost, doubled or out of order is counted.
"""

from __future__ import annotations

import contextlib
import copy
import select
import socket
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from midge.protocol import packets as p
from midge.protocol.decoder import Decoder
from midge.protocol.encoder import encode
from midge.protocol.reasons import ReasonCode

HOST = "127.0.0.1"
SMALL_BYTES = 64
CYCLE = 65_535  # packets until payloads and packet identifiers repeat
RECEIVE_BYTES = 1 << 18
IDLE_S = 3.0  # nothing moved for so long: what is missing is lost
# How far the slowest subscriber may fall behind at QoS 1 and 2: half of what either broker queues by default, so
# that a slow reader here isn't counted as a loss there.
BEHIND_MAX = 500

_RECEIVE_MAXIMUM = 65_535  # if the other side names none, and in 3.1.1
_FOR_EVER_S = 0xFFFF_FFFF  # 5.0: a session that lasts
_TRY_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

# What answers what, by first byte: PUBLISH QoS 1, PUBLISH QoS 2, PUBREC, PUBREL.
ANSWER = {0x32: 0x40, 0x34: 0x50, 0x50: 0x62, 0x62: 0x70}


class Address(NamedTuple):
    """Where a broker is, and as whom."""

    host: str = HOST
    port: int = 1883
    username: str | None = None
    password: str | None = None
    version: int = 4  # of MQTT: 4 is 3.1.1, 5 is 5.0
    tls: ssl.SSLContext | None = None


class Refused(ConnectionError):
    """The broker doesn't let us do what was to be measured."""


_root = "bench"  # set by `use_root`


def use_root(root: str) -> None:
    """The first levels of the topics. Before any client is made: what was made with another one can't be compared."""
    global _root
    _root = root
    _streams.clear()


def topic_name(number: int) -> str:
    return f"{_root}/kitchen{number:03}/temperature"  # of one length


def every_topic() -> str:
    """The filter that all of them match."""
    return f"{_root}/+/temperature"


def payload(number: int, size: int) -> bytes:
    return b"%08d" % number + _filler(size)


def _filler(size: int) -> bytes:
    return (bytes(range(SMALL_BYTES - 8)) * (size // (SMALL_BYTES - 8) + 1))[: size - 8]


# -- what is sent, and what must come back --


class Stream:
    """Packets of one kind, endlessly, and how far we are."""

    def __init__(self, cycle: bytes) -> None:
        self.cycle = cycle
        self.size = len(cycle) // CYCLE
        # So that a slice doesn't have to wrap: what one chunk can hold stands there again.
        self._bytes = cycle + cycle[: RECEIVE_BYTES * 2]
        self._at = 0

    def peek(self, count: int) -> bytes:
        return self._bytes[self._at : self._at + count * self.size]

    def take(self, count: int) -> bytes:
        data = self.peek(count)
        self._at = (self._at + len(data)) % len(self.cycle)
        return data

    def copy(self) -> Stream:
        other = copy.copy(self)
        other._at = 0
        return other


class Messages:
    """The PUBLISH packets of one topic, made when they are taken: for many topics, and for large payloads."""

    def __init__(self, topic: str, qos: int, size: int, version: int = 4) -> None:
        packet = encode(p.Publish(topic, payload(0, size), qos, packet_id=1 if qos else 0), version)
        self._properties = packet[len(packet) - size - (version == 5) : len(packet) - size]  # none: their length, 0
        self._head = packet[: len(packet) - size - len(self._properties) - (2 if qos else 0)]
        self._tail = packet[len(packet) - size + 8 :]
        self._qos = qos
        self._number = 0

    def take(self, count: int) -> bytes:
        parts = []
        for number in range(self._number, self._number + count):
            number %= CYCLE
            parts.append(self._head)
            if self._qos:
                parts.append((number + 1).to_bytes(2, "big"))
            parts.append(self._properties)
            parts.append(b"%08d" % number)
            parts.append(self._tail)
        self._number += count
        return b"".join(parts)


def _publishes(qos: int, version: int) -> Stream:
    return Stream(b"".join(
        encode(p.Publish(topic_name(0), payload(number, SMALL_BYTES), qos, packet_id=number + 1 if qos else 0), version)
        for number in range(CYCLE)
    ))  # fmt: skip


def _acknowledgements(first: int) -> Stream:
    return Stream(b"".join(bytes((first, 2, n >> 8, n & 0xFF)) for n in range(1, CYCLE + 1)))


_streams: dict[tuple[int, int, int], Stream] = {}


def stream(first: int, topic: int = 0, version: int = 4) -> Stream:
    """The packets with that first byte, from the first one on; PUBLISH to the topic of that number."""
    if first >> 4 != 3:
        topic, version = 0, 4  # of the same bytes in 5.0, if all is well
    key = first, topic, version
    if key not in _streams:
        if topic:
            made = Stream(stream(first, 0, version).cycle.replace(topic_name(0).encode(), topic_name(topic).encode()))
        else:
            made = _publishes(first >> 1 & 3, version) if first >> 4 == 3 else _acknowledgements(first)
        _streams[key] = made
    return _streams[key].copy()


@dataclass
class Faults:
    lost: int = 0
    doubled: int = 0
    disordered: int = 0

    def add(self, other: Faults) -> None:
        self.lost += other.lost
        self.doubled += other.doubled
        self.disordered += other.disordered

    def __bool__(self) -> bool:
        return bool(self.lost or self.doubled or self.disordered)


@dataclass
class Tracker:
    """What came of one topic."""

    received: int = 0
    next_number: int = 0
    missing: set[int] = field(default_factory=set)

    def is_new(self, number: int, faults: Faults) -> bool:
        ahead = (number - self.next_number) % CYCLE
        if ahead < CYCLE // 2:
            self.missing.update((self.next_number + i) % CYCLE for i in range(ahead))
            self.next_number = (number + 1) % CYCLE
            return True
        if number in self.missing:
            self.missing.discard(number)
            faults.disordered += 1
            return True
        faults.doubled += 1
        return False


# -- clients --

# MQTT 3.1.1 table 3.1
_CONNACK = {1: "protocol version", 2: "client identifier", 3: "unavailable", 4: "user name or password",
            5: "not authorised"}  # fmt: skip


class Client:
    """One connection: compares what comes with what must come, and answers it.

    *expects* are the first bytes of what must come, PUBLISH of small messages on that one topic among them; if it is
    empty, packets are looked at one by one.
    """

    def __init__(
        self,
        where: int | Address,
        client_id: str,
        expects: tuple[int, ...] = (),
        clean: bool = True,
        topic: int = 0,
    ) -> None:
        """*where*: an address, or a port of this machine. Raises `Refused` if the broker doesn't let us in."""
        self.address = address = Address(port=where) if isinstance(where, int) else where
        self._client_id = client_id
        self._topic = topic
        self.received = dict.fromkeys(expects, 0)  # packets by first byte
        self.trackers: dict[bytes, Tracker] = {}  # by topic name, of messages that were looked at
        self.faults = Faults()
        self._expected = {first: stream(first, topic, address.version) for first in expects}
        self._answers = {first: stream(ANSWER[first]) for first in expects if first in ANSWER}
        self._is_predictable = bool(expects)  # cleared by the first packet that is another than the next one
        self._rest = b""
        self._unsent = b""
        self.socket = socket.create_connection(address[:2], 10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if address.tls is not None:
            self.socket = address.tls.wrap_socket(self.socket, server_hostname=address.host)
        self._connect(clean)

    def _connect(self, clean: bool) -> None:
        address, version = self.address, self.address.version
        password = None if address.password is None else address.password.encode()
        properties: p.Properties = {"session_expiry_interval": _FOR_EVER_S} if version == 5 and not clean else {}
        connect = p.Connect(
            self._client_id, clean, 600, version, username=address.username, password=password, properties=properties
        )
        self.send(encode(connect, version))
        connack = self._read_packet()
        if not isinstance(connack, p.Connack):
            raise Refused("the broker answers CONNECT with another packet")
        code = connack.reason_code
        if code:
            reason = _CONNACK.get(code, code) if version == 4 else ReasonCode(code).name.replace("_", " ").lower()
            raise Refused(f"the broker refuses the connection: {reason}")
        self.session_present = connack.session_present
        # QoS 1 and 2 messages that the broker takes without having acknowledged them.
        self.receive_maximum = (connack.properties or {}).get("receive_maximum", _RECEIVE_MAXIMUM)

    def _read_packet(self) -> object:
        """An answer, while nothing else can come."""
        data = self._read_exactly(2)
        length, shift = data[1] & 0x7F, 7
        while data[-1] & 0x80:
            data += self._read_exactly(1)
            length |= (data[-1] & 0x7F) << shift
            shift += 7
        decoder = Decoder("client", self.address.version)
        packets = decoder.receive_data(data + self._read_exactly(length))
        if decoder.error is not None:
            raise Refused(f"the broker sends what can't be understood: {decoder.error}")
        return packets[0]

    def _read_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = self.socket.recv(size - len(data))
            if not chunk:
                raise ConnectionError("the broker closed the connection")
            data += chunk
        return data

    def subscribe(self, qos: int, *filters: str) -> None:
        wanted = [p.Subscription(one, qos) for one in filters or (topic_name(self._topic),)]
        self.send(encode(p.Subscribe(1, wanted), self.address.version))
        suback = self._read_packet()
        granted = set(suback.reason_codes) if isinstance(suback, p.Suback) else set()
        if granted != {qos}:
            raise Refused(f"the broker grants QoS {sorted(granted)} instead of {qos} (128 and more: not allowed)")

    def close(self) -> None:
        self.socket.setblocking(True)
        with contextlib.suppress(OSError):
            self.socket.sendall(b"\xe0\x00")
        self.socket.close()

    def end_session(self) -> None:
        """Close, and let nothing of a session that was kept stay behind."""
        self.close()
        Client(self.address, self._client_id).close()

    def send(self, data: bytes) -> None:
        """What the kernel doesn't take now leaves with the next call, or with `flush`."""
        self._unsent += data
        self.flush()

    def flush(self) -> None:
        with contextlib.suppress(*_TRY_LATER):
            while self._unsent:  # TLS takes 16 kB at a time
                self._unsent = self._unsent[self.socket.send(self._unsent) :]

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    def receive(self) -> None:
        try:
            data = self.socket.recv(RECEIVE_BYTES)
        except _TRY_LATER:
            return
        if not data:
            raise ConnectionError("the broker closed the connection")
        if self._rest:
            data = self._rest + data
        at, answers = self._compare(data) if self._is_predictable else (0, [])
        if not self._is_predictable:
            at = self._parse(data, at, answers)
        self._rest = data[at:]
        if answers:
            self.send(b"".join(answers))

    def _compare(self, data: bytes) -> tuple[int, list[bytes]]:
        """Take what is as expected, in pieces as large as possible; how far that was, and the answers."""
        at = 0
        answers = []
        while at < len(data):
            first = data[at]
            expected = self._expected.get(first)
            count = (len(data) - at) // expected.size if expected else 0
            if expected is None:
                self._stop_comparing()
                break
            if not count:
                break
            if data[at : at + count * expected.size] != expected.peek(count):
                count = 0  # another kind of packet follows in between, mostly: one by one up to there
                if not data.startswith(expected.peek(1), at):
                    self._stop_comparing()
                    break
                while data.startswith(expected.peek(1), at + count * expected.size):
                    expected.take(1)
                    count += 1
            else:
                expected.take(count)
            at += count * expected.size
            self.received[first] += count
            if first in self._answers:
                answers.append(self._answers[first].take(count))
        return at, answers

    def _stop_comparing(self) -> None:
        self._is_predictable = False
        count = self.delivered
        self.trackers[topic_name(self._topic).encode()] = Tracker(count, count % CYCLE)

    def _parse(self, data: bytes, at: int, answers: list[bytes]) -> int:
        """The same packet by packet."""
        end, received, trackers, version = len(data), self.received, self.trackers, self.address.version
        while at + 2 <= end:
            first = data[at] & 0xF7  # without DUP
            length, body = data[at + 1], at + 2
            if length > 0x7F:
                length, body = _variable(data, at + 1)
            following = body + length
            if following > end:
                break
            at = following
            if first >> 4 != 3:
                if first in ANSWER:
                    answers.append(bytes((ANSWER[first], 2)) + data[body : body + 2])
                received[first] = received.get(first, 0) + 1
                continue
            payload_at = body + 2 + (data[body] << 8 | data[body + 1])
            topic = data[body + 2 : payload_at]
            if first != 0x30:
                answers.append(bytes((ANSWER[first], 2)) + data[payload_at : payload_at + 2])
                payload_at += 2
            if version == 5:
                length, payload_at = _variable(data, payload_at)
                payload_at += length
            tracker = trackers.get(topic)
            if tracker is None:
                tracker = trackers[topic] = Tracker()
            if tracker.is_new(int(data[payload_at : payload_at + 8]), self.faults):
                tracker.received += 1
                received[first] = received.get(first, 0) + 1
        return at

    @property
    def delivered(self) -> int:
        """Messages received."""
        return sum([count for first, count in self.received.items() if first >> 4 == 3])

    def delivered_of(self, topic: bytes) -> int:
        """Messages received of one topic, where there are several."""
        if self._is_predictable:
            return self.delivered
        tracker = self.trackers.get(topic)
        return 0 if tracker is None else tracker.received


def _variable(data: bytes, at: int) -> tuple[int, int]:
    """A Variable Byte Integer, and where it ends: behind *data* if not all of it is there."""
    value = shift = 0
    while at < len(data):
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
    return value, at + 1


class Publisher(Client):
    """Sends as many messages as its window lets it."""

    def __init__(
        self,
        where: int | Address,
        qos: int,
        window: int,
        topic: int = 0,
        size: int = 0,
        behind_max: int = BEHIND_MAX,
    ) -> None:
        """*size*, bytes: messages are made one by one; else small ones are taken from what was made before."""
        acknowledgements: dict[int, tuple[int, ...]] = {0: (), 1: (0x40,), 2: (0x50, 0x70)}
        super().__init__(where, f"{_root}-publisher-{topic}", acknowledgements[qos])
        self.qos = qos
        self.topic = topic_name(topic).encode()
        self.sent = 0
        self._window = min(window, self.receive_maximum) if qos else window
        self._behind_max = behind_max
        self._messages: Stream | Messages
        if size:
            self._messages = Messages(topic_name(topic), qos, size, self.address.version)
        else:
            self._messages = stream(0x30 | qos << 1, topic, self.address.version)

    @property
    def acknowledged(self) -> int:
        return self.received[0x70 if self.qos == 2 else 0x40]

    def publish(self, delivered: int, limit: int | None = None) -> None:
        """*delivered*: what the slowest subscriber has. At QoS 0 that is what the window counts."""
        if self.has_unsent:
            return
        room = self._window - (self.sent - (self.acknowledged if self.qos else delivered))
        if self.qos:
            room = min(room, self._behind_max - (self.sent - delivered))
        if limit is not None:
            room = min(room, limit - self.sent)
        if room > 0:
            self.sent += room
            self.send(self._messages.take(room))


def _poller() -> tuple[Callable[[int], None], Callable[[float], Iterable[tuple[int, int]]]]:
    """What registers a file, and what waits so many seconds: epoll, where the system has it."""
    if hasattr(select, "epoll"):
        epoll = select.epoll()
        return lambda fd: epoll.register(fd, select.EPOLLIN), epoll.poll
    poll = select.poll()
    return lambda fd: poll.register(fd, select.POLLIN), lambda seconds: poll.poll(seconds * 1000)


def serve(clients: Iterable[Client], after_each: Callable[[], bool]) -> None:
    """Let the clients receive and answer until *after_each* says True, or nothing moves any more."""
    register, wait = _poller()
    by_fd = {client.socket.fileno(): client for client in clients}
    for fd, client in by_fd.items():
        client.socket.setblocking(False)
        register(fd)
    while not after_each():
        unsent = [client for client in by_fd.values() if client._unsent]
        ready = wait(0.001 if unsent else IDLE_S)
        if not ready and not unsent:
            return
        for fd, _ in ready:
            by_fd[fd].receive()
        for client in unsent:
            client.flush()
