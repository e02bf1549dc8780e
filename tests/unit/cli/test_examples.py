"""Every command line of midge's that the help texts and the docs show is one that midge takes."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from midge.cli import COMMANDS
from midge.cli.options import Options, parse

DOCS = sorted((Path(__file__).parents[3] / "docs").glob("*.md"))
_END = re.compile(r"[|;&<>]+")


def commands_in(line: str) -> Iterator[list[str]]:
    """The words of each `midge ...` in a line of a shell, without redirections."""
    words: list[str] = []
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&<>")
    lexer.whitespace_split = True
    for word in [*lexer, ";"]:
        if not _END.fullmatch(word):
            words.append(word)
            continue
        if words and words[0].rpartition("/")[2] == "midge":
            yield words[1:]
        words = []


def shown_in_docs() -> Iterator[tuple[str, str]]:
    for path in DOCS:
        for block in re.findall(r"```sh\n(.*?)```", path.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if re.match(r"\s*(\S*/)?midge ", line):
                    yield path.name, line.strip()


def shown_in_help() -> Iterator[tuple[str, str]]:
    for name in COMMANDS:
        module = importlib.import_module(f"midge.cli.{name}")
        text = getattr(module, "EXAMPLES", "") + getattr(module, "_EXAMPLES", "")
        for line in re.findall(r"^ +(midge .*?)(?:  .*)?$", text, re.MULTILINE):
            yield f"midge {name} --help", line


SHOWN = [*shown_in_docs(), *shown_in_help()]


def test_there_are_examples() -> None:
    assert len(SHOWN) > 60
    told = {where for where, _ in SHOWN}
    assert {f"midge {name} --help" for name in ("pub", "sub", "rr", "serve", "top", "bench", "doctor")} <= told


@pytest.mark.parametrize(("where", "line"), SHOWN, ids=[f"{where}: {line[:60]}" for where, line in SHOWN])
def test_an_example_is_taken(where: str, line: str) -> None:
    found = list(commands_in(line))
    assert found
    for name, *argv in found:
        if name in ("--help", "--version"):
            continue
        module = importlib.import_module(f"midge.cli.{name}")
        if hasattr(module, "OPTIONS"):
            parse(argv, module.OPTIONS, getattr(module, "_COMMANDS", ()), Options())
        else:
            try:
                module._parser().parse_args(argv)
            except SystemExit as end:
                assert not end.code, f"{where}: {line}"
