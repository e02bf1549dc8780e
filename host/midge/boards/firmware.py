"""Is this file the official MicroPython for this board? Its name, its checksum, the chip that it says it is for.
Knows nothing of how it is flashed. All is checked before anything is erased.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import io
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from midge.boards import uf2
from midge.boards.profiles import Profile, load_all
from midge.boards.simulate import BoardError

# ESP-IDF, "App Image Format": esp_image_header_t, its magic, and chip_id at 12.
_ESP_MAGIC = 0xE9
_ESP_CHIP_ID = struct.Struct("<12xH")
# ESP-IDF, "Partition Tables": at 0x8000 of the flash, entries of 32 bytes that begin with AA 50.
_PARTITIONS_AT = 0x8000
_PARTITION = struct.Struct("<2sBBII16sI")
_PARTITION_MAGIC = b"\xaa\x50"
_APP = 0


@dataclass(frozen=True)
class Firmware:
    path: Path
    data: bytes
    sha256: str
    notes: tuple[str, ...]
    """What was checked, for the user to read."""


def check(path: Path, profile: Profile, sha256: str | None = None) -> Firmware:
    """*path*'s content, if it may be flashed onto *profile*'s board. `BoardError` says why not."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BoardError(f"{path}: {error.strerror}") from None
    _check_name(path, profile)
    notes = [f"its name is that of {profile.name}'s firmware"]
    digest = hashlib.sha256(data).hexdigest()
    wanted = sha256 or profile.flash.sha256.get(path.name) or _beside(path)
    if wanted is not None:
        if digest != wanted.lower():
            raise BoardError(f"{path}: its SHA-256 is {digest}, not {wanted}: download it again")
        notes.append("its SHA-256 is right")
    if profile.flash.method == "esptool":
        notes += _check_esp(path, data, profile)
    else:
        notes.append(_check_uf2(path, data, profile))
    return Firmware(path, data, digest, tuple(notes))


def _check_name(path: Path, profile: Profile) -> None:
    if fnmatch.fnmatchcase(path.name, profile.flash.firmware):
        return
    others = [p.name for p in load_all().values() if fnmatch.fnmatchcase(path.name, p.flash.firmware)]
    hint = f"it is {others[0]}'s" if others else f"{profile.name}'s is {profile.flash.firmware}"
    raise BoardError(f"{path.name} isn't {profile.name}'s firmware: {hint}; {profile.flash.download} has it")


def _beside(path: Path) -> str | None:
    """FILE.sha256, as `sha256sum FILE` writes it."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        found = re.match(r"[0-9a-fA-F]{64}\b", Path(f"{path}.sha256").read_text(encoding="utf-8"))
        return found.group() if found else None
    return None


def _check_uf2(path: Path, data: bytes, profile: Profile) -> str:
    try:
        contents = uf2.read(data)
    except uf2.Uf2Error as error:
        raise BoardError(f"{path.name}: {error}; download it again") from None
    if not contents.families <= set(profile.flash.families):
        found = ", ".join(f"{family:#x}" for family in sorted(contents.families))
        owner = next((p.chip for p in load_all().values() if contents.families <= set(p.flash.families)), None)
        raise BoardError(f"{path.name} is for another chip: its family is {found}" + (f", {owner}'s" if owner else ""))
    end = uf2.FLASH_START + (profile.flash.flash_bytes or 0)
    if contents.start != uf2.FLASH_START or contents.end > end:
        raise BoardError(
            f"{path.name} isn't a firmware for this flash: it fills {contents.start:#x} to {contents.end:#x}"
        )
    return f"all of its {contents.blocks:,} blocks are there, for a {profile.chip}"


def _check_esp(path: Path, data: bytes, profile: Profile) -> list[str]:
    """The image of the boot loader at its start, and the program that the partition table points to."""
    offset = profile.flash.offset or 0
    _check_esp_image(path, data, profile, "the boot loader")
    notes = [f"it is for an {profile.chip}"]
    at = _PARTITIONS_AT - offset
    programs = 0
    while data[at : at + 2] == _PARTITION_MAGIC:
        _, kind, _, address, _, label, _ = _PARTITION.unpack_from(data, at)
        at += _PARTITION.size
        if kind == _APP and address - offset < len(data):
            name = label.rstrip(b"\0").decode("ascii", "replace")
            _check_esp_image(path, data[address - offset :], profile, f"its program ({name})")
            programs += 1
    if not programs:
        raise BoardError(f"{path.name} has no partition table where it belongs: it is cut, or not a whole firmware")
    notes.append("the checksums of its boot loader and its program are right")
    return notes


def _check_esp_image(path: Path, data: bytes, profile: Profile, what: str) -> None:
    if len(data) < 24 or data[0] != _ESP_MAGIC:
        raise BoardError(f"{path.name}: {what} isn't an image of an ESP32: it is cut, or not a firmware")
    (chip_id,) = _ESP_CHIP_ID.unpack_from(data)
    if chip_id != profile.flash.chip_id:
        owner = next((p.name for p in load_all().values() if p.flash.chip_id == chip_id), f"chip {chip_id}")
        raise BoardError(f"{path.name} is for another chip: {owner}, not {profile.name}")
    try:
        from esptool.bin_image import LoadFirmwareImage
    except ImportError:
        raise BoardError("this needs esptool: pip install 'midge[boards]'") from None
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            image = LoadFirmwareImage(profile.flash.chip, data)
    except Exception as error:  # noqa: BLE001 - esptool raises its own, struct's and others for a damaged image
        raise BoardError(f"{path.name}: {what} is damaged: {error}") from None
    # A SHA-256 is appended where the header says so: always by ESP-IDF's build, which MicroPython's uses.
    is_whole = not image.append_digest or image.stored_digest == image.calc_digest
    if image.checksum != image.calculate_checksum() or not is_whole:
        raise BoardError(f"{path.name}: the checksum of {what} is wrong: download it again")
