"""The lines that keys stand on: checked against what tomllib reads from the same text."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


# What may stand in a file, each value in the form that tomllib takes and a scanner may stumble over.
SCALARS = st.sampled_from(
    ["1", "-1_000.5e3", "true", "inf", "07:32:00", "1979-05-27 07:32:00Z", '""', "''", '"]"', "'}'", '"\\""', "'\\'",
     '"""\n[a]\nb = 1\n\\"""""', "'''\n# no\n''''", '"=" # [c]', '"\\u00e9"']
)  # fmt: skip
NAMES = st.sampled_from(["a", "b", "c-d", "1", '"e.f"', "'g#'", '"]"'])
BLANKS = st.sampled_from(["", " ", "\t"])


def in_list(value: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    items = st.lists(value.map(lambda text: text.partition(" #")[0]), max_size=3)
    return st.tuples(items, st.sampled_from([",", " , ", ",\n", ", # ]\n"])).map(
        lambda made: f"[{made[1].join(made[0])}\n]" if made[0] else "[ ]"
    )


VALUES = st.recursive(SCALARS, in_list, max_leaves=5)
INLINE = st.dictionaries(NAMES, SCALARS.filter(lambda text: "\n" not in text and " #" not in text), max_size=2).map(
    lambda made: "{ " + ", ".join(f"{name}.x = {value}" for name, value in made.items()) + " }"
)
PAIRS = st.dictionaries(NAMES, VALUES | INLINE, max_size=3).map(
    lambda made: "".join(f"{name} = {value}\n" for name, value in made.items())
)
HEADERS = st.tuples(st.lists(NAMES, min_size=1, max_size=3), BLANKS, st.booleans()).map(
    lambda made: f"{'[[' if made[2] else '['}{(made[1] + '.' + made[1]).join(made[0])}{']]' if made[2] else ']'}\n"
)


@settings(deadline=None)  # a busy machine is no bug
@given(PAIRS, st.lists(st.tuples(HEADERS, PAIRS), max_size=4))
def test_whatever_tomllib_reads_every_key_has_a_line(first: str, tables: list[tuple[str, str]]) -> None:
    text = first + "".join(header + pairs for header, pairs in tables)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # the tables don't go together
    lines = lines_of(text)
    assert set(lines) == paths(data)
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())
