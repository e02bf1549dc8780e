"""The other side of the on-board scripts: a scripted server on a real socket, and the board's process.

Knows packets as bytes only; what a scenario means stands in the tests.
"""

import json
import os
import queue
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import brokers

ON_BOARD = Path(__file__).with_name("on_board")
CONNACK = "20020000"
CONNACK_SESSION_PRESENT = "20020100"
DISCONNECT = "e000"
# Nothing here takes a second on an idle machine; a busy one may need this.
DEADLINE_S = 30


class Peer:
    """One connection, seen from the server."""

    def __init__(self, connection: socket.socket):
        self.socket = connection
        self.socket.settimeout(DEADLINE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, *packets: str | bytes) -> None:
        self.socket.sendall(b"".join(p if isinstance(p, bytes) else bytes.fromhex(p) for p in packets))

    def _exactly(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            chunk = self.socket.recv(n - len(data))
            if not chunk:
                raise EOFError(f"the client closed the connection after {data.hex()!r}")
            data += chunk
        return data

    def packet(self) -> bytes:
        """The next packet, whole."""
        head = self._exactly(1)
        length = shift = 0
        while True:
            head += self._exactly(1)
            length |= (head[-1] & 127) << shift
            shift += 7
            if head[-1] < 128:
                return head + self._exactly(length)

    def expect(self, *packets: str) -> None:
        for wanted in packets:
            assert self.packet().hex() == wanted.replace(" ", "")

    def accept(self, connack: str = CONNACK) -> bytes:
        connect = self.packet()
        assert connect[0] == 0x10
        self.send(connack)
        return connect

    def expect_close(self) -> None:
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:  # closed with something of ours unread
            data = b""
        assert data == b""
        self.close()

    def expect_silence(self, seconds: float) -> None:
        self.socket.settimeout(seconds)
        try:
            data = self.socket.recv(65536)
        except TimeoutError:
            data = None
        self.socket.settimeout(DEADLINE_S)
        assert data is None, f"got {data!r}"

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """RST instead of FIN: as a server that was killed, or a NAT that forgot."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class Server:
    def __init__(self, port: int = 0):
        self.listener = socket.create_server(("127.0.0.1", port))
        self.listener.settimeout(DEADLINE_S)
        self.port = self.listener.getsockname()[1]

    def connection(self) -> Peer:
        return Peer(self.listener.accept()[0])

    def accepted(self, connack: str = CONNACK) -> Peer:
        peer = self.connection()
        peer.accept(connack)
        return peer

    def close(self) -> None:
        self.listener.close()


class Board:
    """The process that runs an on-board script, and what it said."""

    def __init__(self, interpreter: str, script: str, *arguments: object, heap: str = "256k"):
        command = [sys.executable, "-u"]
        if interpreter == "micropython":
            command = [brokers.micropython(), "-X", f"heapsize={heap}"]
        self.process = subprocess.Popen([*command, str(ON_BOARD / script), *map(str, arguments)],
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, text=True, encoding="utf-8")
        self.lines: queue.Queue[str] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def said(self) -> list:
        """The next thing that the script said."""
        line = self.lines.get(timeout=DEADLINE_S)
        try:
            return json.loads(line)
        except ValueError:
            raise AssertionError("the script said: " + line + "".join(self.rest())) from None

    def rest(self) -> list[str]:
        """The lines that are still to come, as of an error."""
        rest = []
        while not self.lines.empty() or self.reader.is_alive():
            try:
                rest.append(self.lines.get(timeout=1))
            except queue.Empty:
                break
        return rest

    def says(self, *what: object) -> None:
        assert self.said() == list(what)

    def has_ended(self) -> None:
        assert self.lines.get(timeout=DEADLINE_S) == ""
        assert self.process.wait(DEADLINE_S) == 0

    def is_silent(self, seconds: float) -> None:
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            return
        raise AssertionError(f"the script said {line!r}")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.reader.join(2)
        self.process.stdout.close()


def publish(topic: str, payload: str = "", qos: int = 0, packet_id: int = 0, dup: bool = False,
            retain: bool = False) -> str:
    """The bytes of a PUBLISH shorter than 128 bytes, as hex."""
    body = struct.pack(">H", len(topic)) + topic.encode()
    if qos:
        body += struct.pack(">H", packet_id)
    body += payload.encode()
    return (bytes([0x30 | dup << 3 | qos << 1 | retain, len(body)]) + body).hex()


def seconds_since(start: float) -> float:
    return time.monotonic() - start
