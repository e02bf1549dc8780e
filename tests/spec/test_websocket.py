"""MQTT over a WebSocket (chapter 6), frame by frame."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from spec_client import TIMEOUT_S
from table import shows

from brokers import start_host

CONNECT = {
    4: bytes.fromhex("100d 0004 4d515454 04 02 003c 0001 78"),
    5: bytes.fromhex("100e 0004 4d515454 05 02 003c 00 0001 78"),
}
PINGREQ, PINGRESP = b"\xc0\x00", b"\xd0\x00"
TEXT, BINARY, CLOSE = 1, 2, 8
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3


@pytest.fixture(scope="module")
def websocket_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    config = Path(tmp_path_factory.mktemp("websocket")) / "midge.toml"
    config.write_text(
        '[[listener]]\nport = 0\n[[listener]]\ntype = "websocket"\nport = 0\npath = "/mqtt"\n', encoding="utf-8"
    )
    with start_host("--config", config) as running:
        yield int(running.wait_for_output(r"ws://127\.0\.0\.1:(\d+)").group(1))


class WebSocket:
    """The client's half of RFC 6455, as little of it as is needed."""

    def __init__(self, port: int, protocols: str = "mqtt") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET /mqtt HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: {protocols}\r\n\r\n"
        )
        self._socket.sendall(request.encode())
        self._data = b""
        while b"\r\n\r\n" not in self._data:
            self._data += self._more()
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        assert " 101 " in status, head
        self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        accept = base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()
        assert self.headers["sec-websocket-accept"] == accept

    def _more(self) -> bytes:
        data = self._socket.recv(65_536)
        if not data:
            raise EOFError
        return data

    def send(self, data: bytes, kind: int = BINARY) -> None:
        """One frame, masked by zeros."""
        assert len(data) < 126
        self._socket.sendall(bytes((0x80 | kind, 0x80 | len(data))) + bytes(4) + data)

    def receive(self) -> tuple[int, bytes]:
        """The next frame: its kind and what is in it."""
        while len(self._data) < 2 or len(self._data) < 2 + self._data[1]:
            self._data += self._more()
        assert self._data[1] < 126
        end = 2 + self._data[1]
        frame, self._data = self._data[:end], self._data[end:]
        return frame[0] & 0x0F, frame[2:]

    def receive_bytes(self, count: int) -> bytes:
        """*count* bytes in binary frames, however many."""
        received = b""
        while len(received) < count:
            kind, data = self.receive()
            assert kind == BINARY, (kind, data)
            received += data
        return received

    def is_closed(self) -> bool:
        """The broker ends the connection: by a close frame, or at once."""
        try:
            while True:
                kind, data = self.receive()
                if kind == CLOSE:
                    return True
                assert data[:1] == b"\xe0", data  # DISCONNECT may say why
        except (EOFError, ConnectionError):
            return True

    def close(self) -> None:
        self._socket.close()


@shows(v3="6.0.0-4", v5="6.0.0-4")
@pytest.mark.parametrize("offered", ["mqtt", "other, mqtt"])
def test_the_subprotocol_mqtt_is_selected(websocket_port: int, offered: str) -> None:
    one = WebSocket(websocket_port, offered)
    assert one.headers["sec-websocket-protocol"] == "mqtt"
    one.close()


@shows(v3="6.0.0-2", v5="6.0.0-2")
def test_packets_need_not_be_aligned_with_frames(websocket_port: int, version: int) -> None:
    data = CONNECT[version] + PINGREQ * 3
    for size in (1, 5, len(data)):
        one = WebSocket(websocket_port)
        for at in range(0, len(data), size):
            one.send(data[at : at + size])
        received = one.receive_bytes(2)
        connack_bytes = 2 + received[1]
        received += one.receive_bytes(connack_bytes + 6 - len(received))
        assert received[:1] == b"\x20"
        assert received[connack_bytes:] == PINGRESP * 3
        one.close()


@shows(v3="6.0.0-1", v5="6.0.0-1")
def test_another_kind_of_frame_closes_the_connection(websocket_port: int, version: int) -> None:
    one = WebSocket(websocket_port)
    one.send(CONNECT[version])
    assert one.receive()[0] == BINARY
    one.send(b"text", TEXT)
    assert one.is_closed()
    one.close()
