"""What `midge top` makes of topics: rates, drops, queues, bridges, boards; and how long ago is told."""

import pytest

from midge.cli.top_state import PREFIX, State
from midge.cli.top_view import age, size


def feed(state: State, now: float, *lines: str, retained: bool = False) -> list[str | None]:
    """Lines of topic and payload, as `midge sub -v` prints them."""
    pairs = (line.rsplit(" ", 1) for line in lines)
    return [state.feed(topic, payload.encode(), retained, now) for topic, payload in pairs]


def test_a_rate_is_what_a_counter_grows_by_in_a_second() -> None:
    state = State()
    feed(state, 100.0, f"{PREFIX}publish/messages/received 1000", retained=True)
    assert state.rate("messages in") is None
    feed(state, 100.1, f"{PREFIX}publish/messages/received 1000")  # the retained value again, at once
    assert state.rate("messages in") is None
    feed(state, 110.0, f"{PREFIX}publish/messages/received 1500")
    assert state.rate("messages in") == 50
    feed(state, 112.0, f"{PREFIX}publish/messages/received 3")  # it started again
    assert state.rate("messages in") == 0


def test_before_there_are_two_values_the_last_minute_is_told() -> None:
    state = State()
    feed(state, 0.0, f"{PREFIX}load/publish/sent/1min 120.00", retained=True)
    assert state.rate("messages out") == 2
    assert state.rate("bytes in") is None


def test_drops_are_told_by_cause_or_in_sum() -> None:
    state = State()
    feed(state, 0.0, f"{PREFIX}publish/messages/dropped 7")
    assert state.drops() == {"all": 7}
    feed(state, 0.0, f"{PREFIX}publish/messages/dropped/queue full 4", f"{PREFIX}publish/messages/dropped/expired 3")
    assert state.drops() == {"queue full": 4, "expired": 3}


def test_a_boards_broker_has_names_of_its_own() -> None:
    state = State()
    feed(state, 0.0, f"{PREFIX}heap/free 61000", f"{PREFIX}messages/received 10", f"{PREFIX}messages/dropped/full 2")
    feed(state, 10.0, f"{PREFIX}messages/received 60")
    assert (state.rate("messages in"), state.rate("packets in")) == (5, None)
    assert state.drops() == {"full": 2}


def test_bridges_and_queues() -> None:
    state = State()
    feed(state, 0.0, f"{PREFIX}connection/hub/state 1", f"{PREFIX}connection/far/away/state 0")
    feed(state, 0.0, f"{PREFIX}queues/encode/messages/count 5", f"{PREFIX}queues/encode/consumers 2")
    assert state.bridges() == {"hub": True, "far/away": False}
    assert state.queues() == {"encode": {"messages/count": "5", "consumers": "2"}}
    state.feed(f"{PREFIX}connection/hub/state", b"", False, 0.0)  # the bridge is no more
    assert state.bridges() == {"far/away": False}


def test_boards_come_from_their_brokers_and_from_what_they_say_of_themselves() -> None:
    state = State()
    found = feed(state, 1.0, "hub/$SYS/broker/heap/free 61000", "hub/$SYS/broker/clients/connected 3",
                 "hub/$SYS/broker/messages/dropped 0", "hub/$SYS/broker/uptime 60")  # fmt: skip
    assert found == ["hub", None, None, None]
    hub = state.boards["hub"]
    assert (hub.heap_free, hub.clients, hub.dropped, hub.uptime_s, hub.seen_at) == (61000, 3, 0, 60, 1.0)
    found = feed(state, 2.0, "hub/sensor/status online", retained=True)
    assert found == ["hub/sensor"]
    assert state.boards["hub/sensor"].seen_at is None
    feed(state, 5.0, "hub/sensor/memory 55", "hub/sensor/load 1.5")
    sensor = state.boards["hub/sensor"]
    assert (sensor.state, sensor.heap_free, sensor.seen_at, hub.seen_at) == ("online", 55 * 1024, 5.0, 5.0)
    feed(state, 6.0, "hub/sensor/status offline")
    assert sensor.state == "offline"


def test_what_is_no_board_is_none() -> None:
    state = State()
    assert feed(state, 0.0, "door/status open", "x/memory 55", "a/b/status on") == [None, None, None]
    assert state.boards == {}


def test_json_has_it_all() -> None:
    state = State()
    feed(state, 1.0, f"{PREFIX}clients/connected 2", f"{PREFIX}uptime 12 seconds".replace(" seconds", ""))
    feed(state, 1.0, "kitchen/status online")
    told = state.as_json(3.5)
    assert told["clients"] == {"connected": 2, "disconnected": None, "maximum": None}
    [board] = told["boards"]  # type: ignore[misc]
    assert (board["name"], board["state"], board["seen_s_ago"]) == ("kitchen", "online", 2.5)


@pytest.mark.parametrize(("seconds", "text"), [
    (0, "0 s"), (119, "119 s"), (120, "2 min"), (7300, "2 h"), (200_000, "2 d"), (-1, "0 s"),
])  # fmt: skip
def test_ages(seconds: float, text: str) -> None:
    assert age(seconds) == text


@pytest.mark.parametrize(("count", "text"), [
    (None, ""), (999, "999 bytes"), (61_000, "61.0 kB"), (42_000_000, "42.0 MB"), (5_000_000_000, "5.0 GB"),
])  # fmt: skip
def test_sizes(count: int | None, text: str) -> None:
    assert size(count) == text
