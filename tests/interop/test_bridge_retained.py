"""Retained messages, their deletion and wills cross a bridge in both directions, also after one side was away."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from brokers import (
    RunningBroker,
    free_port,
    needs_mosquitto,
    start_board,
    start_host,
    start_mosquitto,
)
from paho_peer import Paho

from .bridging import connected, section, start_bridging

pytestmark = pytest.mark.timeout(120)

TOPICS = """[
  { filter = "up/#", direction = "in", qos = 1 },
  { filter = "down/#", direction = "out", qos = 1 },
  { filter = "both/#", direction = "both", qos = 1 },
]"""

# kind of the other side, version, whether it tells a bridge of a deletion at QoS 0 that it missed
SIDES = [
    pytest.param("host", "5.0", True, id="host-5.0"),
    pytest.param("host", "3.1.1", True, id="host-3.1.1"),
    pytest.param("board", "auto", False, id="board"),
    pytest.param("mosquitto", "5.0", False, marks=needs_mosquitto, id="mosquitto-5.0"),
    pytest.param("mosquitto", "3.1.1", False, marks=needs_mosquitto, id="mosquitto-3.1.1"),
]


def start_there(kind: str, directory: Path, port: int = 0) -> RunningBroker:
    """The other side; host and Mosquitto come back with what they had."""
    directory.mkdir(exist_ok=True)
    if kind == "board":
        return start_board(port=port)
    if kind == "host":
        return start_host("--data", str(directory), "--port", str(port))
    return start_mosquitto(f"persistence true\npersistence_location {directory}/\n", port=port)


def retained(port: int, topic_filter: str = "#") -> dict[str, bytes]:
    client = Paho(port)
    client.subscribe(topic_filter, qos=1)
    found = {message.topic: message.payload for message in client.receive_all() if message.retain}
    client.disconnect()
    return found


def has(eventually: Callable, broker: RunningBroker, wanted: dict[str, bytes]) -> None:
    """Wait until *broker* has these retained, and no others."""
    last: list[dict[str, bytes]] = [{}]

    def is_so() -> bool:
        last[0] = retained(broker.port)
        return last[0] == wanted

    try:
        eventually(is_so, 15)
    except AssertionError:
        raise AssertionError(f"{broker.kind} has {last[0]}, not {wanted}") from None


def publish(broker: RunningBroker, *messages: tuple[str, bytes, int]) -> None:
    client = Paho(broker.port)
    for topic, payload, qos in messages:
        client.publish(topic, payload, qos, retain=True)
    if messages:
        client.publish("done", b"", 1)  # so that QoS 0 was read, too
    client.disconnect()


@pytest.mark.parametrize(("kind", "version", "_tells"), SIDES)
def test_retained_messages_and_deletions_cross(
    tmp_path: Path, until_the_end, eventually, kind: str, version: str, _tells: bool
) -> None:
    there = until_the_end.enter_context(start_there(kind, tmp_path / "there"))
    publish(there, ("up/old", b"1", 1), ("both/there", b"1", 1))
    link = section("b", there.port, TOPICS, version=version, notifications=False)
    here = until_the_end.enter_context(start_bridging(tmp_path / "here", link))
    publish(here, ("down/old", b"2", 1), ("both/here", b"2", 1))
    connected(here)
    publish(there, ("up/new", b"3", 0), ("both/new", b"4", 1))
    publish(here, ("down/new", b"5", 0))
    shared = {"both/there": b"1", "both/here": b"2", "both/new": b"4"}
    up, down = {"up/old": b"1", "up/new": b"3"}, {"down/old": b"2", "down/new": b"5"}
    has(eventually, here, shared | up | down)
    has(eventually, there, shared | up | down)
    publish(there, ("up/old", b"", 0), ("up/new", b"", 1), ("both/here", b"", 1))
    publish(here, ("down/old", b"", 0), ("down/new", b"", 1), ("both/there", b"", 1))
    has(eventually, here, {"both/new": b"4"})
    has(eventually, there, {"both/new": b"4"})


@pytest.mark.parametrize(("kind", "version", "tells"), SIDES)
def test_what_changed_while_we_were_away(
    tmp_path: Path, until_the_end, eventually, kind: str, version: str, tells: bool
) -> None:
    there = until_the_end.enter_context(start_there(kind, tmp_path / "there"))
    link = section("b", there.port, TOPICS, version=version, notifications=False)
    port, data = free_port(), str(tmp_path / "data")
    here = until_the_end.enter_context(start_bridging(tmp_path / "here", link, port=port, data=data))
    connected(here)
    publish(there, ("up/1", b"old", 1), ("up/2", b"old", 1), ("up/3", b"old", 1), ("both/1", b"old", 1))
    before = {"up/1": b"old", "up/2": b"old", "up/3": b"old", "both/1": b"old"}
    has(eventually, here, before)
    here.send_signal(signal.SIGKILL)
    here.process.wait()
    publish(there, ("up/1", b"new", 1), ("up/2", b"new", 0), ("up/3", b"", 0 if tells else 1), ("both/1", b"", 1))
    here = until_the_end.enter_context(start_bridging(tmp_path / "here", link, port=port, data=data))
    has(eventually, here, {"up/1": b"new", "up/2": b"new"})
    has(eventually, there, {"up/1": b"new", "up/2": b"new"})


@pytest.mark.parametrize(("kind", "version", "_tells"), SIDES)
def test_what_changed_here_while_the_other_side_was_away(
    tmp_path: Path, until_the_end, eventually, kind: str, version: str, _tells: bool
) -> None:
    port = free_port()
    there = until_the_end.enter_context(start_there(kind, tmp_path / "there", port))
    link = section("b", port, TOPICS, version=version, notifications=False)
    here = until_the_end.enter_context(start_bridging(tmp_path / "here", link))
    connected(here)
    publish(here, ("down/1", b"old", 1), ("down/2", b"old", 0), ("both/1", b"old", 1), ("both/2", b"old", 1))
    has(eventually, there, {"down/1": b"old", "down/2": b"old", "both/1": b"old", "both/2": b"old"})
    there.stop()
    publish(here, ("down/1", b"new", 0), ("down/2", b"", 0), ("both/1", b"new", 1), ("both/2", b"", 0))
    there = until_the_end.enter_context(start_there(kind, tmp_path / "there", port))
    has(eventually, there, {"down/1": b"new", "both/1": b"new"})
    has(eventually, here, {"down/1": b"new", "both/1": b"new"})


@pytest.mark.parametrize(("kind", "version", "_tells"), [SIDES[0], SIDES[2], SIDES[4]])
def test_wills_cross_in_both_directions(
    tmp_path: Path, until_the_end, eventually, kind: str, version: str, _tells: bool
) -> None:
    there = until_the_end.enter_context(start_there(kind, tmp_path / "there"))
    link = section("b", there.port, TOPICS, version=version, notifications=False)
    here = until_the_end.enter_context(start_bridging(tmp_path / "here", link))
    connected(here)
    for broker, topic in ((there, "up/state"), (here, "down/state")):
        Paho(broker.port, will=(topic, b"gone", 1, True)).cut()
    has(eventually, here, {"up/state": b"gone", "down/state": b"gone"})
    has(eventually, there, {"up/state": b"gone", "down/state": b"gone"})


@needs_mosquitto
@pytest.mark.parametrize("kind", ["host", "mosquitto"])
def test_both_sides_are_told_whether_the_bridge_is_connected(
    tmp_path: Path, until_the_end, eventually, kind: str
) -> None:
    there = until_the_end.enter_context(start_there(kind, tmp_path / "there"))
    here = until_the_end.enter_context(
        start_bridging(tmp_path / "here", section("b", there.port, TOPICS, client_id="laptop"))
    )
    connected(here)
    eventually(lambda: retained(here.port, "$SYS/broker/connection/#") == {"$SYS/broker/connection/b/state": b"1"})
    state = "$SYS/broker/connection/laptop/state"
    eventually(lambda: retained(there.port, "$SYS/broker/connection/#").get(state) == b"1")
    here.kill()
    eventually(lambda: retained(there.port, "$SYS/broker/connection/#").get(state) == b"0")
