"""Limits: what is refused, what is only slowed down, and what is counted."""

from __future__ import annotations

import pytest

from midge.core.addresses import ConnectionCounts, network_of
from midge.core.connection import HELD_BY_STORE
from midge.core.limits import Limits
from midge.core.rate import DEBT_MAX_S, Rate, rate_of
from midge.protocol import packets as p
from midge.protocol.encoder import encode
from midge.protocol.reasons import ReasonCode

from .harness import Client, Core, connect_packet, publish_packet


def met(core: Core) -> dict[str, int]:
    return {name: count for name, count in core.broker.counters.limits_met.items() if count}


# -- rates --


def test_no_limit_costs_nothing() -> None:
    assert rate_of(Limits()) is None


def test_a_burst_of_a_second_is_free_and_then_the_rate_holds() -> None:
    rate = Rate(Limits(max_packets_per_second=10))
    assert rate.take(10, 1000, 100.0) == (0.0, "max_packets_per_second")
    assert rate.take(5, 1000, 100.0)[0] == pytest.approx(0.5)
    assert rate.take(0, 0, 100.5)[0] == pytest.approx(0)
    assert rate.take(10, 1000, 200.0)[0] == pytest.approx(0)  # what isn't used for long is not saved up
    assert rate.take(1, 1000, 200.0)[0] == pytest.approx(0.1)


def test_the_limit_that_is_further_exceeded_counts() -> None:
    rate = Rate(Limits(max_packets_per_second=10, max_bytes_per_second=100))
    wait_s, name = rate.take(20, 100, 100.0)
    assert (round(wait_s, 6), name) == (1.0, "max_packets_per_second")
    wait_s, name = rate.take(1, 500, 100.0)
    assert (round(wait_s, 6), name) == (5.0, "max_bytes_per_second")


def test_who_is_too_fast_is_not_read_from_for_a_while() -> None:
    core = Core(max_packets_per_second=10)
    client = core.client("one", 5, keep_alive_s=1)
    run = b"".join(encode(publish_packet("a", b"x"), 5) for _ in range(30))
    client.send_bytes(run)
    assert client.is_held
    assert core.broker.counters.publish_received == 30  # what came is done
    core.advance(1.9)
    assert client.is_held and client.is_open  # its keep alive doesn't run while it isn't read from
    core.advance(0.2)
    assert not client.is_held
    assert met(core) == {"max_packets_per_second": 1}
    core.advance(2)
    assert not client.is_open
    assert client.take()[-1] == p.Disconnect(ReasonCode.KEEP_ALIVE_TIMEOUT)


def test_who_is_far_ahead_is_disconnected_and_its_packets_are_not_taken() -> None:
    core = Core(max_packets_per_second=10)
    client = core.client("one", 5)
    client.take()
    count = 10 * int(DEBT_MAX_S) + 20
    client.send_bytes(b"".join(encode(publish_packet("a", b"x"), 5) for _ in range(count)))
    assert client.take() == [p.Disconnect(ReasonCode.MESSAGE_RATE_TOO_HIGH)]
    assert core.broker.counters.publish_received == 0


def test_a_client_is_read_from_again_when_no_reason_is_left() -> None:
    core = Core(max_packets_per_second=10)
    client = core.client("one")
    client.send_bytes(b"".join(encode(publish_packet("a", b"x"), 4) for _ in range(30)))
    client.connection.hold(HELD_BY_STORE, True)
    core.advance(3)
    assert client.is_held
    client.connection.hold(HELD_BY_STORE, False)
    assert not client.is_held


def test_a_lost_connection_leaves_no_timer_of_its_rate() -> None:
    core = Core(max_packets_per_second=10)
    client = core.client("one")
    client.send_bytes(b"".join(encode(publish_packet("a", b"x"), 4) for _ in range(30)))
    client.lose()
    core.advance(10)
    assert client.is_held  # nobody was told to go on


# -- connections --


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1:1883", "192.0.2.1"),
        ("2001:db8::1:1883", "2001:0db8:0000:0000"),
        ("[2001:db8:1:2:3::1]:1883", "2001:0db8:0001:0002"),
        ("fe80::1%eth0:1883", "fe80:0000:0000:0000"),
        ("::ffff:192.0.2.1:5", "192.0.2.1"),
        ("127.0.0.1:5", None),
        ("::1:5", None),
        ("::ffff:127.0.0.1:5", None),
        ("unix:/run/midge", None),
        ("bridge kitchen", None),
        ("test", None),
    ],
)
def test_what_counts_as_one_network(address: str, network: str | None) -> None:
    assert network_of(address) == network


def test_counts_forget_networks_without_connections() -> None:
    counts = ConnectionCounts()
    assert [counts.add("192.0.2.1:1"), counts.add("192.0.2.1:2"), counts.add("127.0.0.1:1")] == [1, 2, 0]
    for _ in range(3):
        counts.remove("192.0.2.1:1")
    assert counts.add("192.0.2.1:3") == 1


def from_address(core: Core, address: str) -> Client:
    client = Client(core, 5)
    client.connection.lost(core.now)
    client.connection = core.broker.open(address, client, core.now)
    core.turn()
    return client


