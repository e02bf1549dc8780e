"""Compiles the hot modules by mypyc when MIDGE_COMPILE=1 is set (`make wheel`); else the wheel is pure Python.

The pure form always works and is what the tests run first; the compiled one is the same source.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# What each message goes through. The rest is asyncio's and SQLite's, which are compiled already.
COMPILED = [
    "midge/protocol/*.py",
    "midge/core/*.py",
    "midge/listeners/connection.py",
    "midge/listeners/door.py",
    "midge/listeners/sockets.py",
    "midge/listeners/turns.py",
]


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "standard" or os.environ.get("MIDGE_COMPILE") != "1":
            return
        self._directory = Path(tempfile.mkdtemp(prefix="midge-mypyc-"))
        shutil.copytree(Path(self.root, "host/midge"), self._directory / "midge")
        sources = sorted(
            str(path.relative_to(self._directory))
            for pattern in COMPILED
            for path in self._directory.glob(pattern)
            if path.name != "__init__.py"
        )
        # As a process of its own: mypyc runs a whole setup in the current directory.
        subprocess.run([sys.executable, "-m", "mypyc", *sources], cwd=self._directory, check=True)
        extension = ".pyd" if sys.platform == "win32" else ".so"
        for built in self._directory.rglob(f"*{extension}"):
            if "build" not in built.relative_to(self._directory).parts:
                build_data["force_include"][str(built)] = str(built.relative_to(self._directory))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "_directory"):
            shutil.rmtree(self._directory)
