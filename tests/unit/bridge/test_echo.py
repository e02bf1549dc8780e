"""What comes back of what was sent, from brokers that know no bridges."""

from __future__ import annotations

from midge.bridge.echo import Echo


def test_what_was_sent_comes_back_as_often_as_it_was_sent() -> None:
    echo = Echo()
    echo.found(True)
    for _ in range(2):
        echo.sent("t", b"x", 0.0)
    assert [echo.is_ours("t", b"x") for _ in range(3)] == [True, True, False]
    assert echo.dropped == 2


def test_other_topics_and_payloads_are_somebody_else_s() -> None:
    echo = Echo()
    echo.found(True)
    echo.sent("t", b"x", 0.0)
    assert not echo.is_ours("t", b"y")
    assert not echo.is_ours("u", b"x")


def test_until_the_probe_has_shown_it_what_comes_back_is_dropped_too() -> None:
    echo = Echo()
    echo.sent("t", b"x", 0.0)
    assert echo.is_ours("t", b"x")


def test_a_broker_that_sends_nothing_back_costs_nothing() -> None:
    echo = Echo()
    echo.sent("t", b"x", 0.0)
    echo.found(False)
    assert not echo.is_ours("t", b"x"), "somebody there has published the same"
    echo.sent("t", b"x", 0.0)
    assert not echo.is_ours("t", b"x")


def test_what_has_not_come_back_in_ten_minutes_is_forgotten_and_nothing_newer_with_it() -> None:
    echo = Echo()
    echo.found(True)
    echo.sent("old", b"", 0.0)
    echo.sent("twice", b"", 0.0)
    assert echo.is_ours("twice", b"")
    echo.sent("twice", b"", 500.0)
    echo.sent("new", b"", 700.0)
    assert not echo.is_ours("old", b"")
    assert echo.is_ours("twice", b"")
    assert echo.is_ours("new", b"")


def test_it_remembers_no_more_than_so_many() -> None:
    echo = Echo()
    echo.found(True)
    for number in range(30_000):
        echo.sent("t", b"%d" % number, 0.0)
    assert not echo.is_ours("t", b"0")
    assert echo.is_ours("t", b"29999")
    assert len(echo._order) == len(echo._sent) + 1 == 20_000


def test_the_probe_s_topic_is_hidden_from_subscribers_to_everything_where_it_may_be() -> None:
    echo = Echo()
    assert echo.probe_topic(is_marked=True) == "$" + echo.probe_topic(is_marked=False)
    assert echo.probe_topic(is_marked=False) != Echo().probe_topic(is_marked=False)
