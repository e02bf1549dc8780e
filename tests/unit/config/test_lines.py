"""The lines that keys stand on: checked against what tomllib reads from the same text."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from midge.config.lines import KeyPath, lines_of
from midge.config.reference import toml

TRICKY = '''\
top = 1 # [not.a.header]
"quoted = key" = "a \\" ] } , # no comment"
'literal' = 'C:\\'
dotted . "two" = { x = 1, y.z = [ 1, { deep = 2 } ] }

[a]
multi = """
[not]
x = 1 \\"""
"""
after = \'\'\'
'''

TRICKY = TRICKY.replace("after = '''\n", "after = '''\n]''\n'''''\nlast = 1979-05-27 07:32:00\n") + '''
[ a . b ]
list = [
  "one", # a comment, with a ]
  [ "nested" ],

  { filter = "#", qos = 1 },
]
float = 1.5e-3
[[c]]
x = 1
[[c.d]]
y = 2
[[c.d]]
y = 3
[c.d.e]
z = 4
[[c]]
[[c.d]]
y = 5
'''


def paths(data: Any, path: KeyPath = ()) -> set[KeyPath]:
    found = {path} if path else set()
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return found.union(*(paths(value, (*path, key)) for key, value in items))


@pytest.mark.parametrize("text", [TRICKY, toml(), toml().replace("\n#", "\n"), ""])
def test_every_key_that_tomllib_reads_has_a_line(text: str) -> None:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:  # the comments are prose
        text = "\n".join(line for line in text.splitlines() if not line.startswith(" "))
        data = tomllib.loads(text)
    assert set(lines_of(text)) == paths(data)


def test_the_line_is_the_key_s() -> None:
    lines, text = lines_of(TRICKY), TRICKY.splitlines()
    for path, start in {
        ("top",): "top =",
        ("quoted = key",): '"quoted',
        ("dotted", "two", "y", "z", 1, "deep"): "dotted",
        ("a",): "[a]",
        ("a", "last"): "last =",
        ("a", "b", "list", 1, 0): '  [ "nested"',
        ("a", "b", "list", 2, "qos"): "  { filter",
        ("a", "b", "float"): "float",
        ("c", 1): "[[c]]",
        ("c", 0, "d", 1, "e", "z"): "z = 4",
        ("c", 1, "d", 0, "y"): "y = 5",
    }.items():
        assert text[lines[path] - 1].startswith(start)
    assert lines["c", 0, "d", 1, "y"] > lines["c", 0, "d", 0, "y"]
