"""The normative statements of both specifications, and which test shows each. `make spec` prints covered / all.

Knows no broker. A statement is shown by

- a test in this directory that says so: `@shows(v3="3.1.0-1 3.1.0-2", v5="3.1.0-1")`, on the function or on a case,
- the bad packets in tests/vectors that name it, which test_illegal_packets.py sends,
- a test elsewhere that `statements-*.tsv` names in its last column (`path::name`, several with spaces between).

A statement that can't be shown at the server has `reason: ...` in that column instead. Decorators are read from the
source, not by importing: what isn't a test that pytest collects doesn't count.
"""

from __future__ import annotations

import ast
import json
import signal
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import board
import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
VERSIONS = {"v3": "3.1.1", "v5": "5.0"}
REASON = "reason: "
BAD_PACKETS = "tests/spec/test_illegal_packets.py::test_what_a_statement_forbids_is_refused"


class Statement(NamedTuple):
    """`statement` is in our words, not the specification's."""

    id: str
    side: str  # "server", "client" or "both": whose duty it is
    statement: str
    elsewhere: tuple[str, ...]
    reason: str


def shows(v3: str = "", v5: str = "") -> pytest.MarkDecorator:
    """The statements that a test, or one case of it, shows."""
    return pytest.mark.shows(v3=v3.split(), v5=v5.split())


def statements(version: str) -> list[Statement]:
    lines = (HERE / f"statements-{version}.tsv").read_text(encoding="utf-8").splitlines()[1:]
    found = []
    for line in lines:
        name, side, statement, *rest = line.split("\t")
        last = rest[0] if rest else ""
        is_reason = last.startswith(REASON)
        found.append(Statement(name, side, statement, () if is_reason else tuple(last.split()),
                               last.removeprefix(REASON) if is_reason else ""))
    return found


def bad_packets(version: str) -> dict[str, list[dict[str, Any]]]:
    """The vectors that a client may send and a server has to refuse, by the statement that they break."""
    by_statement: dict[str, list[dict[str, Any]]] = defaultdict(list)
    path = ROOT / "tests" / "vectors" / f"packets-{version}.json"
    for vector in json.loads(path.read_text(encoding="utf-8")):
        if "error" not in vector or vector["from"] == "server":
            continue
        for part in vector["section"].split("[MQTT-")[1:]:
            by_statement[part.split("]")[0].replace("3-8.3-4", "3.8.3-4")].append(vector)
    return by_statement


@cache
def functions_of(path: Path) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    """The test functions of a module by name, as pytest would collect them; none if there is no such module."""
    if not path.is_file() or not path.name.startswith("test_"):
        return {}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")}


def _shown_here(version: str) -> dict[str, set[str]]:
    shown: dict[str, set[str]] = defaultdict(set)
    for path in sorted(HERE.glob("test_*.py")):
        for name, function in functions_of(path).items():
            for node in (n for decorator in function.decorator_list for n in ast.walk(decorator)):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "shows"):
                    continue
                for keyword in node.keywords:
                    if VERSIONS[keyword.arg] == version:
                        for statement in ast.literal_eval(keyword.value).split():
                            shown[statement].add(f"tests/spec/{path.name}::{name}")
    return shown


def shown_by(version: str) -> dict[str, set[str]]:
    """The tests that show each statement. May name statements that there are not: test_table.py looks."""
    shown = _shown_here(version)
    for statement in bad_packets(version):
        shown[statement].add(BAD_PACKETS)
    for row in statements(version):
        shown[row.id].update(row.elsewhere)
    return {statement: tests for statement, tests in shown.items() if tests}


def shown_on_the_board(version: str) -> dict[str, set[str]]:
    """The same for the board's broker: what runs against it here, and what board.py names elsewhere."""
    on_both = set()
    for path in sorted(HERE.glob("test_*.py")):
        for name, function in functions_of(path).items():
            fixtures = {argument.arg for argument in function.args.args}
            if fixtures & {"port", "client"} and name not in board.NOT_ON_THE_BOARD:
                on_both.add(f"tests/spec/{path.name}::{name}")
    shown = {statement: tests & on_both for statement, tests in shown_by(version).items()}
    if version == "3.1.1":
        for statement, test in board.ELSEWHERE.items():
            shown.setdefault(statement, set()).add(test)
    return {statement: tests for statement, tests in shown.items() if tests}


def main() -> None:
    """Prints `covered / all`, and what can't be shown; with --all each statement and its tests."""
    for version in VERSIONS.values():
        rows, shown = statements(version), shown_by(version)
        covered = sum(row.id in shown for row in rows)
        own = [row for row in rows if row.side != "client"]
        covered_own = sum(row.id in shown for row in own)
        print(f"MQTT {version}: {covered} / {len(rows)} statements are shown by tests"
              f" ({covered_own} / {len(own)} of those that bind the server)")
        on_board = shown_on_the_board(version)
        print(f"    by the board's broker: {sum(row.id in on_board for row in own)} / {len(own)}")
        for row in rows:
            if "--all" in sys.argv:
                tests = " ".join(sorted(shown.get(row.id, ()))) or f"not shown: {row.reason}"
                print(f"  [MQTT-{row.id}] {row.side}: {row.statement}\n      {tests}")
            elif row.id not in shown:
                print(f"  [MQTT-{row.id}] {row.side}: {row.statement}; {row.reason or 'NO TEST, NO REASON'}")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `make spec | head` ends without a word
    main()
