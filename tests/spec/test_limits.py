"""The limits of `[limits]`, met over a real socket: the reason code, the counter, and what still works."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from spec_client import TIMEOUT_S, Client

from brokers import start_host
from midge.protocol import packets as p

Connect = Callable[..., Client]

LIMITS = """
[sys]
interval = 1
[limits]
max_packet_size = 10_000
receive_maximum = 3
topic_alias_maximum = 2
connect_timeout = 1
max_subscriptions = 3
max_topic_levels = 4
max_retained_messages = 2
max_retained_bytes = 100
[[listener]]
port = 0
[[listener]]
port = 0
limits = { max_packets_per_second = 100, max_bytes_per_second = 5000 }
"""


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[int]]:
    path: Path = tmp_path_factory.mktemp("limits") / "midge.toml"
    path.write_text(LIMITS)
    with start_host("--config", path) as running:
        second = running.wait_for_output(r"(?s)listening.*listening on mqtt://127\.0\.0\.1:(\d+)").group(1)
        yield [running.port, int(second)]


@pytest.fixture
def port(ports: list[int]) -> int:
    return ports[0]


@pytest.fixture
def counter(client: Connect) -> Callable[[str], int]:
    """How often a limit was met, by $SYS; waits for what happened since it was last asked."""
    watcher = client(5)
    watcher.subscribe("$SYS/broker/limits/+")
    last: dict[str, int] = {}
    for message in watcher.until_ping():
        last[message.topic] = int(message.payload)

    def count(name: str) -> int:
        topic, before = f"$SYS/broker/limits/{name}", last.get(f"$SYS/broker/limits/{name}", 0)
        deadline = time.monotonic() + TIMEOUT_S
        while last.get(topic, 0) == before and time.monotonic() < deadline:
            for message in watcher.until_ping():
                last[message.topic] = int(message.payload)
            time.sleep(0.05)
        return last.get(topic, 0) - before

    return count


def test_a_packet_that_is_too_large(client: Connect, counter: Callable[[str], int], version: int, name: str) -> None:
    one = client(version)
    one.send(p.Publish(name, bytes(10_000)))
    one.expect_disconnect(0x95)
    assert counter("max_packet_size") >= 1


def test_more_under_way_than_receive_maximum(client: Connect, counter: Callable[[str], int], name: str) -> None:
    one = client(5)
    one.send(*(p.Publish(name, b"", 2, packet_id=number) for number in range(1, 5)))
    assert one.until_closed()[-1] == p.Disconnect(0x93)
    assert counter("receive_maximum") >= 1


def test_more_aliases_than_allowed(client: Connect, counter: Callable[[str], int], name: str) -> None:
    one = client(5)
    one.send(p.Publish(name, b"", properties={"topic_alias": 3}))
    one.expect_disconnect(0x94)
    assert counter("topic_alias_maximum") >= 1


def test_no_connect_in_time(port: int, client: Connect, counter: Callable[[str], int], name: str) -> None:
    one = client(5)
    one.close()
    one.open(port)
    assert one.until_closed() == []
    assert counter("connect_timeout") >= 1


def test_one_subscription_too_many(
    client: Connect, counter: Callable[[str], int], version: int, name: str
) -> None:
    one = client(version)
    assert [one.subscribe(f"{name}/{number}") for number in range(3)] == [0, 0, 0]
    assert one.subscribe(f"{name}/3") == (0x97 if version == 5 else 0x80)
    assert one.subscribe(f"{name}/2", 1) == 1  # replaces one that there is
    one.unsubscribe(f"{name}/0")
    assert one.subscribe(f"{name}/3") == 0
    assert counter("max_subscriptions") >= 1


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("retain", [False, True])
def test_a_topic_with_too_many_levels(client: Connect, version: int, name: str, qos: int, retain: bool) -> None:
    watcher, one = client(version), client(version)
    assert watcher.subscribe("+/+/+/+/#") == (0x8F if version == 5 else 0x80)
    assert watcher.subscribe(f"{name}/#") == 0
    one.send(p.Publish(f"{name}/2/3/4", b"x", packet_id=0))
    one.send(p.Publish(f"{name}/2/3/4/5", b"x", qos, retain, packet_id=1 if qos else 0))
    one.expect_disconnect(0x90)
    assert watcher.take().topic == f"{name}/2/3/4"
    assert watcher.until_ping() == []


def test_a_will_with_too_many_levels(
    port: int, counter: Callable[[str], int], version: int, name: str
) -> None:
    one = Client(port, version, name, is_accepted=False, will=p.Will("1/2/3/4/5", b"", 0, False))
    assert one.until_closed() == [p.Connack(False, 0x90 if version == 5 else 3)]
    assert counter("max_topic_levels") >= 1


@pytest.fixture
def retained(client: Connect) -> Iterator[Callable[[], dict[str, bytes]]]:
    """What is retained; afterwards nothing is."""

    def look() -> dict[str, bytes]:
        one = client(5)
        one.subscribe("#")
        found = {message.topic: message.payload for message in one.until_ping() if message.retain}
        one.leave()
        return found

    yield look
    one = client(5)
    for topic in look():
        one.publish(topic, b"", retain=True)


def refused(one: Client, version: int, topic: str, payload: bytes, qos: int) -> Client | None:
    """Publish what can't be retained; the client if it is still connected."""
    one.send(p.Publish(topic, payload, qos, True, packet_id=7))
    if version == 5:
        answer = one.receive(TIMEOUT_S)
        assert answer == (p.Puback if qos == 1 else p.Pubrec)(7, 0x97), answer
        return one
    assert one.until_closed() == []  # 3.1.1 has no answer but success
    return None


