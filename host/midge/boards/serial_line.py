"""A serial cable without wires: two pseudo-terminals, and between them a line with a speed and an error rate.
Knows nothing of what is sent. The board's end behaves as a UART that is read without waiting.
"""

from __future__ import annotations

import os
import random
import select
import termios
import threading
import time
import tty

# s between two looks at the line: shorter than the 1 ms that a UART's interrupt takes costs a whole core.
STEP_S = 0.001


class SerialLine:
    """`host_port` and `board_port` are paths to open. Use it as a context manager."""

    def __init__(self, seed: int, error_rate: float = 0.0, baud: int = 115_200):
        """*error_rate*: of a bit; bytes are lost and doubled at the same rate."""
        self.bytes_carried = 0
        self._random = random.Random(seed)
        self._error_rate = error_rate
        self._bytes_per_s = baud / 10  # a start bit, eight, a stop bit
        self._is_cut = False
        self._ends = [_open_terminal(), _open_terminal()]  # (our side, their side)
        self.host_port, self.board_port = (os.ttyname(theirs) for _, theirs in self._ends)
        self._is_running = True
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def cut(self, is_cut: bool) -> None:
        """Nothing gets through until it is mended."""
        self._is_cut = is_cut

    def _run(self) -> None:
        waiting = [bytearray(), bytearray()]
        free_at = [time.monotonic()] * 2  # when the line has carried all that was put on it
        while self._is_running:
            # Only what the line has room for is taken: the rest stays with the sender, as in a UART.
            readable, _, _ = select.select([ours for ours, _ in self._ends], [], [], STEP_S)
            now = time.monotonic()
            for i in (0, 1):
                ours, other = self._ends[i][0], self._ends[1 - i][0]
                if ours in readable and len(waiting[i]) < 256:
                    waiting[i] += os.read(ours, 256)
                    free_at[i] = max(free_at[i], now - STEP_S)
                count = min(len(waiting[i]), int((now - free_at[i]) * self._bytes_per_s))
                if count > 0:
                    data, waiting[i] = waiting[i][:count], waiting[i][count:]
                    free_at[i] += count / self._bytes_per_s
                    self.bytes_carried += count
                    if not self._is_cut:
                        os.write(other, self._damage(data))
            if any(waiting):
                time.sleep(STEP_S)

    def _damage(self, data: bytearray) -> bytes:
        rate = self._error_rate
        if not rate:
            return bytes(data)
        carried = bytearray()
        chance = self._random.random
        for byte in data:
            if chance() < 8 * rate:
                byte ^= 1 << self._random.randrange(8)
            if chance() < rate:
                continue
            carried.append(byte)
            if chance() < rate:
                carried.append(byte)
        return bytes(carried)

    def __enter__(self) -> SerialLine:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_running = False
        self._thread.join()
        for pair in self._ends:
            for fd in pair:
                os.close(fd)


def _open_terminal() -> tuple[int, int]:
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    attributes = termios.tcgetattr(theirs)
    attributes[6][termios.VMIN] = attributes[6][termios.VTIME] = 0  # reading doesn't wait, as a UART's timeout=0
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    return ours, theirs
