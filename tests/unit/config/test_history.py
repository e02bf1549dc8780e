"""[[history]]: what can't be kept is refused with the file, the line and the reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from midge.config import ConfigError, load
from midge.core.history import HistoryRule


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('[[history]]\nage = "1h"', r":1: history\[1\]\.filter: must be given"),
        ('[[history]]\nfilter = "a/#/b"', "must be the whole last level"),
        ('[[history]]\nfilter = "$SYS/#"', "such topics are a broker's own"),
        ('[[history]]\nfilter = "a"\nage = "1y"', "is no age"),
        ('[[history]]\nfilter = "a"\nage = "0d"', "is no age"),
        ('[[history]]\nfilter = "a"\n[[history]]\nfilter = "a"', "two histories have the filter 'a'"),
        ('[store]\npath = ":memory:"\n[[history]]\nfilter = "a"', r"\[\[history\]\] needs a store"),
    ],
)
def test_a_history_that_cannot_be_is_an_error_of_the_configuration(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "midge.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(file)
    assert re.search(why, str(error.value)), error.value


def test_ages_have_units(tmp_path: Path) -> None:
    file = tmp_path / "midge.toml"
    file.write_text('[[history]]\nfilter = "a/#"\nage = "2w"\nmax_messages = 7\nmax_bytes = 8\n')
    assert load(file).history_rules() == [HistoryRule("a/#", 14 * 86_400.0, 7, 8)]