@pytest.mark.parametrize("qos", [1, 2])
def test_no_room_for_another_retained_message(
    client: Connect, retained: Callable[[], dict[str, bytes]], counter: Callable[[str], int], version: int, name: str,
    qos: int,
) -> None:  # fmt: skip
    watcher, one = client(version), client(version)
    watcher.subscribe(f"{name}/#")
    for number in range(2):
        one.publish(f"{name}/{number}", b"x", 1, retain=True)
    one.publish(f"{name}/1", b"y", 1, retain=True)  # replaces
    one = refused(one, version, f"{name}/2", b"z", qos) or client(version)
    assert counter("max_retained_messages") >= 1
    one.publish(f"{name}/2", b"w", 0, retain=True)  # QoS 0 can't be refused: passed on, not kept
    assert [message.payload for message in watcher.until_ping()] == [b"x", b"x", b"y", b"w"]
    assert retained() == {f"{name}/0": b"x", f"{name}/1": b"y"}
    one.publish(f"{name}/0", b"", 1, retain=True)
    one.publish(f"{name}/2", b"v", 1, retain=True)
    assert retained() == {f"{name}/1": b"y", f"{name}/2": b"v"}


def test_no_room_for_more_retained_bytes(
    client: Connect, retained: Callable[[], dict[str, bytes]], counter: Callable[[str], int], version: int, name: str
) -> None:
    one = client(version)
    one.publish(name, bytes(90), 1, retain=True)
    one = refused(one, version, f"{name}/2", bytes(20), 1) or client(version)
    one = refused(one, version, name, bytes(100), 1) or client(version)
    assert counter("max_retained_bytes") >= 1
    one.publish(name, b"small", 1, retain=True)
    one.publish(f"{name}/2", bytes(20), 1, retain=True)
    assert retained() == {name: b"small", f"{name}/2": bytes(20)}


# -- rates: of the second listener --


def test_who_sends_too_fast_is_read_more_slowly_and_loses_nothing(
    ports: list[int], client: Connect, counter: Callable[[str], int], version: int, name: str
) -> None:
    watcher, one = client(version), client(version, port=ports[1], keep_alive_s=1)
    watcher.subscribe(name, 1)
    started = time.monotonic()
    one.send(*(p.Publish(name, b"%d" % number) for number in range(100)))
    for number in range(100):
        assert watcher.take().payload == b"%d" % number
    for _ in range(3):  # 150 more
        one.send(*(p.Publish(name, b"%d" % number) for number in range(50)))
        assert [watcher.take().payload for _ in range(50)] == [b"%d" % number for number in range(50)]
    assert one.until_ping() == []
    # 250 packets at 100 a second, of which the first 100 come at once, and after the last nobody waits for more.
    assert time.monotonic() - started > 0.9
    assert counter("max_packets_per_second") >= 1


def test_who_is_far_ahead_of_its_rate_is_disconnected(
    ports: list[int], client: Connect, counter: Callable[[str], int], version: int, name: str
) -> None:
    watcher, one = client(version), client(version, port=ports[1])
    watcher.subscribe(name)
    # 158 kB at 5 kB/s. If the broker reads less than the 55 kB at first that are too far ahead, it reads on up to 10 s
    # later, and then all of the rest.
    one.send(*(p.Publish(name, bytes(9900)) for _ in range(16)))
    one.expect_disconnect(0x96, timeout_s=30)
    assert counter("max_bytes_per_second") >= 1
