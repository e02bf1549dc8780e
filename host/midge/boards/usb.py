"""Boards on USB: which there are, whether we may open them, and which firmware is on them.
Knows serial ports and MicroPython's raw REPL, nothing of MQTT.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# USB vendors of boards that run MicroPython, and of the UART chips on such boards; what else is on USB isn't shown
# unless it is asked for. From MicroPython's ports and the Linux kernel's usb-serial drivers.
VENDORS = {
    0x2E8A: "Raspberry Pi (RP2040, RP2350)",
    0x303A: "Espressif (ESP32)",
    0xF055: "MicroPython (pyboard)",
    0x10C4: "Silicon Labs CP210x (many ESP32 boards)",
    0x1A86: "WCH CH340 (many ESP boards)",
    0x0403: "FTDI",
    0x239A: "Adafruit",
    0x2341: "Arduino",
}

_ANSWER_S = 5.0
_QUESTION = b"import sys; print(sys.implementation[0], '.'.join(map(str, sys.implementation[1][:3])), sys.platform)"


@dataclass(frozen=True)
class SerialPort:
    """*what* is the maker of the board or of its USB chip."""

    device: str
    what: str
    product: str | None = None
    serial_number: str | None = None


def serial_ports(is_all: bool = False) -> list[SerialPort]:
    """Ports that can be a board's, or all; none where pyserial isn't installed."""
    try:
        from serial.tools import list_ports
    except ImportError:
        return []
    found = []
    for port in sorted(list_ports.comports(), key=lambda each: each.device):
        what = VENDORS.get(port.vid or 0)
        if what or is_all:
            found.append(SerialPort(port.device, what or port.description or "?", port.product, port.serial_number))
    return found


def why_not_ours(device: str) -> tuple[str, str]:
    """Why we may not open the port, and what to do; two empty texts if we may."""
    path = Path(device)
    if not path.exists():
        return f"{device} is gone", "plug it in again, by a cable that carries data"
    if os.access(path, os.R_OK | os.W_OK):
        return "", ""
    import grp
    import pwd

    group = grp.getgrgid(path.stat().st_gid)
    user = pwd.getpwuid(os.geteuid()).pw_name
    text = f"{device} belongs to group {group.gr_name}, and user {user} may not open it"
    if user in group.gr_mem and group.gr_gid not in os.getgroups():
        return text, "you are in that group since you logged in: log out and in again"
    return text, f"sudo usermod -aG {group.gr_name} {user}, then log out and in again"


class NoAnswer(Exception):
    """The board doesn't answer; the text says what was tried."""


def firmware_of(device: str) -> str:
    """`micropython 1.28.0 esp32`. Interrupts the board's program and starts it again (a soft reset)."""
    import serial

    try:
        with serial.Serial(device, 115_200, timeout=0.2) as port:
            port.write(b"\r\x03\x03\r\x01")  # end the program, enter the raw REPL
            _read_until(port, b"raw REPL; CTRL-B to exit\r\n>")
            port.write(_QUESTION + b"\x04")
            told = _read_until(port, b"\x04")
            port.write(b"\x02\x04")  # leave it, and start the program again
            answer = told.partition(b"OK")[2].partition(b"\x04")[0]
            return answer.decode("utf-8", "replace").strip()
    except serial.SerialException as error:
        raise NoAnswer(str(error)) from None


def _read_until(port: Any, end: bytes) -> bytes:
    data = b""
    deadline = time.monotonic() + _ANSWER_S
    while end not in data:
        if time.monotonic() > deadline:
            raise NoAnswer(f"no REPL answers within {_ANSWER_S:g} s")
        data += port.read(max(1, port.in_waiting))
    return data
