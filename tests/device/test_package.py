"""device/package.json is what `mip` installs: all that is there."""

import json

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