def test_too_many_from_one_network_are_told_and_far_too_many_not_even_read() -> None:
    core = Core(max_connections_per_address=2)
    clients = [from_address(core, f"192.0.2.1:{number}") for number in range(5)]
    assert [client.is_open for client in clients] == [True] * 4 + [False]
    for client in clients[:4]:
        client.send(connect_packet("", 5))
    codes = [client.take()[0].reason_code for client in clients[:4]]
    assert codes == [0, 0, ReasonCode.QUOTA_EXCEEDED, ReasonCode.QUOTA_EXCEEDED]
    assert met(core) == {"max_connections_per_address": 3}
    clients[0].lose()
    again = from_address(core, "192.0.2.1:9")
    again.send(connect_packet("", 5))
    assert again.take()[0].reason_code == 0


def test_too_many_in_total_are_told_that_the_server_is_busy() -> None:
    core = Core(max_connections=1)
    first, second = core.client("one", 5), core.client("two", 5)
    assert [client.take()[0].reason_code for client in (first, second)] == [0, ReasonCode.SERVER_BUSY]
    assert core.client("three", 4).take()[0].reason_code == 3
    assert met(core) == {"max_connections": 2}


# -- topics and subscriptions --


def test_the_limits_of_a_reload_hold_for_topics_that_were_routed_before() -> None:
    core = Core()
    client, other = core.client("one", 5), core.client("two", 5)
    client.publish("a/b/c", b"x", 1)
    core.broker.set_limits(Limits(max_topic_levels=2))
    client.publish("a/b", b"x", 1)
    assert len(client.take(p.Puback)) == 2
    client.publish("a/b/c", b"x", 1)
    assert client.take() == [p.Disconnect(ReasonCode.TOPIC_NAME_INVALID)]
    assert met(core) == {"max_topic_levels": 1}
    assert other.subscribe("a/b/#") == ReasonCode.TOPIC_FILTER_INVALID
    assert core.broker.retained.count == 0


def test_a_will_that_has_too_many_levels_since_a_reload_is_not_published() -> None:
    core = Core()
    watcher, dying = core.client("one", 5), core.client("two", 5, will=p.Will("a/b/c", b"x", 0, False))
    watcher.subscribe("#")
    watcher.take()
    core.broker.set_limits(Limits(max_topic_levels=2))
    dying.lose()
    assert watcher.take() == []


def test_a_limit_of_subscriptions_that_was_lowered_keeps_those_that_there_are() -> None:
    core = Core()
    client = core.client("one", 5)
    for topic_filter in ("a", "b", "c"):
        assert client.subscribe(topic_filter) == 0
    core.broker.set_limits(Limits(max_subscriptions=1))
    assert client.subscribe("d") == ReasonCode.QUOTA_EXCEEDED
    assert client.subscribe("c", 1) == 1
    client.publish("a", b"x")
    assert [packet.payload for packet in client.take(p.Publish)] == [b"x"]


@pytest.mark.parametrize("version", [4, 5])
def test_a_retained_message_that_finds_no_room_reaches_nobody_at_qos_1(version: int) -> None:
    core = Core(is_durable=True, max_retained_messages=1)
    client, watcher = core.client("one", version), core.client("two", version)
    watcher.subscribe("#")
    watcher.take()
    client.publish("a", b"x", 1, retain=True)
    client.publish("b", b"y", 1, 2, retain=True)
    assert [packet.payload for packet in watcher.take()] == [b"x"]
    expected = [p.Puback(1, 0)] + ([p.Puback(2, ReasonCode.QUOTA_EXCEEDED)] if version == 5 else [])
    assert client.take()[1:] == expected
    assert client.is_open is (version == 5)
    assert met(core) == {"max_retained_messages": 1}


@pytest.mark.parametrize("version", [4, 5])
def test_what_follows_a_connect_that_is_refused_at_once_is_not_looked_at(version: int) -> None:
    core = Core(max_connections=1)
    core.client("one", version)
    second = core.client(version=version, connect=False)
    packets = (connect_packet("two", version), publish_packet("a", b"x", 1), p.Pingreq(), publish_packet("a", b"x"))
    second.send_bytes(b"".join(encode(packet, version) for packet in packets) + b"\x00\x00")
    assert second.take() == [p.Connack(False, ReasonCode.SERVER_BUSY if version == 5 else 3)]
    assert core.broker.counters.protocol_errors == core.broker.counters.publish_received == 0


def test_a_retained_will_that_finds_no_room_is_passed_on_but_not_kept() -> None:
    core = Core(max_retained_messages=1)
    watcher, dying = core.client("one", 5), core.client("two", 5, will=p.Will("a/b", b"gone", 0, True))
    watcher.subscribe("#")
    watcher.publish("a", b"x", 1, retain=True)
    watcher.take()
    dying.lose()
    assert [packet.payload for packet in watcher.take()] == [b"gone"]
    assert core.broker.retained.count == 1


def test_single_small_packets_count_too() -> None:
    core = Core(max_packets_per_second=10)
    client = core.client("one", 5)
    held = []
    for _ in range(15):
        client.publish("a", b"x")
        held.append(client.is_held)
    assert held == [False] * 9 + [True] * 6  # CONNECT was the first of ten
    assert core.broker.counters.publish_received == 15
