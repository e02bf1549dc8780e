"""Brings a bundle onto a board over its console: only what changed, checked by hash, switched to in one step.
Knows nothing of what the files do. Whatever fails before the last step leaves the old version to run.

The layout on the flash is device/midge_boot.py's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from midge.boards import profiles
from midge.boards.bundle import Bundle, check_version, sha256
from midge.boards.console import Console
from midge.boards.simulate import BoardError

_STATE, _SETTINGS = "midge_slot.json", "midge.json"

_SURVEY = """
import gc, json, os, sys
gc.collect()
def _json(name):
    try:
        with open(name) as file:
            return json.load(file)
    except (OSError, ValueError):
        return None
def _list(name):
    try:
        return os.listdir(name)
    except OSError:
        return []
_flash = os.statvfs(os.getcwd())
_settings = _json("midge.json") or {}
_implementation = sys.implementation
print(json.dumps({
    "machine": getattr(_implementation, "_machine", "?"), "version": list(_implementation.version),
    "mpy": getattr(_implementation, "_mpy", 0), "platform": sys.platform,
    "heap_free": gc.mem_free(), "flash_free": _flash[0] * _flash[3], "state": _json("midge_slot.json") or {},
    "files": _list("."), "a": _list("midge_a"), "b": _list("midge_b"),
    "manifests": {"a": _json("midge_a/manifest.json"), "b": _json("midge_b/manifest.json")},
    "name": _settings.get("name"), "role": _settings.get("role"),
}))
"""

# Flash that must stay: littlefs needs free blocks to write anything, even to remove a file.
_SPARE_BYTES = 16_384


@dataclass(frozen=True)
class Survey:
    """What a board says of itself."""

    machine: str
    version: str
    mpy: int
    heap_free: int
    flash_free: int
    slot: str
    state: dict[str, Any]
    files: list[str]
    slots: dict[str, list[str]]
    manifest: dict[str, Any] | None
    name: str | None
    role: str | None

    @property
    def idle(self) -> str:
        return "b" if self.slot == "a" else "a"

    @property
    def profile(self) -> profiles.Profile | None:
        return profiles.of_machine(self.machine)

    @property
    def id(self) -> str | None:
        """The version that runs."""
        return self.manifest.get("id") if self.manifest else None


def survey(console: Console) -> Survey:
    said = console.ask(_SURVEY)
    state = said["state"]
    slot = state.get("slot") if state.get("slot") in ("a", "b") else "a"
    parts = [part for part in said["version"][:3] if isinstance(part, int)]
    return Survey(
        machine=said["machine"],
        version=".".join(map(str, parts)),
        mpy=said["mpy"],
        heap_free=said["heap_free"],
        flash_free=said["flash_free"],
        slot=slot,
        state=state,
        files=said["files"],
        slots={"a": said["a"], "b": said["b"]},
        manifest=said["manifests"][slot],
        name=said["name"],
        role=said["role"],
    )


@dataclass
class Outcome:
    """What `deploy` did."""

    id: str
    sent: dict[str, int]
    """Files that went over the cable, with their bytes."""
    kept: int
    """Files that were on the board already."""
    is_new: bool
    """False: all was there, nothing was switched."""


def deploy(
    console: Console,
    board: Survey,
    bundle: Bundle,
    on_plan: Callable[[int], None] = lambda size: None,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> Outcome:
    """*on_plan* is told how many bytes will go over the cable, *on_bytes* each piece of them."""
    for name, data in bundle.version.items():
        if name.endswith(".mpy"):
            check_version(data, board.mpy, name)
    directory, running = f"midge_{board.idle}", f"midge_{board.slot}"
    root = _changed(console, bundle.root)
    version = bundle.version
    if not root and board.id == bundle.id and "trial" not in board.state:
        here = console.hashes(f"{running}/{name}" for name in version)
        if all(here[f"{running}/{name}"] == sha256(data) for name, data in version.items()):
            return Outcome(bundle.id, {}, len(version) + len(bundle.root), False)

    hashes = console.hashes(f"{slot}/{name}" for slot in (directory, running) for name in version)
    there = [name for name, data in version.items() if hashes[f"{directory}/{name}"] == sha256(data)]
    copies = [
        name for name, data in version.items() if name not in there and hashes[f"{running}/{name}"] == sha256(data)
    ]
    sends = {name: data for name, data in version.items() if name not in there and name not in copies}
    _check_room(board, bundle, sends, root, [len(version[name]) for name in copies])
    on_plan(sum(map(len, sends.values())) + sum(map(len, root.values())))

    # From here on the other directory is no version any more.
    console.run(_PREPARE.replace("DIRECTORY", repr(directory)))
    _forget_trial(console, board)
    for name in copies:
        console.run(_COPY.replace("SOURCE", repr(f"{running}/{name}")).replace("TARGET", repr(f"{directory}/{name}")))
    for name, data in sends.items():
        console.write(f"{directory}/{name}", data, on_bytes)
    for path, data in root.items():
        console.write(path + ".new", data, on_bytes)
    _verify(console, {f"{directory}/{name}": data for name, data in version.items()})
    _verify(console, {path + ".new": data for path, data in root.items()})
    console.run(_TIDY.replace("DIRECTORY", repr(directory)).replace("NAMES", repr([*version, "manifest.json"])))
    console.replace(f"{directory}/manifest.json", bundle.manifest())

    # The step: what starts a version first, in case it is the first one; then the one file that says which.
    for path in root:
        console.run(f"import os\nos.rename({path + '.new'!r}, {path!r})")
    console.replace(_STATE, json.dumps({"slot": board.idle}).encode())
    sent = {name: len(data) for name, data in {**sends, **root}.items()}
    return Outcome(bundle.id, sent, len(there) + len(copies) + len(bundle.root) - len(root), True)


_PREPARE = """
import os
try:
    os.mkdir(DIRECTORY)
