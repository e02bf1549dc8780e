"""Deadlines, driven by a time that the test chooses."""

from midge.core.timers import Timers


def test_timers_run_in_order_once_they_are_due() -> None:
    timers = Timers()
    ran: list[str] = []
    timers.at(2.0, lambda now: ran.append(f"two at {now}"))
    timers.at(1.0, lambda now: ran.append(f"one at {now}"))
    assert timers.next_deadline() == 1.0
    timers.run(0.9)
    assert ran == []
    timers.run(2.5)
    assert ran == ["one at 2.5", "two at 2.5"]
    assert timers.next_deadline() is None


def test_a_cancelled_timer_does_not_run_and_is_no_deadline() -> None:
    timers = Timers()
    ran: list[float] = []
    timers.at(1.0, ran.append).cancel()
    timers.at(2.0, ran.append)
    assert timers.next_deadline() == 2.0
    timers.run(3.0)
    assert ran == [3.0]


def test_what_a_timer_schedules_for_now_runs_too() -> None:
    timers = Timers()
    ran: list[float] = []
    timers.at(1.0, lambda now: (timers.at(now, ran.append), None)[1])
    timers.run(1.0)
    assert ran == [1.0]


def test_cancelled_timers_do_not_pile_up_behind_one_that_waits() -> None:
    timers = Timers()
    ran: list[float] = []
    timers.at(1.0, ran.append)
    for _ in range(10_000):  # clients with a long keep alive that come and go
        timers.at(98_302.5, ran.append).cancel()
    timers.at(98_302.5, ran.append)
    assert len(timers._heap) < 2000
    timers.run(1.0)
    timers.run(98_303.0)
    assert ran == [1.0, 98_303.0]


def test_a_timer_may_cancel_others_while_it_runs() -> None:
    timers = Timers()
    ran: list[float] = []
    others = [timers.at(2.0, ran.append) for _ in range(300)]
    timers.at(1.0, lambda now: [other.cancel() for other in others[1:]] and None)
    timers.run(1.0)
    assert timers.next_deadline() == 2.0
    timers.run(2.0)
    assert ran == [2.0]
