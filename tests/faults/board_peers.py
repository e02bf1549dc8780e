"""A publisher and a subscriber with the faces of those in peers.py that are device/midge_client.py on the unix port.

They reach their broker by a port that stays the same, so that they find it again by themselves however often it ends.
"""

from __future__ import annotations

import queue
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "device"))

from client_board import Board

from midge.protocol import packets as p

from .peers import Peer

DEADLINE_S = 60


class BoardPeer:
    """The program on the board; what it prints are numbers."""

    def __init__(self, what: str, port: int, topic: str, qos: int) -> None:
        self.numbers: list[int] = []  # as they came
        self._port = port
        self._board = Board("micropython", "path_client.py", what, port, qos, topic)
        self._is_ready = self._is_done = False

    def resume(self, _port: int) -> bool:
        """At the start: wait until it is connected. It comes back by itself. Whether it had a session."""
        if self._is_ready:
            return True
        self._wait("_is_ready")
        return False

    def step(self, timeout_s: float) -> bool:
        """Take what it has said; False if nothing came in time."""
        has_come = False
        try:
            self._take(self._board.lines.get(timeout=timeout_s).strip())
            has_come = True
            while True:
                self._take(self._board.lines.get_nowait().strip())
        except queue.Empty:
            return has_come

    def _take(self, line: str) -> None:
        if line in ("ready", "done"):
            setattr(self, f"_is_{line}", True)
        else:
            assert line.isdigit(), f"the board's client said {line}\n" + "".join(self._board.rest())
            self.numbers.append(int(line))

    def finish(self) -> None:
        """Until everything is acknowledged and the program has ended."""
        teller = Peer("teller")
        teller.connect(self._port)
        teller.send(p.Publish("stop", b"", 1, packet_id=1))
        assert isinstance(teller.receive(10), p.Puback)
        teller.close()
        self._wait("_is_done")
        self._board.has_ended()

    def stop(self) -> None:
        self._board.stop()

    def _wait(self, flag: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not getattr(self, flag):
            assert time.monotonic() < deadline, f"the board's client is not {flag[4:]}; it has said {self.numbers[-3:]}"
            self.step(timeout_s=1)


class BoardPublisher(BoardPeer):
    def __init__(self, port: int, topic: str, qos: int) -> None:
        super().__init__("publish", port, topic, qos)

    @property
    def acknowledged(self) -> list[int]:
        """Numbers for which publish() has returned."""
        return self.numbers

    def step(self, may_publish: bool = True, timeout_s: float = 1.0) -> bool:
        """It publishes at its own pace, and stands still where it may not."""
        self._board.process.send_signal(signal.SIGCONT if may_publish else signal.SIGSTOP)
        return super().step(timeout_s)

    def finish(self) -> None:
        self._board.process.send_signal(signal.SIGCONT)
        super().finish()


class BoardSubscriber(BoardPeer):
    def __init__(self, port: int, topic: str, qos: int) -> None:
        super().__init__("subscribe", port, topic, qos)