except OSError:
    pass
for _name in os.listdir(DIRECTORY):
    if _name in ("manifest.json", "update.json") or _name.endswith((".part", ".new")):
        os.remove(DIRECTORY + "/" + _name)
if "lib" not in os.listdir("."):
    os.mkdir("lib")
"""

_COPY = """
with open(SOURCE, "rb") as _source:
    with open(TARGET, "wb") as _target:
        while True:
            _block = _source.read(512)
            if not _block:
                break
            _target.write(_block)
"""

_TIDY = """
import os
for _name in os.listdir(DIRECTORY):
    if _name not in NAMES:
        os.remove(DIRECTORY + "/" + _name)
"""


def _changed(console: Console, files: dict[str, bytes]) -> dict[str, bytes]:
    hashes = console.hashes(files)
    return {path: data for path, data in files.items() if hashes[path] != sha256(data)}


def _check_room(
    board: Survey, bundle: Bundle, sends: dict[str, bytes], root: dict[str, bytes], copied: list[int]
) -> None:
    needed = sum(map(len, sends.values())) + sum(map(len, root.values())) + sum(copied) + _SPARE_BYTES
    if needed > board.flash_free:
        raise BoardError(
            f"the board has {board.flash_free:,} bytes of flash free, {needed:,} are needed: the old version stays "
            "beside the new one. Remove files of yours with mpremote"
        )


def _forget_trial(console: Console, board: Survey) -> None:
    """An update over MQTT that is on trial lies in the directory that we overwrite: the version before it runs."""
    if "trial" in board.state:
        console.replace(_STATE, json.dumps({"slot": board.slot}).encode())


def _verify(console: Console, files: dict[str, bytes]) -> None:
    hashes = console.hashes(files)
    wrong = [path for path, data in files.items() if hashes[path] != sha256(data)]
    if wrong:
        raise BoardError(f"what is on the board isn't what was sent: {', '.join(wrong)}. The old version stays")


def keep_foreign_program(console: Console, board: Survey) -> str | None:
    """A main.py that isn't ours is moved aside, once; gives its new name."""
    if "main.py" not in board.files:
        return None
    text = console.read("main.py") or b""
    if b"midge_boot" in text or not text.strip():
        return None
    number = 1
    while f"main_{number}.py" in board.files:
        number += 1
    kept = f"main_{number}.py"
    console.run(_COPY.replace("SOURCE", repr("main.py")).replace("TARGET", repr(kept)))
    return kept


def introduce(console: Console, role: str, name: str | None) -> None:
    """The settings that a first start needs: name and role. Those that are there stay."""
    text = console.read(_SETTINGS)
    try:
        settings = json.loads(text) if text else {}
    except ValueError:
        raise BoardError(f"{_SETTINGS} on the board isn't JSON: remove it, or 'midge boards set' it anew") from None
    wanted = {**settings, "role": role, "name": name or settings.get("name") or role}
    if wanted != settings:
        console.replace(_SETTINGS, json.dumps(wanted).encode())
