"""Flashing without hardware: files that are right and that are wrong, a directory as a UF2 drive, the real esptool on a
port where nobody answers."""

import hashlib
import os
import struct
import threading
import time
from functools import reduce
from operator import xor
from pathlib import Path

import pytest

from midge.boards import firmware, flash, profiles, uf2
from midge.boards.simulate import BoardError
from midge.cli import main

RP2040, RP2350 = 0xE48BFF56, 0xE48BFF59


def uf2_block(number: int, count: int, family: int, address: int, flags: int = 0x2000) -> bytes:
    head = struct.pack("<8I", 0x0A324655, 0x9E5D5157, flags, address, 256, number, count, family)
    return head + bytes([number & 255]) * 476 + struct.pack("<I", 0x0AB16F30)


def uf2_file(family: int = RP2040, count: int = 20, start: int = 0x10000000) -> bytes:
    return b"".join(uf2_block(n, count, family, start + 256 * n) for n in range(count))


def esp_image(chip_id: int, length: int = 1000) -> bytes:
    """As ESP-IDF's "App Image Format": a header, one segment, a checksum, a SHA-256."""
    data = bytes(number * 7 & 255 for number in range(length))
    image = struct.pack("<BBBBI", 0xE9, 1, 2, 0x20, 0x40080000)
    image += struct.pack("<BBBBHBHH4xB", 0xEE, 0, 0, 0, chip_id, 0, 0, 0xFFFF, 1)
    image += struct.pack("<II", 0x3FFB0000, len(data)) + data
    image += bytes(15 - len(image) % 16) + bytes([reduce(xor, data, 0xEF)])
    return image + hashlib.sha256(image).digest()


def esp_file(chip_id: int = 0, offset: int = 0x1000) -> bytes:
    table = struct.pack("<2sBBII16sI", b"\xaa\x50", 1, 2, 0x9000, 0x6000, b"nvs", 0)
    table += struct.pack("<2sBBII16sI", b"\xaa\x50", 0, 0, 0x10000, 0x1F0000, b"factory", 0)
    boot = esp_image(chip_id)
    return (boot.ljust(0x8000 - offset, b"\xff") + table).ljust(0x10000 - offset, b"\xff") + esp_image(chip_id, 5000)


