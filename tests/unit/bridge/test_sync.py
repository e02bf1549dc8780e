"""Which of the retained messages that the other side tells again are known, and which are news."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from midge.bridge.sync import RetainedSync
from midge.core.broker import Broker
from midge.core.limits import Limits
from midge.core.message import Message


class Clocked(SimpleNamespace):
    """What a sync asks of its bridge: the broker, and the time."""

    def __init__(self) -> None:
        super().__init__(broker=Broker(Limits()), time=100.0)

    def now(self) -> float:
        return float(self.time)

    def retain(self, topic: str, payload: bytes) -> None:
        self.broker.publish(Message(topic, payload, 1, retain=True), None, self.time)


@pytest.fixture
def bridge() -> Any:
    return Clocked()


def test_what_we_have_is_known_and_what_is_different_is_not(bridge: Any) -> None:
    bridge.retain("t", b"1")
    sync = RetainedSync(bridge, set())
    assert sync.is_known("t", b"1")
    assert not sync.is_known("t", b"2")
    assert not sync.is_known("u", b"1")


def test_what_we_have_changed_meanwhile_is_newer_than_what_is_told(bridge: Any) -> None:
    bridge.retain("t", b"ours")
    sync = RetainedSync(bridge, {"t"})
    assert sync.is_known("t", b"theirs")
    assert not sync.is_known("t", b"theirs again"), "it is told once; this is news"


def test_what_follows_our_own_change_is_news(bridge: Any) -> None:
    sync = RetainedSync(bridge, {"t"})
    sync.ends_soon(bridge.now())
    sync.acknowledged("t")
    assert not sync.is_known("t", b"theirs, after ours")


def test_a_broker_that_has_more_to_tell_than_its_window_may_still_tell_what_is_old(bridge: Any) -> None:
    sync = RetainedSync(bridge, {"t"})
    for number in range(20):
        sync.is_known(f"other/{number}", b"")
    sync.ends_soon(bridge.now())
    sync.acknowledged("t")
    assert sync.is_known("t", b"old")


def test_it_is_over_when_it_has_been_quiet_after_pingresp(bridge: Any) -> None:
    bridge.retain("t", b"1")
    sync = RetainedSync(bridge, set())
    bridge.time += 60
    assert sync.is_known("t", b"1"), "PINGRESP has not come"
    sync.ends_soon(bridge.now())
    for _ in range(3):
        bridge.time += 0.4
        assert sync.is_known("t", b"1")
    bridge.time += 0.6
    assert not sync.is_known("t", b"1"), "somebody publishes the same once more"
    assert not sync.is_known("t", b"1")


def test_it_is_over_after_ten_seconds_at_most(bridge: Any) -> None:
    bridge.retain("t", b"1")
    sync = RetainedSync(bridge, set())
    sync.ends_soon(bridge.now())
    known = 0
    while sync.is_known("t", b"1"):
        bridge.time += 0.4
        known += 1
        assert known < 100
    assert 20 <= known <= 26
