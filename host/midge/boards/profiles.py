"""What is known of each board: how it is flashed, what fits, what it draws. Read from firmware/boards/*.toml.
Knows nothing of how that is used.

A key that has no source isn't in the file: `None` here means that nobody is known to have measured it.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from midge.boards.simulate import BoardError

# As mpy-cross names them; it matters for native code only, of which our files have none.
Architecture = Literal["xtensawin", "rv32imc", "armv6m", "armv7emsp"]
Text = Annotated[str, Field(min_length=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(_Table):
    """A number and who says so: a data sheet with its section, a page, a thread."""

    value: float = Field(ge=0)
    source: Text


class Flash(_Table):
    method: Literal["esptool", "uf2"]
    firmware: Text
    """The file names of MicroPython's official firmware for the board, with * for what changes."""
    download: Text
    bootloader: Text
    """What to do with the board's buttons so that it can be flashed."""
    source: Text
    sha256: dict[str, str] = {}
    """Checksums of files by name, as far as they are known."""

    # method "esptool"
    chip: str | None = None
    chip_id: int | None = None
    """As in the image's header, so that another chip's file is refused before anything is erased."""
    offset: int | None = None
    baud: int = 460_800

    # method "uf2"
    families: list[int] = []
    volume: str | None = None
    board_id: str | None = None
    """As INFO_UF2.TXT on the boot loader's drive says it."""
    flash_bytes: int | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> Flash:
        if self.method == "esptool" and None in (self.chip, self.chip_id, self.offset):
            raise ValueError("esptool needs chip, chip_id and offset")
        if self.method == "uf2" and not (self.families and self.volume and self.board_id and self.flash_bytes):
            raise ValueError("uf2 needs families, volume, board_id and flash_bytes")
        return self


class Heap(_Table):
    free_bytes: int | None = None
    source: Text


class BrokerLimits(_Table):
    max_clients: int
    budget_bytes: int | None = None
    """None: the broker may plan with what is free."""
    source: Text


class PowerSave(_Table):
    modes: list[Literal["none", "performance", "powersave"]]
    deep_sleep_loses_memory: bool
    source: Text


class RTCMemory(_Table):
    bytes: int
    source: Text


class Current(_Table):
    """What flows in each state, and how long the states without a choice take. mA, uA, ms, mC."""

    active_mA: Figure | None = None
    """The processor runs, the radio is off."""
    modem_sleep_mA: Figure | None = None
    """Connected and idle, the radio wakes for the access point's beacons: on average."""
    light_sleep_uA: Figure | None = None
    deep_sleep_uA: Figure | None = None
    dormant_uA: Figure | None = None
    tx_mA: Figure | None = None
    """While the radio sends at the rate that it would choose near the access point."""
    tx_peak_mA: Figure | None = None
    rx_mA: Figure | None = None
    """While the radio listens or receives."""
    boot_ms: Figure | None = None
    """From reset or deep sleep to main.py."""
    boot_mC: Figure | None = None
    boot_frozen_ms: Figure | None = None
    connect_wifi_ms: Figure | None = None
    connect_wifi_mC: Figure | None = None
    connect_wifi_fast_ms: Figure | None = None
    """With a fixed address and a known access point, as device/wifi.py does the second time."""
    connect_wifi_fast_mC: Figure | None = None

    def figures(self) -> dict[str, Figure]:
        """Those that are known, by key."""
        return {key: figure for key in type(self).model_fields if (figure := getattr(self, key)) is not None}


class Caveat(_Table):
    text: Text
    source: Text


class Profile(_Table):
    key: str
    """The file's name without .toml: what `--board` takes."""
    name: Text
    chip: Text
    port: Literal["esp32", "rp2"]
    machine: Text
    mpy_arch: Architecture
    has_radio: bool
    serial: Text
    usb: list[Annotated[str, Field(pattern=r"^[0-9a-f]{4}:[0-9a-f]{4}$")]]
    """Vendor and product of what such a board shows on USB; a UART bridge doesn't say which board is behind it."""
    flash: Flash
    heap: Heap
    broker: BrokerLimits
    power_save: PowerSave
    rtc_memory: RTCMemory
    current: Current
    caveat: list[Caveat] = []

    def is_machine(self, machine: str) -> bool:
        """Is *machine*, a board's `sys.implementation._machine`, such a board?"""
        return re.search(self.machine, machine) is not None


def firmware_directory() -> Path:
    """The checkout's firmware/, or the one inside the wheel."""
    package = Path(__file__).resolve().parents[1]
    for directory in (package.parents[1] / "firmware", package / "_firmware"):
        if (directory / "boards").is_dir():
            return directory
    raise BoardError(f"the boards' profiles are missing beside {package}: is the package complete?")


@cache
def load_all() -> dict[str, Profile]:
    """All profiles by key. `BoardError` names the file and what is wrong with it."""
    paths = (firmware_directory() / "boards").glob("*.toml")
    return {path.stem: load(path) for path in sorted(paths, key=lambda path: path.stem)}


def load(path: Path) -> Profile:
    try:
        return Profile(key=path.stem, **tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise BoardError(f"{path}: {error}") from None
    except ValidationError as refused:
        first = refused.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BoardError(f"{path}: {where}: {first['msg']}") from None


def find(name: str) -> Profile:
    """The profile *name*, as `--board` and BOARD= take it: esp32, ESP32-S3, pico_w ..."""
    profiles = load_all()
    found = profiles.get(name.lower().replace("_", "-"))
    if found is None:
        raise BoardError(f"no board '{name}'; there are: {', '.join(profiles)}")
    return found


def of_machine(machine: str) -> Profile | None:
    """The profile that `sys.implementation._machine` of a board belongs to."""
    return next((profile for profile in load_all().values() if profile.is_machine(machine)), None)
