"""A TCP link that can be made to break, or to kill someone, at one packet of an exchange: before it passes or after.

Knows where an MQTT packet ends and its type, nothing of what it says.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = 3, 4, 5, 6, 7
# The packets of one hand-over, in order.
PHASES = {1: (PUBLISH, PUBACK), 2: (PUBLISH, PUBREC, PUBREL, PUBCOMP)}
NAMES = {PUBLISH: "PUBLISH", PUBACK: "PUBACK", PUBREC: "PUBREC", PUBREL: "PUBREL", PUBCOMP: "PUBCOMP"}


class CutLink:
    """Listens on a port that the system chose, and connects whoever comes to `target_port`."""

    def __init__(self) -> None:
        self.target_port = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._lock = threading.Lock()
        self._countdown = 0
        self._kind = 0
        self._is_before = False
        self._action: Callable[[], None] = self.cut
        self._sockets: list[socket.socket] = []
        self.fired = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, kind: int, count: int, is_before: bool, action: Callable[[], None]) -> None:
        """When the *count*th packet of type *kind* comes: *action*, then (or before that) the packet passes."""
        with self._lock:
            self._kind, self._countdown, self._is_before, self._action = kind, count, is_before, action
            self.fired.clear()

    def cut(self) -> None:
        """The link breaks, in both directions and for everyone on it."""
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._server.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._server.accept()
            except OSError:
                return
            try:
                outer = socket.create_connection(("127.0.0.1", self.target_port), 5)
            except OSError:
                inner.close()
                continue
            outer.settimeout(None)
            self._sockets = [inner, outer]
            for source, target in ((inner, outer), (outer, inner)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        pending = b""
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                pending += data
                while size := _packet_size(pending):
                    self._pass(target, pending[:size])
                    pending = pending[size:]
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _pass(self, target: socket.socket, packet: bytes) -> None:
        with self._lock:
            is_due = False
            if self._countdown and packet[0] >> 4 == self._kind:
                self._countdown -= 1
                is_due = self._countdown == 0
        if is_due and self._is_before:
            self._act()
        target.sendall(packet)  # fails if the action was to cut the link
        if is_due and not self._is_before:
            self._act()

    def _act(self) -> None:
        self._action()
        self.fired.set()


def _packet_size(data: bytes) -> int:
    """bytes of the packet that *data* starts with; 0 if it isn't complete."""
    length = shift = 0
    for at in range(1, min(len(data), 5)):
        length |= (data[at] & 127) << shift
        shift += 7
        if data[at] < 128:
            size = at + 1 + length
            return size if size <= len(data) else 0
    return 0
