"""A link with a delay: a proxy that holds what comes, each way, and says when and how much the board sent.

Knows nothing of MQTT.
"""

import queue
import socket
import struct
import sys
import threading
import time

# In Linux's struct tcp_info: data segments received (tcp(7), linux/tcp.h; since 4.6).
DATA_SEGMENTS_IN = struct.Struct("152xI")


class Link:
    """One connection through the proxy."""

    def __init__(self, board: socket.socket, server: socket.socket, delay_s: float):
        self.board, self.server, self.delay_s = board, server, delay_s
        self.opened_at = time.monotonic()
        self.from_board: list[tuple[float, int]] = []  # when, bytes
        self.segments = 0  # with data, from the board
        self.closed = threading.Event()  # the board has closed
        for end in (board, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._carry(board, server)
        self._carry(server, board)

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        pipe: queue.Queue[tuple[float, bytes]] = queue.Queue()
        threading.Thread(target=self._read, args=(source, pipe), daemon=True).start()
        threading.Thread(target=self._write, args=(target, pipe), daemon=True).start()

    def _read(self, source: socket.socket, pipe: queue.Queue) -> None:
        while True:
            try:
                data = source.recv(65536)
            except OSError:
                data = b""
            now = time.monotonic()
            if source is self.board and data:
                self.from_board.append((now, len(data)))
                self.segments = self._count_segments(source)
            pipe.put((now + self.delay_s, data))
            if not data:
                if source is self.board:
                    self.closed.set()
                return

    def _count_segments(self, source: socket.socket) -> int:
        """As the kernel counts them; where it doesn't (macOS, gVisor), what came at once is one."""
        if sys.platform == "linux":
            info = source.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, DATA_SEGMENTS_IN.size)
            if len(info) == DATA_SEGMENTS_IN.size:
                return DATA_SEGMENTS_IN.unpack(info)[0]
        return len(self.from_board)

    @staticmethod
    def _write(target: socket.socket, pipe: queue.Queue) -> None:
        while True:
            due, data = pipe.get()
            time.sleep(max(0, due - time.monotonic()))
            try:
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(data)
            except OSError:
                return

    def round_trips(self) -> float:
        """From `connect()` to the last that the board sent. TCP's handshake isn't delayed by the proxy: it counts 1."""
        return 1 + (self.from_board[-1][0] - self.opened_at) / (2 * self.delay_s)


class DelayingProxy:
    def __init__(self, port: int, delay_s: float):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.links: queue.Queue[Link] = queue.Queue()
        threading.Thread(target=self._accept, args=(port, delay_s), daemon=True).start()

    def _accept(self, port: int, delay_s: float) -> None:
        while True:
            try:
                board = self.listener.accept()[0]
            except OSError:
                return
            self.links.put(Link(board, socket.create_connection(("127.0.0.1", port)), delay_s))

    def link(self) -> Link:
        """The next connection that was made."""
        return self.links.get(timeout=20)

    def __enter__(self) -> "DelayingProxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
