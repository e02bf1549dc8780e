"""No loops: however brokers are linked, each message reaches each subscriber once, and then it is quiet."""

import time
from collections import Counter
from pathlib import Path

import pytest

from brokers import RunningBroker, free_port, needs_mosquitto, start_board, start_host, start_mosquitto
from paho_peer import Paho

from .bridging import (
    collect,
    connected,
    each_gets_each_once,
    links_carry,
    listeners,
    mosquitto_section,
    section,
    start_aedes,
    start_amqtt,
    start_bridging,
)

pytestmark = pytest.mark.timeout(120)


def retained(broker: RunningBroker) -> Counter[str]:
    """"TOPIC PAYLOAD" of what a new subscriber to everything is told."""
    client = Paho(broker.port)
    client.subscribe("#", qos=1)
    time.sleep(0.3)
    client.disconnect()
    told = [client.messages.get() for _ in range(client.messages.qsize())]
    return Counter(f"{message.topic} {message.payload.decode()}" for message in told)


@pytest.mark.parametrize("version", ["3.1.1", "5.0"])
def test_two_brokers_and_one_bridge(tmp_path: Path, until_the_end, version: str) -> None:
    there = until_the_end.enter_context(start_host())
    here = until_the_end.enter_context(start_bridging(tmp_path, section("b", there.port, version=version)))
    connected(here)
    each_gets_each_once(here, there)


def test_two_links_to_one_broker_of_ours_double_nothing_and_are_named(tmp_path: Path, until_the_end) -> None:
    there = until_the_end.enter_context(start_host())
    links = section("a", there.port), section("b", there.port)
    here = until_the_end.enter_context(start_bridging(tmp_path, *links))
    connected(here, names=("a", "b"))
    each_gets_each_once(here, there)
    for way in ("bring '#' from", "take '#' to"):
        here.wait_for_output(f"the bridges 'a' and 'b' both {way} 127.0.0.1:{there.port}: unless")


def test_two_brokers_that_bridge_each_other(tmp_path: Path, until_the_end) -> None:
    ports = free_port(), free_port()
    brokers = [
        until_the_end.enter_context(
            start_bridging(tmp_path / str(i), section(f"to{1 - i}", ports[1 - i]), port=ports[i])
        )
        for i in range(2)
    ]
    connected(*brokers)
    each_gets_each_once(*brokers)


def test_three_in_a_ring(tmp_path: Path, until_the_end) -> None:
    ports = [free_port() for _ in range(3)]
    brokers = [
        until_the_end.enter_context(
            start_bridging(tmp_path / str(i), section(f"to{(i + 1) % 3}", ports[(i + 1) % 3]), port=ports[i])
        )
        for i in range(3)
    ]
    connected(*brokers)
    each_gets_each_once(*brokers)


def test_a_board_bridged_by_two_laptops(tmp_path: Path, until_the_end) -> None:
    board = until_the_end.enter_context(start_board())
    laptops = [
        until_the_end.enter_context(
            start_bridging(tmp_path / str(i), section("board", board.port, client_id=f"laptop{i}"))
        )
        for i in range(2)
    ]
    connected(*laptops)
    each_gets_each_once(board, *laptops)


def test_a_board_bridged_by_two_laptops_that_bridge_each_other(tmp_path: Path, until_the_end, eventually) -> None:
    board = until_the_end.enter_context(start_board())
    ports = free_port(), free_port()
    laptops = [
        until_the_end.enter_context(
            start_bridging(
                tmp_path / str(i),
                section("board", board.port, client_id=f"laptop{i}"),
                section("other", ports[1 - i]),
                port=ports[i],
            )
        )
        for i in range(2)
    ]
    connected(*laptops, names=("board", "other"))
    each_gets_each_once(board, *laptops)
    for number, broker in enumerate([board, *laptops]):
        publisher = Paho(broker.port)
        for value in (b"old", b"new"):
            publisher.publish(f"kept/{number}", value, 1, retain=True)
        publisher.publish(f"deleted/{number}", b"x", 1, retain=True)
        publisher.publish(f"deleted/{number}", b"", 1, retain=True)
        publisher.disconnect()
    for broker in (board, *laptops):
        wanted = Counter({f"kept/{number} new": 1 for number in range(3)})
        eventually(lambda broker=broker, wanted=wanted: retained(broker) == wanted)
    # It is quiet: nothing goes round among them.
    watchers = listeners(board, *laptops)
    assert collect(watchers, 3) == [Counter({"new": 3})] * 3
    for watcher in watchers:
        watcher.disconnect()


@needs_mosquitto
@pytest.mark.parametrize("version", ["3.1.1", "5.0"])
def test_mosquitto_as_the_other_side(tmp_path: Path, until_the_end, version: str) -> None:
    there = until_the_end.enter_context(start_mosquitto())
    here = until_the_end.enter_context(start_bridging(tmp_path, section("b", there.port, version=version)))
    connected(here)
    each_gets_each_once(here, there)


@needs_mosquitto
@pytest.mark.parametrize("version", ["mqttv311", "mqttv50"])
def test_mosquitto_bridges_to_us(until_the_end, version: str) -> None:
    here = until_the_end.enter_context(start_host())
    conf = mosquitto_section("m", here.port, "topic # both 2", f"bridge_protocol_version {version}")
    there = until_the_end.enter_context(start_mosquitto(conf))
    links_carry(here, there)
    each_gets_each_once(here, there)


def test_aedes_as_the_other_side(tmp_path: Path, until_the_end) -> None:
    there = until_the_end.enter_context(start_aedes())
    here = until_the_end.enter_context(start_bridging(tmp_path, section("b", there.port)))
    connected(here)
    each_gets_each_once(here, there, may_lose=2)  # about one run in eight it does, at QoS 1


def test_a_broker_that_knows_no_bridges_is_named_and_what_comes_back_dropped(tmp_path: Path, until_the_end) -> None:
    there = until_the_end.enter_context(start_amqtt())
    here = until_the_end.enter_context(start_bridging(tmp_path, section("b", there.port, connect_timeout=2)))
    connected(here)
    here.wait_for_output("bridge b: a loop: the remote broker sends back what we send it", 20)
    each_gets_each_once(here, there)


@needs_mosquitto
def test_a_ring_without_marks_is_named_and_it_ends(tmp_path: Path, until_the_end, eventually) -> None:
    ports = free_port(), free_port()
    middle = until_the_end.enter_context(start_mosquitto())
    first = until_the_end.enter_context(
        start_bridging(
            tmp_path / "1", section("m", middle.port, version="3.1.1"), section("s", ports[1], version="3.1.1")
        )
    )
    second = until_the_end.enter_context(
        start_bridging(tmp_path / "2", section("m2", middle.port, version="3.1.1", client_id="two"), port=ports[1])
    )
    connected(first, names=("m", "s"))
    connected(second)
    (listener,) = listeners(middle)
    publisher = Paho(middle.port)
    publisher.publish("round/and/round", b"x", 1)
    eventually(lambda: "a loop: 'round/and/round' comes round by the bridge" in first.output() + second.output())
    (got,) = collect([listener], 1)
    assert 1 < got["x"] < 200
    publisher.publish("something/else", b"y", 1)
    (got,) = collect([listener], 1)
    assert got["y"] and not got["x"], "it is quiet"
    publisher.disconnect()
    listener.disconnect()
