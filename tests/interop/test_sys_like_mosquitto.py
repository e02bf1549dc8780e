"""$SYS beside Mosquitto's: the same names, and what they say of the same traffic."""

import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from brokers import RunningBroker, needs_mosquitto, start_host, start_mosquitto

pytestmark = needs_mosquitto

TIMEOUT_S = 20
# What a program that watches Mosquitto may ask for, whatever version it is: mosquitto(8) and what 2.0 publishes.
NUMBER = re.compile(r"\d+(\.\d\d)?( seconds)?")


def mosquitto(name: str, broker: RunningBroker, *args: str, **options) -> subprocess.CompletedProcess:
    command = [f"mosquitto_{name}", "-p", str(broker.port), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, **options)


def traffic(broker: RunningBroker) -> None:
    """Sessions that stay, retained messages, a queue: something for each number."""
    mosquitto("sub", broker, "-c", "-i", "away", "-t", "kept", "-q", "1", "-E")
    for _ in range(3):
        mosquitto("pub", broker, "-t", "kept", "-m", "12345", "-q", "1", "-r")


def sys_topics(broker: RunningBroker) -> dict[str, str]:
    """Every $SYS topic with its last value, of a subscriber that stays for some updates."""
    command = ["mosquitto_sub", "-p", str(broker.port), "-v", "-t", "$SYS/#", "-W", "3"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S).stdout
    # "retained messages" has a space: the value is the last word, or the last two of "5 seconds".
    pairs = [re.fullmatch(r"(.*?) (midge version .*|mosquitto version .*|\d\S*(?: seconds)?)", line)
             for line in shown.splitlines()]  # fmt: skip
    return {pair[1]: pair[2] for pair in pairs}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory):
    config = tmp_path_factory.mktemp("sys") / "midge.toml"
    config.write_text("[sys]\ninterval = 1\n")
    with (
        start_host("--config", config) as ours,
        start_mosquitto("sys_interval 1") as theirs,
        ThreadPoolExecutor() as pool,
    ):
        list(pool.map(traffic, (ours, theirs)))
        time.sleep(1.1)  # an update with the traffic in it
        yield tuple(pool.map(sys_topics, (ours, theirs)))


def test_every_topic_of_mosquitto_is_there(both) -> None:
    ours, theirs = both
    assert len(theirs) >= 50
    assert theirs.keys() - ours.keys() == set()


def test_the_values_read_alike(both) -> None:
    ours, theirs = both
    for topic in theirs.keys() - {"$SYS/broker/version"}:
        assert NUMBER.fullmatch(theirs[topic]) and NUMBER.fullmatch(ours[topic]), topic
        assert ("." in ours[topic]) == ("." in theirs[topic]), topic


@pytest.mark.parametrize("name", ["clients/connected", "clients/disconnected", "clients/inactive", "clients/active",
                                  "clients/total", "clients/expired", "subscriptions/count",
                                  "shared_subscriptions/count", "publish/messages/dropped",
                                  "publish/bytes/received"])  # fmt: skip
def test_the_same_traffic_is_counted_the_same(both, name: str) -> None:
    ours, theirs = both
    assert ours[f"$SYS/broker/{name}"] == theirs[f"$SYS/broker/{name}"]


def test_loads_are_more_than_nothing(both) -> None:
    ours, _ = both
    for name in ("messages/received", "messages/sent", "publish/received", "bytes/received", "bytes/sent", "sockets",
                 "connections"):  # fmt: skip
        one, five, fifteen = (float(ours[f"$SYS/broker/load/{name}/{window}min"]) for window in (1, 5, 15))
        assert one > five > fifteen > 0


def test_clients_may_not_publish_there(host_broker) -> None:
    mosquitto("pub", host_broker, "-t", "$SYS/broker/uptime", "-m", "forged", "-r", "-q", "1")
    shown = mosquitto("sub", host_broker, "-t", "$SYS/broker/uptime", "-C", "1", "-W", "12").stdout
    assert re.fullmatch(r"\d+ seconds\n", shown)
