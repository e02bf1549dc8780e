"""Boards on this computer: serial ports that can be a board's, and drives of boot loaders.
Knows nothing of what runs on them: a port is listed by its USB numbers, nothing is opened.
"""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

from midge.boards.flash import _MOUNTS, board_id
from midge.boards.profiles import load_all


@dataclass(frozen=True)
class Port:
    device: str
    boards: list[str]
    """Profiles that such a port may belong to; a UART bridge doesn't say which board is behind it."""
    product: str
    serial_number: str | None
    is_boot_loader: bool = False


def find() -> list[Port]:
    return [*_serial_ports(), *_drives()]


def _serial_ports() -> list[Port]:
    from serial.tools import list_ports

    found = []
    for port in sorted(list_ports.comports(), key=lambda each: each.device):
        if port.vid is None:
            continue
        number = f"{port.vid:04x}:{port.pid:04x}"
        boards = [profile.key for profile in load_all().values() if number in profile.usb]
        if boards:
            found.append(Port(port.device, boards, port.product or number, port.serial_number))
    return found


def _drives() -> list[Port]:
    found = []
    for path in sorted({Path(path) for pattern in _MOUNTS for path in glob.glob(pattern)}):
        name = board_id(path)
        if name:
            boards = [profile.key for profile in load_all().values() if profile.flash.board_id == name]
            found.append(Port(str(path), boards, f"boot loader {name}", None, True))
    return found
