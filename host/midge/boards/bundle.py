"""What goes onto a board in a role: its modules compiled, its program, the supervisor that starts it.
Knows nothing of how that gets there.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from midge.boards.profiles import firmware_directory
from midge.boards.simulate import BoardError, device_directory, find_mpy_cross

# The modules of device/ and of firmware/templates/ beside the program, which is app.mpy on the board.
ROLES: dict[str, tuple[str, ...]] = {
    "sensor": ("basics", "board", "midge_client", "midge_update", "wifi"),
    "hub": ("basics", "midge_broker", "midge_broker_store", "midge_broker_v5", "midge_update", "wifi"),
    "serial": ("basics", "board", "midge_client", "midge_serial", "midge_update"),
}

# Files of a version are found by midge_boot.py by their names only, so a name is all that they have for a path.
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_RESERVED = {"manifest.json", "update.json"}


@dataclass(frozen=True)
class Bundle:
    version: dict[str, bytes]
    """What changes with each version, by name: lies in /midge_a or /midge_b."""
    root: dict[str, bytes] = field(default_factory=dict)
    """What starts a version, by path."""

    @property
    def id(self) -> str:
        """The version's identifier: it follows from what is in it."""
        return identify({name: sha256(data) for name, data in self.version.items()})

    def manifest(self) -> bytes:
        files = {name: [len(data), sha256(data)] for name, data in sorted(self.version.items())}
        return json.dumps({"id": self.id, "files": files}).encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def identify(hashes: dict[str, str], removed: list[str] | None = None) -> str:
    """16 hexadecimal digits for these files and those that go."""
    text = json.dumps([sorted(hashes.items()), sorted(removed or [])])
    return sha256(text.encode())[:16]


def make(role: str, architecture: str | None = None, program: Path | None = None) -> Bundle:
    """The files of a board in *role*; *program* takes the place of the role's own program."""
    if role not in ROLES:
        raise BoardError(f"no role '{role}'; there are: {', '.join(ROLES)}")
    templates = firmware_directory() / "templates"
    source = program or templates / f"{role}.py"
    version = {"app.mpy": compile_file(source, architecture, "app.py")}
    for module in ROLES[role]:
        version[f"{module}.mpy"] = compile_file(_find_module(module), architecture)
    root = {name: (templates / name).read_bytes() for name in ("boot.py", "main.py")}
    root["lib/midge_boot.mpy"] = compile_file(device_directory() / "midge_boot.py", architecture)
    return Bundle(version, root)


def load(files: list[Path], architecture: str | None = None) -> Bundle:
    """*files* as a version has them: Python is compiled, the rest as it is."""
    version: dict[str, bytes] = {}
    for path in files:
        name = path.name
        if not _NAME.fullmatch(name) or name in _RESERVED or name.endswith((".part", ".new")):
            raise BoardError(f"{path}: a file on the board can't have this name")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BoardError(f"{path}: {error.strerror}") from None
        if path.suffix == ".py":
            name = path.stem + ".mpy"
            data = compile_file(path, architecture)
        if name in version:
            raise BoardError(f"{path}: there is another {name} among the files")
        version[name] = data
    return Bundle(version)


def _find_module(module: str) -> Path:
    for directory in (firmware_directory() / "templates", device_directory()):
        path = directory / f"{module}.py"
        if path.is_file():
            return path
    raise BoardError(f"{module}.py is missing: is the package complete?")


def compile_file(source: Path, architecture: str | None = None, name: str | None = None) -> bytes:
    """*source* as .mpy. *architecture* matters for native code only (@micropython.native, @viper)."""
    march = [f"-march={architecture}"] if architecture else []
    # Line numbers, 8 % of a file, are left out of midge's own (as `make mpy` does); a program keeps those of its own.
    level = "-O3" if source.stem.startswith("midge_") else "-O2"
    with tempfile.TemporaryDirectory(prefix="midge-mpy-") as directory:
        target = Path(directory) / "out.mpy"
        command = [str(find_mpy_cross()), *march, level, "-s", name or source.name, "-o", str(target), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            raise BoardError(f"{source} doesn't compile: {(done.stderr or done.stdout).strip()}")
        return target.read_bytes()


def check_version(data: bytes, board_mpy: int, name: str = "the file") -> None:
    """Can a board whose `sys.implementation._mpy` is *board_mpy* import this .mpy? `BoardError` if not."""
    if data[:1] != b"M":
        raise BoardError(f"{name} isn't a .mpy file")
    if data[1] != board_mpy & 0xFF:
        raise BoardError(
            f"the board's MicroPython reads .mpy version {board_mpy & 0xFF}, mpy-cross here makes {data[1]}: "
            "flash a newer firmware, or set MPY_CROSS to a compiler of the firmware's version"
        )
