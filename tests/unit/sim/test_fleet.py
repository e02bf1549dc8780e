"""FLEET.toml: the example is whole, and errors name file, line, key and what is allowed."""

from pathlib import Path

import pytest

from midge.config import ConfigError
from midge.sim.fleet import EXAMPLE, load


def _load(tmp_path: Path, text: str) -> object:
    file = tmp_path / "fleet.toml"
    file.write_text(text, encoding="utf-8")
    return load(file)


def test_example_is_a_fleet(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(EXAMPLE, encoding="utf-8")
    fleet = load(file)
    assert [kind.profile for kind in fleet.boards] == ["sensor", "controller", "serial", "hub", "sensor"]
    assert fleet.fleet.speed == 60


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("loss = 0.01 ", "loss = 2 ", r"fleet.toml:16: link\[1\].loss: 2 is not allowed: a number, 0 to 0.9"),
        ("count = 8", "cuont = 8", r"boards\[1\].cuont: unknown key; did you mean count\?"),
        ('via = "hub"', 'via = "hut"', r'boards shed: via = "hut" names none; there is hub'),
        ('boards = "garden"', 'boards = "yard"', r'power_cut: boards = "yard" names none; there is garden, lamp'),
        ('outbox = "rtc"', 'outbox = "ram"', r'boards\[1\].outbox: "ram" is not allowed: "rtc", "file" or "memory"'),
        ('address = "" ', 'address = "h:1" ', r"boards pico: profile serial needs our broker: no broker.address"),
        ('name = "shed"', 'name = "lamp"', r"two \[\[boards\]\] have the same name"),
        ("store = true", "count = 2", r"each hub is a \[\[boards\]\] of its own"),
        ("store = true", 'program = "x.py"', r"a hub has no program"),
        ('outbox = "file"', 'program = "x.py"', r'boards shed: program = "x.py": no such file'),
    ],
)
def test_what_cannot_be_is_an_error_that_says_what_can(tmp_path: Path, old: str, new: str, error: str) -> None:
    assert EXAMPLE.count(old) >= 1
    with pytest.raises(ConfigError, match=error):
        _load(tmp_path, EXAMPLE.replace(old, new, 1))
