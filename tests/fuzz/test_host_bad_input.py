"""The host's broker under bad input, over real sockets, with its store on disk: it says why, closes, and goes on.

MIDGE_SEED and MIDGE_MUTANTS set which mutants are sent, and how many.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from brokers import RunningBroker, start_host

sys.path.insert(0, str(Path(__file__).parent))  # `import bad_input`, with --import-mode=importlib

from bad_input import (
    AT_ONCE,
    MUTANTS,
    SEED,
    VERSIONS,
    Case,
    Flow,
    Outcome,
    closing_reason_code,
    connect_packet,
    malformed,
    mutants,
    refused,
    stateful,
    truncated,
    truncated_malformed,
    waited_for,
)

Send = Callable[..., Iterator[Outcome]]

# KiB that the process may grow by, whatever it is sent: caches with a bound (topic names, routes, SQLite's pages)
# fill, and malloc's pieces settle: 5 MB in 12,000 connections, and no more in the next 18,000. That the core
# keeps nothing of a bad packet at all is shown by tests/unit/core/test_bad_input.py.
GROWTH_MAX_KIB = 8000
# s until the broker has closed what we closed, and forgotten it.
SETTLE_TIMEOUT_S = 10
# What the log must not give as the reason for a close that bad input asked for.
NOT_REFUSED = ("connection closed by the client", "connection lost", "no CONNECT within")


class Shelled:
    """The broker under fire: what it used before, and which of its clients were ours."""

    def __init__(self, broker: RunningBroker, flow: Flow):
        self.broker = broker
        self._flow = flow
        self._ports: Counter[int] = Counter()
        self._fds = self._count_fds()

    def send(self, how: Send, cases: Iterable[Case], at_once: int = AT_ONCE) -> Iterator[Outcome]:
        for outcome in how(self.broker.port, cases, at_once):
            self._ports[outcome.port] += 1
            yield outcome

    def rss_kib(self) -> int:
        self._settle()
        status = Path(f"/proc/{self.broker.pid}/status").read_text(encoding="ascii")
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])

    def _count_fds(self) -> int:
        return len(os.listdir(f"/proc/{self.broker.pid}/fd"))

    def _settle(self) -> None:
        """Until every connection of ours is gone on the broker's side."""
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while (fds := self._count_fds()) > self._fds:
            assert time.monotonic() < deadline, f"{fds} descriptors are open, {self._fds} were before"
            time.sleep(0.01)  # another process's descriptors can't be waited for

    def finish(self) -> list[str]:
        """The others' messages all came, the broker lives, and its log has for each of our connections the
        reason of its end: these reasons. Stops the broker, so that the log is whole."""
        self._settle()
        self._flow.finish()
        assert self._flow.messages > 0
        assert self.broker.is_running()
        assert self.broker.stop() == 0
        output = self.broker.output()
        assert not re.findall(r"Traceback(?:.*\n)+?\S*Error.*", output)
        found: dict[int, list[str]] = {}
        for port, reason in re.findall(r" INFO .*?127\.0\.0\.1:(\d+): (?!connected, )(.*)", output):
            found.setdefault(int(port), []).append(reason)
        missing = [port for port, times in self._ports.items() if len(found.get(port, [])) < times]
        assert not missing, f"{len(missing)} of {self._ports.total()} closed connections are not in the log"
        return [reason for port in self._ports for reason in found[port]]


@pytest.fixture
def shelled(tmp_path: Path) -> Iterator[Shelled]:
    """A broker with a QoS 1 flow through it that must not be disturbed."""
    with start_host("--data", tmp_path) as broker, Flow(broker.port) as flow:
        yield Shelled(broker, flow)


def expected_reason_code(case: Case) -> int | None:
    """The vector's, unless the broker can't know yet that 5.0 is spoken, and so can't answer in it."""
    if not case.before and (case.data[0] != 0x10 or len(case.data) < 9):
        return None
    return case.reason_code


@pytest.mark.parametrize("version", VERSIONS)
def test_a_malformed_packet_ends_its_connection_with_the_reason(shelled: Shelled, version: str) -> None:
    cases = malformed(version)
    for outcome in shelled.send(refused, cases):
        assert outcome.ended, outcome
        assert expected_reason_code(outcome.case) in (None, closing_reason_code(outcome.received)), outcome
    rss_kib = shelled.rss_kib()
    for _ in range(4):
        assert all(outcome.ended for outcome in shelled.send(refused, cases))
    assert shelled.rss_kib() < rss_kib + GROWTH_MAX_KIB
    assert not [reason for reason in shelled.finish() if reason.startswith(NOT_REFUSED)]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_packet_that_is_wrong_after_others_is_refused(shelled: Shelled, version: str) -> None:
    cases = [case for case in stateful(version) if case.reply is None]
    for outcome in shelled.send(refused, cases, at_once=1):  # they share a client identifier
        assert outcome.ended, outcome
        assert expected_reason_code(outcome.case) in (None, closing_reason_code(outcome.received)), outcome
    assert not [reason for reason in shelled.finish() if reason.startswith(NOT_REFUSED)]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_packet_with_one_right_answer_gets_it(shelled: Shelled, version: str) -> None:
    cases = [case for case in stateful(version) if case.reply is not None]
    for outcome in shelled.send(waited_for, cases, at_once=1):
        assert outcome.received.endswith(outcome.case.reply), outcome
        assert outcome.stayed_open, outcome
    assert set(shelled.finish()) == {"connection closed by the client"}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_packet_without_its_end_is_waited_for(shelled: Shelled, version: str) -> None:
    for outcome in send_and_measure(shelled, truncated(version)):
        assert outcome.stayed_open, outcome
        assert outcome.ended, outcome
    assert set(shelled.finish()) == {"connection closed by the client"}


def test_a_malformed_packet_without_its_end_harms_nobody(shelled: Shelled) -> None:
    cases = [case for version in VERSIONS for case in truncated_malformed(version)]
    for outcome in send_and_measure(shelled, cases):
        assert outcome.ended, outcome
    shelled.finish()


def test_mutated_packets_harm_nobody(shelled: Shelled) -> None:
    print(f"MIDGE_SEED={SEED} MIDGE_MUTANTS={MUTANTS}")
    for outcome in send_and_measure(shelled, list(mutants(MUTANTS, SEED))):
        assert outcome.ended, outcome
    shelled.finish()


def test_a_client_identifier_cannot_forge_a_line_of_the_log(shelled: Shelled) -> None:
    forger = Case("forger", VERSIONS[0], connect_packet(VERSIONS[0], "a\n1970-01-01 INFO all is well\n"), b"\xe0\x00")
    for outcome in shelled.send(refused, [forger]):
        assert outcome.ended
    assert shelled.finish() == ["disconnected by the client"]
    assert "\n1970" not in shelled.broker.output()


def send_and_measure(shelled: Shelled, cases: list[Case]) -> Iterator[Outcome]:
    """The first half warms the process up: what packets set up for good (sessions, retained) is there."""
    half = len(cases) // 2
    yield from shelled.send(waited_for, cases[:half])
    rss_kib = shelled.rss_kib()
    yield from shelled.send(waited_for, cases[half:])
    growth_kib = shelled.rss_kib() - rss_kib
    print(f"{len(cases)} packets: {rss_kib} KiB, {growth_kib:+} KiB for the second half")
    assert growth_kib < GROWTH_MAX_KIB
