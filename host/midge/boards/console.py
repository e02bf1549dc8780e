"""A board's console: code run in MicroPython's raw REPL over a serial port, files written and checked by hash.
Knows nothing of what the files are for. mpremote does the talking.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

from midge.boards.simulate import BoardError

# What a board takes in one go: it must compile the line and hold the bytes, beside whatever ran before.
_WRITE_BYTES = 512

# A board whose program is busy is interrupted by Ctrl-C; one that doesn't answer within this time has no REPL there.
_ANSWER_S = 6.0
# Ctrl-C is lost on a board that is just starting (ESP32 takes 0.6 s, RP2 up to 3 with its radio), so it comes again.
_ATTEMPT_S = 1.5
# Another program may have a port for a moment: ModemManager looks at each that is plugged in, and a command that has
# ended may still be letting go of it.
_BUSY_S = 2.0
# Between two bytes of an answer: a board that erases flash, or hashes a large file, is silent for a second or two.
_RUN_S = 10.0

_HASHES = """
import binascii, hashlib, json
def _hash(path):
    try:
        file = open(path, "rb")
    except OSError:
        return None
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(512))
    while True:
        count = file.readinto(buffer)
        if not count:
            break
        digest.update(buffer[:count])
    file.close()
    return binascii.hexlify(digest.digest()).decode()
print(json.dumps([_hash(path) for path in {paths!r}]))
"""


class Console:
    """Use it as a context manager: the board's program is interrupted on entering. It goes on after `reset`."""

    def __init__(self, port: str) -> None:
        self.port = port
        self._transport: Any = None
        self._is_lost = False  # set by `run`: nothing more can be said to the board

    def __enter__(self) -> Console:
        self._transport = open_port(self.port)
        until = time.monotonic() + _ANSWER_S
        attempts = 0  # that failed
        try:
            while not self._interrupt():
                if time.monotonic() > until:
                    raise BoardError(
                        f"{self.port}: no MicroPython answers there. Is it flashed (midge boards flash), is the port "
                        "right, is its program deaf to Ctrl-C? Press the board's RESET and try again."
                    )
                attempts += 1
            if attempts:
                self._synchronise()
        except BaseException:
            self._transport.close()
            raise
        return self

    def _interrupt(self) -> bool:
        """One attempt to get into the raw REPL."""
        said = io.StringIO()  # mpremote prints what it got when there is no REPL
        serial = self._transport.serial
        try:
            with contextlib.redirect_stdout(said):
                serial.timeout = 0.2  # for each read: on a pseudo-terminal mpremote waits in it
                # Without a soft reset: it would not stop a watchdog, but the timer that feeds it meanwhile.
                self._transport.enter_raw_repl(soft_reset=False, timeout_overall=_ATTEMPT_S)
                serial.timeout = _ANSWER_S
        except OSError:
            raise BoardError(f"{self.port}: the port is gone (unplugged, or the board was reset)") from None
        except Exception:  # noqa: BLE001 - mpremote's own
            return False
        return True

    def _synchronise(self) -> None:
        """A slow board answers the attempts before as well: waits until it is silent, and asks for one more prompt."""
        serial = self._transport.serial
        silent = 0
        while silent < 3:
            time.sleep(0.05)
            waiting = serial.in_waiting
            if waiting:
                serial.read(waiting)
            silent = 0 if waiting else silent + 1
        serial.write(b"\r\x01")
        prompt = b"raw REPL; CTRL-B to exit\r\n"
        if not self._transport.read_until(1, prompt, timeout_overall=_ANSWER_S).endswith(prompt):
            raise BoardError(f"{self.port}: what answers there is not MicroPython's REPL")

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            if self._transport.in_raw_repl and not self._is_lost:
                self._transport.exit_raw_repl()
        self._transport.close()

    def run(self, code: str) -> str:
        """What *code* prints. `BoardError` with the last line of its traceback if it fails."""
        try:
            said, error = self._transport.exec_raw(code, timeout=_RUN_S)
        except Exception as lost:  # noqa: BLE001 - mpremote's own, pyserial's, struct's for half an answer
            self._is_lost = True
            raise BoardError(f"{self.port}: the connection to the board was lost: {lost}") from None
        if error:
            raise BoardError(f"{self.port}: the board says: {_last_line(error.decode('utf-8', 'replace'))}")
        return str(said.decode("utf-8", "replace"))

    def ask(self, code: str) -> Any:
        """What *code* prints as JSON."""
        said = self.run(code)
        try:
            return json.loads(said)
        except ValueError:
            raise BoardError(f"{self.port}: the board's answer makes no sense: {said[:200]!r}") from None

    def hashes(self, paths: Iterable[str]) -> dict[str, str | None]:
        """SHA-256 of each file in hex; None for a file that isn't there."""
        wanted = list(paths)
        if not wanted:
            return {}
        return dict(zip(wanted, self.ask(_HASHES.replace("{paths!r}", repr(wanted))), strict=True))

    def write(self, path: str, data: bytes, on_bytes: Callable[[int], None] = lambda count: None) -> None:
        """Writes the file *path*; *on_bytes* is told how many bytes went over. What was there before is gone."""
        self.run(f"import binascii\n_file = open({path!r}, 'wb')\n_unpack = binascii.a2b_base64")
        for at in range(0, len(data), _WRITE_BYTES):
            chunk = data[at : at + _WRITE_BYTES]
            self.run(f"_file.write(_unpack({base64.b64encode(chunk)!r}))")
            on_bytes(len(chunk))
        self.run("_file.close()")

    def read(self, path: str) -> bytes | None:
        """A small file, or None."""
        code = (
            f"import binascii\ntry:\n    print(binascii.b2a_base64(open({path!r}, 'rb').read()).decode())\n"
            "except OSError:\n    print('-')"
        )
        said = self.run(code).strip()
        return None if said == "-" else base64.b64decode(said)

    def replace(self, path: str, data: bytes) -> None:
        """Writes the file *path* so that there is always the old one or the new one."""
        self.write(path + ".new", data)
        self.run(f"import os\nos.rename({path + '.new'!r}, {path!r})")

    def start(self, code: str) -> None:
        """Runs *code* that ends the connection: a reset, the boot loader."""
        if self._is_lost:
            return
        with contextlib.suppress(Exception):
            self._transport.exec_raw_no_follow(code)
            self._transport.in_raw_repl = False

    def reset(self) -> None:
        """Resets the chip, so that its program runs from the start."""
        # Where `machine` is Python (a stand-in's), Ctrl-C may have come in the midst of its import.
        self.start("import sys\nsys.modules.pop('machine', None)\nimport machine\nmachine.reset()")


