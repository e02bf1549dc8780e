"""Puts MicroPython onto a board: esptool for ESP32, a copy onto the boot loader's drive for RP2040 and RP2350.
Knows nothing of what is in the file; firmware.py has checked that.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from midge.boards.console import Console
from midge.boards.firmware import Firmware
from midge.boards.profiles import Profile
from midge.boards.simulate import BoardError

# Where desktops mount a drive that was plugged in: udisks2 on Debian and on Fedora, by hand, macOS.
_MOUNTS = ("/media/*/*", "/run/media/*/*", "/mnt/*", "/media/*", "/Volumes/*")
_INFO = "INFO_UF2.TXT"
_PIECE_BYTES = 65_536

# From machine.bootloader() until a desktop has mounted the drive; until the boot ROM has restarted the board.
DRIVE_S = 30.0
RESTART_S = 15.0


def flash_esp(
    port: str,
    firmware: Firmware,
    profile: Profile,
    *,
    is_erased: bool = False,
    attempts: int | None = None,
    on_output: Callable[[bytes], None] = lambda data: None,
) -> None:
    """Runs esptool, which also reads back a hash of what it wrote. `BoardError` with what it says and what to do."""
    flash = profile.flash
    command = [sys.executable, "-P", "-m", "esptool", "--chip", str(flash.chip), "--port", port]
    command += ["--baud", str(flash.baud)]
    if attempts is not None:
        command += ["--connect-attempts", str(attempts)]
    command += ["write-flash", *(["--erase-all"] if is_erased else []), hex(flash.offset or 0), str(firmware.path)]
    said = b""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL) as tool:
        assert tool.stdout is not None
        while data := os.read(tool.stdout.fileno(), 4096):
            said = (said + data)[-8192:]
            on_output(data)
    if tool.returncode:
        raise BoardError(_why(said.decode("utf-8", "replace"), port, profile))


def _why(said: str, port: str, profile: Profile) -> str:
    if "No module named esptool" in said:
        return "this needs esptool: pip install 'midge[boards]'"
    fatal = re.search(r"fatal error occurred: (.*)", said)
    last = said.strip().splitlines()
    what = fatal.group(1).strip() if fatal else last[-1].strip() if last else "esptool failed without a word"
    begun = re.search(r"Writing at|Wrote|Erasing flash|erased", said)
    after = (
        "The board may have no whole firmware now: run the same command again"
        if begun
        else f"Nothing was written. {profile.flash.bootloader}"
    )
    return f"{port}: {what}\n{after}"


def find_drives(profile: Profile, mounts: Iterable[str] = _MOUNTS) -> list[Path]:
    """Drives of boot loaders that are for *profile*'s chip."""
    candidates = sorted({Path(path) for pattern in mounts for path in glob.glob(pattern)})
    return [path for path in candidates if board_id(path) == profile.flash.board_id]


def board_id(drive: Path) -> str | None:
    """What INFO_UF2.TXT on a boot loader's drive says; None: it is no such drive."""
    try:
        text = (drive / _INFO).read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(r"^Board-ID:\s*(\S+)", text, re.MULTILINE)
    return found.group(1) if found else ""


def enter_boot_loader(port: str) -> None:
    """RP2040, RP2350 with MicroPython on them: as if BOOTSEL had been held."""
    with Console(port) as console:
        console.start("import machine\nmachine.bootloader()")


def wait_for_drive(
    profile: Profile, seconds: float = DRIVE_S, mounts: Iterable[str] = _MOUNTS, before: Iterable[Path] = ()
) -> Path:
    """The one drive of a boot loader for *profile*'s chip."""
    patterns = list(mounts)
    until = time.monotonic() + seconds
    while True:
        drives = [drive for drive in find_drives(profile, patterns) if drive not in set(before)]
        if len(drives) == 1:
            return drives[0]
        if drives:
            names = ", ".join(map(str, drives))
            raise BoardError(f"there are several boot loaders: {names}. Give one of them in the place of the port")
        if time.monotonic() > until:
            raise BoardError(
                f"no drive {profile.flash.volume} was mounted: {profile.flash.bootloader}. If it is mounted elsewhere, "
                "give its directory in the place of the port"
            )
        time.sleep(0.2)


def flash_uf2(
    drive: Path,
    firmware: Firmware,
    profile: Profile,
    *,
    restart_s: float = RESTART_S,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> None:
    """Copies the file onto the boot loader's *drive* and waits until the board has restarted with it."""
    found = board_id(drive)
    if found is None:
        raise BoardError(f"{drive} isn't a boot loader's drive: it has no {_INFO}. {profile.flash.bootloader}")
    if found != profile.flash.board_id:
        raise BoardError(f"{drive} is the boot loader of another board: {found}, not {profile.flash.board_id}")
    target = drive / firmware.path.name
    written = 0
    try:
        with target.open("wb", buffering=0) as file:
            for at in range(0, len(firmware.data), _PIECE_BYTES):
                count = file.write(firmware.data[at : at + _PIECE_BYTES])
                written += count
                on_bytes(count)
            os.fsync(file.fileno())
    except OSError as error:
        # The boot ROM restarts the board with the last block: the drive goes while we close the file.
        if written < len(firmware.data):
            with contextlib.suppress(OSError):
                target.unlink()
            raise BoardError(
                f"{drive}: {error.strerror} after {written:,} of {len(firmware.data):,} bytes. The board waits in its "
                "boot loader: run the same command again"
            ) from None
    until = time.monotonic() + restart_s
    while board_id(drive) is not None:
        if time.monotonic() > until:
            raise BoardError(f"{drive}: the board has not restarted: it didn't take the file. Run the command again")
        time.sleep(0.1)
