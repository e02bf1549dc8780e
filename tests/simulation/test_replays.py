"""Histories of replay from a seed, and deliberate bugs that they find.

MIDGE_SEED is the first seed (0), MIDGE_REPLAYS how many are run. `python tests/simulation/replays.py N` repeats one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from midge.core.changes import Changes
from midge.core.history import History, Kept
from midge.core.message import Message
from midge.core.replay import Reading, Replay
from midge.core.session import Session
from simulation.replays import World

HISTORIES = int(os.environ.get("MIDGE_REPLAYS", "300"))
FIRST_SEED = int(os.environ.get("MIDGE_SEED", "0"))

Patch = Callable[[type, str, Any], None]


@pytest.mark.timeout(60 + HISTORIES // 4)
def test_every_reader_gets_its_part_of_the_log() -> None:
    for seed in range(FIRST_SEED, FIRST_SEED + HISTORIES):
        try:
            World(seed).run()
        except Exception as error:  # whatever a history ends with is its result
            raise AssertionError(f"seed {seed} (python tests/simulation/replays.py {seed}): {error}") from error


def does_not_wait_for_the_commit(patch: Patch) -> None:
    def keep(self: History, message: Message, name: str, now: float, changes: Changes) -> int:
        self.last += 1
        self.tail.append(Kept(self.last, now, message, -1))
        changes.keep(name, self.last, now, message)
        return self.last

    patch(History, "keep", keep)


def takes_the_tail_for_settled(patch: Patch) -> None:
    def settled(self: History, number: int) -> None:
        self.tail_first += len(self.tail)
        self.tail.clear()

    patch(History, "settled", settled)


def remembers_where_a_page_ended_that_it_has_dropped(patch: Patch) -> None:
    def drop_page(self: Reading) -> None:
        self.page, self.at = [], 0

    patch(Reading, "drop_page", drop_page)


def stores_no_position(patch: Patch) -> None:
    patch(Changes, "position", lambda self, session, topic_filter, after: None)


def thinks_that_who_left_had_read_all(patch: Patch) -> None:
    real = Replay.client_left

    def client_left(self: Replay, session: Session) -> None:
        for reading in (session.readings or {}).values():
            reading.is_idle = True
        real(self, session)

    patch(Replay, "client_left", client_left)


def wakes_nobody_by_acknowledgements(patch: Patch) -> None:
    patch(Session, "wake_readings", lambda self, now: None)


@pytest.mark.parametrize(
    "mutant",
    [
        does_not_wait_for_the_commit,
        takes_the_tail_for_settled,
        remembers_where_a_page_ended_that_it_has_dropped,
        stores_no_position,
        thinks_that_who_left_had_read_all,
        wakes_nobody_by_acknowledgements,
    ],
    ids=lambda mutant: mutant.__name__,
)
def test_a_deliberate_bug_is_found(mutant: Callable[[Patch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch.setattr)
    for seed in range(300):
        try:
            World(seed).run()
        except Exception as error:  # noqa: BLE001  # a mutant may as well stumble over itself
            print(f"found by seed {seed}: {type(error).__name__}: {error}")
            return
    raise AssertionError("300 histories did not find it")