def open_port(port: str) -> Any:
    """mpremote's transport to *port*. `BoardError` in plain words where that can't be opened."""
    try:
        import serial
        from mpremote.transport import TransportError
        from mpremote.transport_serial import SerialTransport
    except ImportError:
        raise BoardError("this needs mpremote: pip install 'midge[boards]'") from None
    until = time.monotonic() + _BUSY_S
    while True:
        try:
            serial.serial_for_url(port, do_not_open=True)
            return SerialTransport(port, baudrate=115_200)
        except (TransportError, OSError, ValueError):
            if why := _why_closed(port):
                raise BoardError(why) from None
            if time.monotonic() > until:
                busy = "another program may have it (a broker, a terminal)"
                raise BoardError(f"{port}: can't be opened as a serial port; {busy}") from None
        time.sleep(0.05)


def _why_closed(port: str) -> str:
    """"": it isn't; it can be opened, though not by us alone."""
    import errno
    import os

    if "://" in port:
        return f"{port}: nobody answers there"
    try:
        os.close(os.open(port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return f"{port}: there is no such port. 'midge boards list' shows what there is"
        if error.errno == errno.EACCES:
            return f"{port}: you may not open it: sudo usermod -aG dialout $USER, then log in again"
        return f"{port}: {error.strerror}"
    return ""


def _last_line(traceback: str) -> str:
    lines = traceback.replace("\r", "").strip().splitlines()
    return lines[-1] if lines else "nothing"
