"""Histories from a seed: after each, what was acknowledged is there, once, in order, and nothing leaks.

MIDGE_SEED is the first seed (0), MIDGE_HISTORIES how many seeds are run.
`python tests/simulation --seed N` repeats one of them and prints its events.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from simulation.history import History
from simulation.mutants import MUTANTS
from simulation.queue_history import QueueHistory
from simulation.queue_mutants import QUEUE_MUTANTS

HISTORIES = int(os.environ.get("MIDGE_HISTORIES", "2000"))
# Always the same here, so that a red run is about the change; `make nightly` takes others each night.
FIRST_SEED = int(os.environ.get("MIDGE_SEED", "0"))
# So many histories find every mutant; most take less than 50.
MUTANT_HISTORIES = 1500
# Seeds near which two were found that take hundreds; a change of the simulation may move them.
FOUND_NEAR = {"lose_what_a_shared_subscriber_leaves": 1740}
QUEUE_FOUND_NEAR = {"give_it_back_and_tell_nobody": 60, "send_pubrel_before_the_commit": 430}
SLICES = 4


@pytest.mark.timeout(60 + HISTORIES // 4)
@pytest.mark.parametrize("part", range(SLICES))
def test_every_history_keeps_the_invariants(part: int) -> None:
    for seed in range(FIRST_SEED + part, FIRST_SEED + HISTORIES, SLICES):
        try:
            History(seed).run()
        except Exception as error:  # whatever a history ends with is its result
            raise AssertionError(f"seed {seed} (python tests/simulation --seed {seed}): {error}") from error


@pytest.mark.timeout(60 + HISTORIES // 4)
def test_every_history_of_a_queue_keeps_the_invariants() -> None:
    for seed in range(FIRST_SEED, FIRST_SEED + HISTORIES // 25):
        try:
            QueueHistory(seed).run()
        except Exception as error:  # whatever a history ends with is its result
            about = f"queue seed {seed} (python tests/simulation --queues --seed {seed}): {error}"
            raise AssertionError(about) from error


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_deliberate_bug_is_found(mutant: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch.setattr)
    _find(History, FOUND_NEAR.get(mutant.__name__, 0), 50, monkeypatch)


@pytest.mark.parametrize("mutant", QUEUE_MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_deliberate_bug_of_queues_is_found(
    mutant: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch.setattr)
    _find(QueueHistory, QUEUE_FOUND_NEAR.get(mutant.__name__, 0), 20, monkeypatch)


def _find(history: type[History | QueueHistory], first: int, near: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some history breaks, of the *near* behind seed *first* or else from 0 on, and not without the bug."""
    for seed in (*range(first, first + near), *range(MUTANT_HISTORIES)):
        try:
            history(seed).run()
        except Exception as error:  # noqa: BLE001  # a mutant may as well stumble over itself
            print(f"found by seed {seed}: {type(error).__name__}: {error}")
            monkeypatch.undo()
            history(seed).run()
            return
    raise AssertionError(f"{MUTANT_HISTORIES} histories did not find it")


def test_a_seed_gives_the_same_history_again() -> None:
    traces: list[list[str]] = [[], []]
    for trace in traces:
        History(7, trace).run()
    assert len(traces[0]) > 100
    assert traces[0] == traces[1]


@pytest.mark.parametrize("seed", [502065])
def test_histories_that_once_showed_a_bug(seed: int) -> None:
    """502065: a retained message was forgotten with the expired one whose place it had taken."""
    History(seed).run()


@pytest.mark.parametrize("seed", [495])
def test_histories_of_queues_that_once_showed_a_bug(seed: int) -> None:
    """495: a publisher that waited for room, and did not read meanwhile, was never answered."""
    QueueHistory(seed).run()
