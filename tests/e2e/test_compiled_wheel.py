"""The compiled form: `make wheel`'s hot modules are built, and do what the pure ones do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contents of a compiled wheel: a directory for PYTHONPATH."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler: apt-get install gcc")
    directory = tmp_path_factory.mktemp("wheel")
    # Not optimized: that takes half the time, and is the same code.
    environment = {**os.environ, "MIDGE_COMPILE": "1", "MYPYC_OPT_LEVEL": "0", "MYPYC_DEBUG_LEVEL": "0"}
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    built = subprocess.run(
        [*command, "--wheel-dir", str(directory), str(ROOT)], env=environment, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory / "contents")
    return directory / "contents"


def _run(compiled: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(compiled)}
    return subprocess.run([sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.timeout(900)  # with the build, which takes a minute on a machine that does nothing else
def test_the_hot_modules_are_compiled_and_the_whole_broker_loads(compiled: Path) -> None:
    modules = ["midge.protocol.decoder", "midge.core.connection", "midge.core.broker", "midge.listeners.connection"]
    code = f"import importlib, midge.server; print([importlib.import_module(n).__file__ for n in {modules}])"
    run = _run(compiled, "-c", code)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count(str(compiled)) == len(modules)
    assert ".py'" not in run.stdout


@pytest.mark.timeout(900)
def test_the_compiled_core_passes_the_tests_of_the_pure_one(compiled: Path) -> None:
    tests = ["tests/unit/core", "tests/unit/listeners", "tests/unit/protocol/test_decoder.py"]
    run = _run(compiled, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    assert run.returncode == 0, run.stdout[-3000:]
    assert "passed" in run.stdout or "[100%]" in run.stdout
