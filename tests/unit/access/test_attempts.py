"""Failed logins are counted by address, and forgotten."""

from __future__ import annotations

import pytest

from midge.access.attempts import WINDOW_S, FailedLogins


def test_past_the_limit_an_address_is_refused_until_the_window_is_over() -> None:
    failed = FailedLogins(3)
    for _ in range(3):
        assert not failed.is_refused("192.0.2.1:1000", 0)
        failed.add("192.0.2.1:1000", 0)
    assert failed.is_refused("192.0.2.1:2000", WINDOW_S - 1)
    assert not failed.is_refused("192.0.2.2:1000", 0)
    assert not failed.is_refused("192.0.2.1:1000", WINDOW_S)
    failed.add("192.0.2.1:1000", WINDOW_S)
    assert not failed.is_refused("192.0.2.1:1000", WINDOW_S)


@pytest.mark.parametrize(
    ("one", "other", "are_one"),
    [
        ("2001:db8::1:1883", "2001:db8::ffff:1:1884", True),
        ("[2001:db8::1]:1883", "[2001:db8:0:1::1]:1883", False),
        ("::ffff:192.0.2.1:5", "::ffff:192.0.2.2:5", False),
        ("unix:/run/a", "unix:/run/b", False),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, are_one: bool) -> None:
    failed = FailedLogins(1)
    failed.add(one, 0)
    assert failed.is_refused(other, 0) is are_one


def test_no_limit_refuses_nobody() -> None:
    failed = FailedLogins(0)
    failed.add("192.0.2.1:1", 0)
    assert not failed.is_refused("192.0.2.1:1", 0)
