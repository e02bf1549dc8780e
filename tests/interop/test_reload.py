"""SIGHUP: what a running broker takes over from its file, and that a file that is wrong changes nothing.

Users, rules, certificates and what follows for who is connected: test_listeners.py and test_access_*.py.
"""

import signal
from collections.abc import Callable
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest

from brokers import RunningBroker, start_host
from paho_peer import TIMEOUT_S

RELOADED = "configuration reloaded"


class Reloadable:
    def __init__(self, config: Path, text: str, until_the_end) -> None:
        self.config = config
        config.write_text(text)
        self.broker: RunningBroker = until_the_end.enter_context(start_host("--config", config))

    def reload(self, text: str, expected: str = RELOADED) -> str:
        """What the log says of it."""
        self.config.write_text(text)
        before = len(self.broker.output())
        self.broker.process.send_signal(signal.SIGHUP)
        self.broker.wait_for_output(rf"(?s).{{{before}}}.*{expected}", TIMEOUT_S)
        return self.broker.output()[before:]


@pytest.fixture
def start(until_the_end, tmp_path: Path) -> Callable[[str], Reloadable]:
    return lambda text: Reloadable(tmp_path / "midge.toml", text, until_the_end)


def bridge(other: RunningBroker, prefix: str, name: str = "other") -> str:
    topics = f'[{{ filter = "news/#", direction = "in", qos = 1, local_prefix = "{prefix}/" }}]'
    return f'[[bridge]]\nname = "{name}"\naddress = "mqtt://127.0.0.1:{other.port}"\ntopics = {topics}\n'


def test_bridges_come_change_and_go(start, host_broker: RunningBroker, paho, eventually) -> None:
    here = start("")
    watcher, there = paho(here.broker, "watcher"), paho(host_broker, "there")
    watcher.subscribe("#", "$SYS/broker/connection/#", qos=1)
    seen: list[tuple[str, bytes]] = []

    def count(topic: str, payload: bytes) -> int:
        seen.extend((message.topic, message.payload) for message in watcher.receive_all())
        return seen.count((topic, payload))

    state = "$SYS/broker/connection/other/state"
    here.reload(bridge(host_broker, "a"))
    eventually(lambda: count(state, b"1") == 1)
    eventually(lambda: there.publish("news/1", b"one", 1) or count("a/news/1", b"one"))
    here.reload(bridge(host_broker, "b"))
    eventually(lambda: count(state, b"1") == 2)
    eventually(lambda: there.publish("news/2", b"two", 1) or count("b/news/2", b"two"))
    assert count("a/news/2", b"two") == 0
    here.reload("")
    eventually(lambda: count(state, b""))
    there.publish("news/3", b"three", 1)
    assert count("b/news/3", b"three") == 0
    late = paho(here.broker, "late")
    late.subscribe("$SYS/broker/connection/#")
    assert late.receive_all() == []


def test_limits_hold_for_who_comes_and_who_is_there(start, paho) -> None:
    here = start("[limits]\nmax_keep_alive = 100\n")
    first = paho(here.broker, "first", mqtt.MQTTv5, keep_alive_s=600)
    assert first.connack_properties.ServerKeepAlive == 100
    here.reload("[limits]\nmax_keep_alive = 50\nmax_packet_size = 1000\n")
    second = paho(here.broker, "second", mqtt.MQTTv5, keep_alive_s=600)
    assert second.connack_properties.ServerKeepAlive == 50
    assert second.connack_properties.MaximumPacketSize == 1000
    # What the first was told it may send holds for as long as it stays.
    first.publish("a", bytes(2000), 1)
    second.client.publish("a", bytes(2000), 1)
    assert second.lost.wait(TIMEOUT_S) and second.lost_reason == 0x95
    # A key that is no longer in the file is at its default again.
    here.reload("")
    third = paho(here.broker, "third", mqtt.MQTTv5, keep_alive_s=600)
    assert not hasattr(third.connack_properties, "ServerKeepAlive")


def test_the_interval_of_sys_changes_and_0_takes_the_topics_away(start, paho, eventually) -> None:
    here = start("[sys]\ninterval = 3600\n")
    watcher = paho(here.broker, "watcher")
    watcher.subscribe("$SYS/broker/uptime", "$SYS/broker/version")
    assert len(watcher.receive_all()) == 2
    here.reload("[sys]\ninterval = 1\n")
    for _ in range(2):
        assert watcher.receive().topic == "$SYS/broker/uptime"
    here.reload("[sys]\ninterval = 0\n")
    eventually(lambda: (b"",) in {(message.payload,) for message in watcher.receive_all()})
    late = paho(here.broker, "late")
    late.subscribe("$SYS/#")
    assert late.receive_all() == []
    here.reload("")
    assert {message.topic for message in late.receive_all()} >= {"$SYS/broker/uptime", "$SYS/broker/version"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("[limits]\nmax_keep_alive = 50\nnonsense = 1\n", r"midge.toml:3: limits.nonsense: unknown key"),
        ("[limits]\nmax_keep_alive = 50\n[access]\nacl_file = 'none'\n", r"none: No such file"),
        ("[limits]\nmax_keep_alive = 50\n[access]\npassword_file = 'none'\n", r"none: No such file"),
        ("[limits]\nmax_keep_alive = ", r"midge.toml:2: not valid TOML"),
    ],
)
def test_a_file_that_is_wrong_changes_nothing(start, paho, wrong: str, said: str) -> None:
    here = start("[limits]\nmax_keep_alive = 100\n")
    assert "configuration reloaded" not in here.reload(wrong, f"ERROR not reloaded: .*{said}")
    client = paho(here.broker, "client", mqtt.MQTTv5, keep_alive_s=600)
    assert client.connack_properties.ServerKeepAlive == 100
    here.reload("[limits]\nmax_keep_alive = 50\n")


def test_what_takes_a_restart_is_said(start) -> None:
    here = start("")
    said = here.reload("[store]\ndurability = 'none'\n[http]\nport = 0\n[[listener]]\nport = 1\n")
    assert "WARNING [store] has changed: that takes a restart" in said
    assert "WARNING [http] has changed: that takes a restart" in said
    # --port comes before the file's: the listener is where it was.
    assert "listeners" not in said
    assert "WARNING listeners are added, moved and removed only by a restart" in here.reload("[[listener]]\n" * 2)