@pytest.fixture
def save(tmp_path):
    def save(name: str, data: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return save


# ---- the files ----


@pytest.mark.parametrize(
    "name, data",
    [
        ("ESP32_GENERIC-20260406-v1.28.0.bin", esp_file()),
        ("ESP32_GENERIC_S3-20260406-v1.28.0.bin", esp_file(9, 0)),
        ("ESP32_GENERIC_C3-20260406-v1.28.0.bin", esp_file(5, 0)),
        ("RPI_PICO-20260406-v1.28.0.uf2", uf2_file()),
        ("RPI_PICO_W-20260406-v1.28.0.uf2", uf2_file()),
        # As picotool makes them: a block of no chip first, against errata E10 of the RP2350.
        ("RPI_PICO2_W-20260406-v1.28.0.uf2", uf2_block(0, 2, uf2.ABSOLUTE_FAMILY, 0x10FFFF00) + uf2_file(RP2350)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_board_is_known_by_its_firmwares_name_and_the_file_is_checked(save, capsys, name, data):
    path = save(name, data)
    assert main(["boards", "flash", "-", "--firmware", str(path), "--check"]) == 0
    assert f"{name}: its name is that of" in capsys.readouterr().out
    digest = hashlib.sha256(data).hexdigest()
    assert main(["boards", "flash", "-", "--firmware", str(path), "--check", "--sha256", digest]) == 0
    assert "its SHA-256 is right" in capsys.readouterr().out
    Path(f"{path}.sha256").write_text("0" * 64 + f"  {name}\n")
    assert main(["boards", "flash", "-", "--firmware", str(path), "--check"]) == 1
    assert "its SHA-256 is " in capsys.readouterr().err


ESP = "ESP32_GENERIC-20260406-v1.28.0.bin"
PICO = "RPI_PICO-20260406-v1.28.0.uf2"


@pytest.mark.parametrize(
    "board, name, data, why",
    [
        ("esp32", "ESP32_GENERIC_S3-20260406-v1.28.0.bin", b"", "isn't ESP32's firmware: it is ESP32-S3's"),
        ("esp32", "blink.bin", b"", r"ESP32's is ESP32_GENERIC-\*.bin; https://micropython.org/download/ESP32_GENERIC/"),
        ("esp32", ESP, b"<html>", "the boot loader isn't an image of an ESP32"),
        ("esp32", ESP, esp_file(9), "is for another chip: ESP32-S3, not ESP32"),
        ("esp32", ESP, esp_file()[:60000], r"its program \(factory\)|no partition table"),
        ("esp32", ESP, esp_file()[:-500], r"its program \(factory\) is damaged|checksum of its program"),
        ("esp32", ESP, esp_file().replace(bytes([7, 14]), bytes([7, 15]), 1), "the checksum of the boot loader"),
        ("esp32", ESP, esp_image(0), "no partition table where it belongs"),
        ("pico", PICO, uf2_file(RP2350), "is for another chip: its family is 0xe48bff59, RP2350's"),
        ("pico", PICO, uf2_file()[:-512], "1 of 20 blocks are missing"),
        ("pico", PICO, uf2_file()[:-100], "isn't a multiple of 512"),
        ("pico", PICO, uf2_file() + uf2_file()[:512], "doesn't fit the others"),
        ("pico", PICO, b"x" * 512, "block 0 has no UF2 magic"),
        ("pico", PICO, uf2_file(start=0x20000000), "isn't a firmware for this flash"),
        ("pico", PICO, uf2_block(0, 1, 0, 0x10000000, flags=0), "doesn't say which chip"),
        ("pico", PICO, uf2_block(0, 1, RP2040, 0x10000000, flags=0x2001), "nothing for the flash"),
        ("pico", PICO, uf2_block(3, 2, RP2040, 0x10000000), "block 0 is damaged"),
    ],
)
def test_a_file_that_is_wrong_is_refused_before_the_board_is_touched(save, board, name, data, why):
    path = save(name, data)
    with pytest.raises(BoardError, match=why):
        firmware.check(path, profiles.find(board))


def test_a_file_that_is_not_there_and_one_that_no_board_knows(tmp_path, capsys):
    with pytest.raises(BoardError, match="No such file"):
        firmware.check(tmp_path / PICO, profiles.find("pico"))
    assert main(["boards", "flash", "-", "--firmware", str(tmp_path / "blink.bin")]) == 1
    assert "give --board" in capsys.readouterr().err


# ---- RP2: the drive ----


def boot_loader(folder: Path, board_id: str = "RPI-RP2") -> Path:
    drive = folder / board_id
    drive.mkdir()
    (drive / "INFO_UF2.TXT").write_text(f"UF2 Bootloader v3.0\r\nModel: Raspberry Pi RP2\r\nBoard-ID: {board_id}\r\n")
    return drive


def boot_rom(drive: Path, size: int) -> threading.Thread:
    """Restarts the board, so that the drive goes, once all of a file is there."""

    def run() -> None:
        until = time.monotonic() + 20
        while not any(path.stat().st_size == size for path in drive.glob("*.uf2")) and time.monotonic() < until:
            time.sleep(0.01)
        (drive / "INFO_UF2.TXT").unlink()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_a_uf2_file_is_copied_to_the_drive_and_the_board_restarts(save, tmp_path, capsys):
    data = uf2_file(count=1000)
    drive = boot_loader(tmp_path)
    rom = boot_rom(drive, len(data))
    assert main(["boards", "flash", str(drive), "--firmware", str(save(PICO, data))]) == 0
    rom.join(10)
    assert (drive / PICO).read_bytes() == data
    assert "Raspberry Pi Pico runs MicroPython" in capsys.readouterr().out


def test_a_drive_that_is_none_or_anothers_is_refused(save, tmp_path, capsys):
    path = save(PICO, uf2_file())
    assert main(["boards", "flash", str(tmp_path), "--firmware", str(path)]) == 1
    assert "isn't a boot loader's drive: it has no INFO_UF2.TXT. hold BOOTSEL" in capsys.readouterr().err
    drive = boot_loader(tmp_path, "RP2350")
    assert main(["boards", "flash", str(drive), "--firmware", str(path)]) == 1
    assert "is the boot loader of another board: RP2350, not RPI-RP2" in capsys.readouterr().err
    assert not list(drive.glob("*.uf2"))


def test_a_copy_that_breaks_off_says_what_to_do(save, tmp_path, monkeypatch):
    profile = profiles.find("pico")
    drive = boot_loader(tmp_path)
    file = firmware.check(save(PICO, uf2_file(count=1000)), profile)

    def unplug(count: int) -> None:
        raise OSError(5, "Input/output error")

    with pytest.raises(BoardError, match=r"Input/output error after 65,536 of 512,000 bytes.* run the same command"):
        flash.flash_uf2(drive, file, profile, on_bytes=unplug)
    assert not (drive / PICO).exists()
    with pytest.raises(BoardError, match="the board has not restarted"):
        flash.flash_uf2(drive, file, profile, restart_s=0.05)


def test_the_drive_of_the_right_board_is_found_where_desktops_mount_it(tmp_path):
    profile = profiles.find("pico2-w")
    mounts = [str(tmp_path / "*")]
    with pytest.raises(BoardError, match="no drive RP2350 was mounted: hold BOOTSEL"):
        flash.wait_for_drive(profile, 0, mounts)
    boot_loader(tmp_path)
    drive = boot_loader(tmp_path, "RP2350")
    assert flash.wait_for_drive(profile, 0, mounts) == drive
    other = tmp_path / "RP2350-1"
    drive.rename(other)
    boot_loader(tmp_path, "RP2350")
    with pytest.raises(BoardError, match="there are several boot loaders"):
        flash.wait_for_drive(profile, 0, mounts)
    assert flash.wait_for_drive(profile, 0, mounts, before=[other]) == drive


# ---- ESP32: esptool ----


def test_esptool_on_a_port_where_nobody_answers_is_a_plain_error(save, capsys):
    path = save(ESP, esp_file())
    ours, theirs = os.openpty()
    try:
        began = time.monotonic()
        assert main(["boards", "flash", os.ttyname(theirs), "--firmware", str(path), "--attempts", "1"]) == 1
        assert time.monotonic() - began < 40
    finally:
        os.close(ours)
        os.close(theirs)
    err = capsys.readouterr().err
    assert "Failed to connect to ESP32" in err and "Nothing was written" in err and "Traceback" not in err
    assert main(["boards", "flash", "/dev/ttyUSB99", "--firmware", str(path), "--attempts", "1"]) == 1
    err = capsys.readouterr().err
    assert "/dev/ttyUSB99" in err and "Traceback" not in err


def test_esptool_gets_chip_offset_and_file_and_its_failure_half_way_is_told(save, tmp_path, monkeypatch):
    """In the place of esptool, a program that says what the real one says when the cable is pulled."""
    profile = profiles.find("esp32-s3")
    file = firmware.check(save("ESP32_GENERIC_S3-20260406-v1.28.0.bin", esp_file(9, 0)), profile)
    (tmp_path / "esptool.py").write_text(
        "import sys\nopen('said', 'w').write(' '.join(sys.argv[1:]))\n"
        "print('Writing at 0x00000000... (3 %)')\nprint('A fatal error occurred: Lost connection')\nsys.exit(2)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    said: list[bytes] = []
    with pytest.raises(BoardError, match=r"COM4: Lost connection\nThe board may have no whole firmware now"):
        flash.flash_esp("COM4", file, profile, is_erased=True, on_output=said.append)
    words = (tmp_path / "said").read_text().split()
    assert words == ["--chip", "esp32s3", "--port", "COM4", "--baud", "460800", "write-flash", "--erase-all", "0x0",
                     str(file.path)]  # fmt: skip
    assert b"Writing at" in b"".join(said)
