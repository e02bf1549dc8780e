"""A board on a serial cable: MicroPython's unix port behind a pseudo-terminal, with a directory as its flash.

As a board does, it runs main.py and gives the REPL when that is interrupted by Ctrl-C; a reset, and a power cut, start
it anew. Knows nothing of what is on the flash.
"""

import fcntl
import os
import re
import select
import signal
import subprocess
import termios
import threading
import time
import tty
from pathlib import Path

import brokers

STAND_INS = brokers.ROOT / "host" / "midge" / "sim" / "on_board"
DEADLINE_S = 30


class BoardOnACable:
    """`port` is what a program opens. Use it as a context manager."""

    def __init__(self, folder: Path, heap: str = "512k", env: dict[str, str] | None = None):
        self.flash = folder / "flash"
        self.flash.mkdir(exist_ok=True)
        self.starts = 0
        self.cut_after: int | None = None  # bytes from the laptop after which the cable is unplugged
        self._env = {
            **os.environ,
            "MICROPYPATH": ":".join((".frozen", str(self.flash), str(self.flash / "lib"), str(STAND_INS))),
            "MIDGE_BOARD": str(folder),
            **(env or {}),
        }
        self._heap = heap
        self._said = bytearray()
        self.carried = 0  # bytes from the laptop so far
        self._is_on = True
        self._ours, self._theirs = _open_terminal()
        self.port = os.ttyname(self._theirs)
        self._board, self._tty = _open_terminal()
        self.process: subprocess.Popen | None = None
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._carry, self._supply_power)]

    def __enter__(self) -> "BoardOnACable":
        for thread in self._threads:
            thread.start()
        self.wait(lambda: self.starts)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_on = False
        while any(thread.is_alive() for thread in self._threads):
            if self.process:
                self.process.kill()  # a reset may have started another one just now
            time.sleep(0.02)
        print(f"the board was started {self.starts} times and said last:\n{self.text()[-2000:]!r}")
        for fd in (self._ours, self._theirs, self._board, self._tty):
            os.close(fd)

    def cut_power(self) -> None:
        """The process ends at once and starts anew."""
        starts = self.starts
        self.process.send_signal(signal.SIGKILL)
        self.wait(lambda: self.starts > starts)

    def text(self) -> str:
        """All that was said so far."""
        return self._said.decode("utf-8", "replace")

    def wait_for(self, pattern: str, after: int = 0) -> re.Match[str]:
        return self.wait(lambda: re.search(pattern, self.text()[after:]), pattern)

    def wait(self, condition, what: str = "it"):
        until = time.monotonic() + DEADLINE_S
        while not (result := condition()):
            assert time.monotonic() < until, f"waited for {what}; the board said: {self.text()[-2000:]}"
            time.sleep(0.01)
        return result

    def _supply_power(self) -> None:
        while self._is_on:
            # While a program runs, Ctrl-C on the console interrupts it, and no other character does, as on a board.
            # A program that was killed in its REPL left the terminal raw.
            attributes = termios.tcgetattr(self._tty)
            attributes[3] |= termios.ISIG
            attributes[6][termios.VINTR] = b"\x03"
            attributes[6][termios.VQUIT] = attributes[6][termios.VSUSP] = b"\0"
            attributes[6][termios.VMIN] = attributes[6][termios.VTIME] = 0  # reading doesn't wait, as on a board's USB
            termios.tcsetattr(self._tty, termios.TCSANOW, attributes)
            main = ["-i", "main.py"] if (self.flash / "main.py").exists() else []
            try:
                self.process = subprocess.Popen(
                    [brokers.micropython(), "-X", f"heapsize={self._heap}", *main], cwd=self.flash, env=self._env,
                    stdin=self._tty, stdout=self._tty, stderr=self._tty, start_new_session=True,
                    preexec_fn=_begin,
                )  # fmt: skip
            except subprocess.SubprocessError:
                # Seen once in some fifty starts on a busy machine: `_begin` fails, most likely because the terminal is
                # the last process's session's for a moment still.
                time.sleep(0.05)
                continue
            self.starts += 1
            self.process.wait()

    def _carry(self) -> None:
        while self._is_on:
            readable, _, _ = select.select([self._ours, self._board], [], [], 0.1)
            if self._ours in readable:
                data = os.read(self._ours, 4096)
                self.carried += len(data)
                if self.cut_after is None or self.carried <= self.cut_after:
                    os.write(self._board, data)
            if self._board in readable:
                data = os.read(self._board, 4096)
                self._said += data
                if self.cut_after is None or self.carried <= self.cut_after:
                    os.write(self._ours, data)


def _begin() -> None:
    """In the new process: its console is the cable, and Ctrl-C is lost until MicroPython listens, as on a board."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _open_terminal() -> tuple[int, int]:
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    return ours, theirs
