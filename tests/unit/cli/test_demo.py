"""`midge demo`: what counts as "messages went both ways", and what is shown."""

import asyncio

import pytest

from midge.cli import demo_view
from midge.cli.demo import Demo, Goal, _free_port, _note_message, _report, _send_commands
from midge.cli.demo_view import PlainView, how_to_publish


class FakeClient:
    """Takes the place of paho's client: keeps what is published."""

    def __init__(self) -> None:
        self.published: list[tuple[str, str]] = []

    def publish(self, topic: str, payload: str, qos: int) -> None:
        self.published.append((topic, payload))


def _demo() -> Demo:
    goals = [Goal("sensor", "interval", ("2", "1"), "hub/"), Goal("lamp", "led", ("on", "off"), "hub/")]
    return Demo(1883, 1.0, goals, asyncio.Queue())


def _hear(demo: Demo, *messages: tuple[str, bytes]) -> None:
    for topic, payload in messages:
        _note_message(demo, topic, payload)


def test_a_command_is_sent_only_to_a_board_that_is_online_and_in_turn() -> None:
    demo, client, view = _demo(), FakeClient(), PlainView(1883)
    _hear(demo, ("hub/lamp/status", b"online"))
    _send_commands(demo, client, view)  # type: ignore[arg-type]
    _send_commands(demo, client, view)  # type: ignore[arg-type]  # too early for a second one
    assert client.published == [("hub/lamp/set/led", "on")]
    demo.goals[1].next_command = 0
    _send_commands(demo, client, view)  # type: ignore[arg-type]
    assert client.published[1:] == [("hub/lamp/set/led", "off")]


def test_messages_went_both_ways_when_readings_arrived_and_commands_are_confirmed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    demo, client = _demo(), FakeClient()
    _hear(demo, ("hub/lamp/status", b"online"), ("hub/sensor/status", b"online"))
    _send_commands(demo, client, PlainView(1883))  # type: ignore[arg-type]
    _hear(
        demo,
        ("hub/lamp/uptime", b"1"),
        ("hub/lamp/state/led", b"on"),
        ("hub/sensor/load", b"0.1"),
        ("hub/sensor/state/interval", b"2"),
    )
    assert _report(demo) == 0
    assert "messages went both ways" in capsys.readouterr().out


def test_what_is_missing_is_told_board_by_board(capsys: pytest.CaptureFixture[str]) -> None:
    demo, client = _demo(), FakeClient()
    _hear(demo, ("hub/lamp/status", b"online"), ("hub/lamp/uptime", b"1"))
    _send_commands(demo, client, PlainView(1883))  # type: ignore[arg-type]
    _hear(demo, ("hub/lamp/set/led", b"on"), ("hub/lamp/state/led", b"off"))  # the board didn't obey
    assert _report(demo) == 1
    error = capsys.readouterr().err
    assert "no reading of 'sensor' arrived here" in error
    assert "'lamp' confirmed none of 1 commands (led)" in error


def test_states_and_strangers_are_no_readings() -> None:
    demo = _demo()
    _hear(demo, ("hub/lamp/state/interval", b"1"), ("hub/other/load", b"1"), ("lamp/load", b"1"))
    assert [goal.readings for goal in demo.goals] == [0, 0]


def test_how_to_publish_names_the_port_only_if_it_is_unusual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_view.shutil, "which", lambda _: "/usr/bin/midge")
    assert how_to_publish(1883) == [
        "midge pub -q 1 -t hub/controller/set/led -m on",
        "mosquitto_pub -q 1 -t hub/controller/set/led -m on",
    ]
    assert all(" -p 1884 " in line for line in how_to_publish(1884))


def test_a_port_that_is_taken_is_replaced_by_a_free_one() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert _free_port(preferred=port) != port
