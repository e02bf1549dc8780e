"""The table of statements is complete, and what it claims is there."""

from __future__ import annotations

import board
import pytest
from table import ROOT, VERSIONS, functions_of, shown_by, shown_on_the_board, statements

# How many statements each section has (appendix B of 3.1.1; the body of 5.0, whose numbers in §2.2.1 begin with 2).
# 3.1.1 writes two of its numbers differently, [MQTT-3.1.2.7] and [MQTT-3-8.3-4]: 139 in the usual form, 141 in all.
SECTIONS = {
    "3.1.1": "1.5.3:3 2.2.2:2 2.3.1:7 3.1.0:2 3.1.2:24 3.1.3:11 3.1.4:5 3.2.0:1 3.2.2:6 3.3.1:12 3.3.2:3 3.3.4:1"
             " 3.3.5:2 3.6.1:1 3.8.1:1 3.8.3:4 3.8.4:6 3.9.3:2 3.10.1:1 3.10.3:2 3.10.4:6 3.12.4:1 3.14.1:1 3.14.4:3"
             " 4.1.0:2 4.3.1:1 4.3.2:2 4.3.3:2 4.4.0:1 4.5.0:2 4.6.0:6 4.7.1:3 4.7.2:1 4.7.3:4 4.8.0:2 6.0.0:4"
             " 7.0.0:2 7.1.1:1 7.1.2:1",
    "5.0": "1.5.4:3 1.5.5:1 1.5.7:1 2.1.3:1 2.2.1:5 2.2.2:1 3.1.0:2 3.1.2:30 3.1.3:12 3.1.4:6 3.2.0:2 3.2.2:22"
           " 3.3.1:13 3.3.2:20 3.3.4:10 3.4.2:3 3.5.2:3 3.6.1:1 3.6.2:3 3.7.2:3 3.8.1:1 3.8.3:5 3.8.4:8 3.9.2:2 3.9.3:2"
           " 3.10.1:1 3.10.3:2 3.10.4:6 3.11.2:2 3.11.3:2 3.12.4:1 3.14.0:1 3.14.1:1 3.14.2:4 3.14.4:3 3.15.1:1"
           " 3.15.2:3 4.1.0:2 4.2.0:1 4.3.1:1 4.3.2:5 4.3.3:13 4.4.0:2 4.5.0:2 4.6.0:6 4.7.0:1 4.7.1:2 4.7.2:1 4.7.3:4"
           " 4.8.2:6 4.9.0:3 4.12.0:7 4.12.1:2 4.13.1:1 4.13.2:1 6.0.0:4",
}  # fmt: skip
ALL = {"3.1.1": 141, "5.0": 251}


def numbered(version: str) -> list[str]:
    ids = []
    for part in SECTIONS[version].split():
        section, count = part.split(":")
        first = 2 if section == "2.2.1" else 1
        ids += [f"{section}-{number}" for number in range(first, first + int(count))]
    return ids


@pytest.mark.parametrize("version", VERSIONS.values())
def test_the_table_has_each_statement_once_in_order(version: str) -> None:
    assert [row.id for row in statements(version)] == numbered(version)
    assert len(numbered(version)) == ALL[version]


@pytest.mark.parametrize("version", VERSIONS.values())
def test_each_statement_has_a_test_or_a_reason_and_not_both(version: str) -> None:
    shown = shown_by(version)
    rows = statements(version)
    assert [row.id for row in rows if row.id not in shown and not row.reason] == []
    assert [row.id for row in rows if row.id in shown and row.reason] == []
    assert {row.side for row in rows} == {"server", "client", "both"}


def test_the_board_shows_all_of_3_1_1_that_it_offers() -> None:
    shown = shown_on_the_board("3.1.1")
    missing = [row.id for row in statements("3.1.1") if row.side != "client" and not row.reason and row.id not in shown]
    assert missing == list(board.NOT_OFFERED)


def test_what_the_board_leaves_out_or_shows_elsewhere_exists() -> None:
    names = {name for path in ROOT.glob("tests/spec/test_*.py") for name in functions_of(path)}
    assert {name.partition("[")[0] for name in board.NOT_ON_THE_BOARD} <= names
    for test in board.ELSEWHERE.values():
        path, _, name = test.partition("::")
        assert name in functions_of(ROOT / path)


@pytest.mark.parametrize("version", VERSIONS.values())
def test_tests_name_only_statements_that_there_are(version: str) -> None:
    assert set(shown_by(version)) <= set(numbered(version))


@pytest.mark.parametrize("version", VERSIONS.values())
def test_the_tests_that_the_table_names_exist(version: str) -> None:
    named = {test for tests in shown_by(version).values() for test in tests}
    missing = []
    for test in named:
        path, _, name = test.partition("::")
        if name not in functions_of(ROOT / path):
            missing.append(test)
    assert missing == []
