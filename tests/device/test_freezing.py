"""device/ as part of a firmware: firmware/manifest.py for freezing, and an image of a read-only file system, from which
the unix port runs client and broker."""

import os
import queue
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import brokers
from midge.boards import bundle
from midge.boards.profiles import firmware_directory
from paho_peer import Paho

MANIFEST = firmware_directory() / "manifest.py"
MODULES = {path.stem for path in (brokers.ROOT / "device").glob("*.py")}


class ManifestError(Exception):
    """As manifestfile.py's ManifestFileError."""


class Manifest:
    """What MicroPython's build does with a manifest (its docs, reference/manifest): `include` runs another one, paths
    count from the file that names them and may hold $(PORT_DIR) and the like, `module` freezes one file."""

    class Options:
        def __init__(self, given: dict):
            self._given, self._defaults = given, {}

        def defaults(self, **values):
            self._defaults = values

        def __getattr__(self, name):
            return self._given.get(name, self._defaults.get(name))

    def __init__(self, **variables: Path):
        self._variables = variables
        self.frozen: dict[str, tuple[Path, int]] = {}
        self.included: list[str] = []

    def include(self, name: str, **options) -> None:
        for variable, value in self._variables.items():
            name = name.replace(f"$({variable})", str(value))
        path = Path(name).absolute()
        before = os.getcwd()
        try:
            text = path.read_text()
            os.chdir(path.parent)
            self.included.append(path.name)
            exec(text, {"include": self.include, "module": self.module, "options": self.Options(options)})
        except Exception as error:  # noqa: BLE001 - as there
            raise ManifestError(f"Error in manifest file: {path}: {error}") from None
        finally:
            os.chdir(before)

    def module(self, name: str, base_path: str = ".", opt: int | None = None) -> None:
        path = Path(base_path, name).absolute()
        if not path.is_file():
            raise ManifestError(f"Cannot stat {path}")
        self.frozen[name] = path, opt


@pytest.fixture
def port(tmp_path):
    """A port's directory with a board that has a manifest, and one that hasn't."""
    (tmp_path / "boards" / "WITH").mkdir(parents=True)
    (tmp_path / "boards" / "WITHOUT").mkdir()
    (tmp_path / "_boot.py").touch()
    (tmp_path / "wifi_bundle.py").touch()
    (tmp_path / "boards" / "manifest.py").write_text('module("_boot.py", base_path="$(PORT_DIR)")'.replace(
        "$(PORT_DIR)", str(tmp_path)))  # fmt: skip
    (tmp_path / "boards" / "WITH" / "manifest.py").write_text(
        f'include("$(PORT_DIR)/boards/manifest.py")\nmodule("wifi_bundle.py", base_path="{tmp_path}")\n')
    return tmp_path


@pytest.mark.parametrize("board, own", [("WITH", {"_boot.py", "wifi_bundle.py"}), ("WITHOUT", {"_boot.py"})])
def test_the_manifest_freezes_all_of_device_beside_the_boards_own(port, board, own, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # the build runs anywhere
    manifest = Manifest(PORT_DIR=port, BOARD_DIR=port / "boards" / board)
    manifest.include(str(MANIFEST))
    assert set(manifest.frozen) == own | {f"{name}.py" for name in MODULES}
    assert manifest.frozen["midge_broker.py"][1] == 3 and manifest.frozen["midge_client.py"][1] == 2
    for name in MODULES:
        assert manifest.frozen[f"{name}.py"][0].resolve() == brokers.ROOT / "device" / f"{name}.py"


def test_a_manifest_of_ones_own_takes_parts(port, tmp_path):
    own = tmp_path / "own.py"
    own.write_text(f'include("{MANIFEST}", port=False, broker=False, serial=False, battery=False, boot=False)\n')
    manifest = Manifest(PORT_DIR=port, BOARD_DIR=port)
    manifest.include(str(own))
    assert "midge_client.py" in manifest.frozen and "wifi.py" in manifest.frozen
    assert not [name for name in manifest.frozen if "broker" in name or "serial" in name or "boot" in name]


# ---- ROMFS ----

# Both sides have nothing but the image to import from.
MOUNT = """
import sys, vfs
vfs.mount(vfs.VfsRom(open("midge.romfs", "rb").read()), "/rom")
sys.path[:] = ["/rom", ".frozen"]
"""
BROKER = MOUNT + """
import asyncio
from midge_broker import Broker
import midge_broker
broker = Broker(0, "127.0.0.1")
broker.listen()
print("listening on", broker.port, midge_broker.__file__)
asyncio.run(broker.run())
"""
CLIENT = MOUNT + """
import asyncio
import midge_client
async def main():
    client = midge_client.Client("rom", "127.0.0.1", PORT)
    await client.connect()
    await client.publish("from/the/rom", midge_client.__file__, qos=1)
    await client.disconnect()
asyncio.run(main())
"""


def test_client_and_broker_run_from_an_image(tmp_path, until_the_end):
    content = tmp_path / "content"
    content.mkdir()
    for name in MODULES:
        (content / f"{name}.mpy").write_bytes(bundle.compile_file(brokers.ROOT / "device" / f"{name}.py"))
    image = tmp_path / "midge.romfs"
    done = subprocess.run([sys.executable, "-m", "mpremote", "romfs", "-o", image, "build", content],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0 and image.stat().st_size > 50_000, done.stdout + done.stderr

    lines: queue.Queue[str] = queue.Queue()
    broker = subprocess.Popen([brokers.micropython(), "-X", "heapsize=512k", "-c", BROKER], cwd=tmp_path,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    until_the_end.callback(broker.wait)
    until_the_end.callback(broker.kill)
    threading.Thread(target=lambda: [lines.put(line) for line in broker.stdout], daemon=True).start()
    said = lines.get(timeout=30)
    port, file = re.match(r"listening on (\d+) (\S+)", said).groups()
    assert file == "/rom/midge_broker.mpy"
    listener = Paho(int(port))
    until_the_end.callback(listener.disconnect)
    listener.subscribe("from/#", qos=1)
    done = subprocess.run([brokers.micropython(), "-X", "heapsize=512k", "-c", CLIENT.replace("PORT", port)],
                          cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert listener.receive().payload == b"/rom/midge_client.mpy"
