"""`$replay/FROM/FILTER` with programs that know nothing of it: Debian's mosquitto_sub, Paho, the device's client on the
unix port; and `midge sub --since`."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest

from brokers import ROOT, RunningBroker, micropython, needs_mosquitto, start_host
from midge.core.history import SEQUENCE
from paho_peer import properties

CONFIG = """
[http]
port = 0
[[history]]
filter = "sensors/#"
age = "1d"
[[history]]
filter = "+/log"
max_messages = 1000
"""
# The client's program for a board: what was kept, then what comes, until "end".
BOARD = """
import asyncio, sys
sys.path.insert(0, "device")
from midge_client import Client

async def main():
    client = Client("board", "127.0.0.1", int(sys.argv[1]))
    await client.connect()
    await client.subscribe("$replay/1h/sensors/#", qos=1)
    async for topic, payload, retained in client:
        print(topic, payload.decode(), retained)
        if payload == b"3":
            await client.publish("sensors/a", b"end", qos=1)
        if payload == b"end":
            break
    await client.disconnect()

asyncio.run(main())
"""


@pytest.fixture
def broker(tmp_path: Path):
    config = tmp_path / "midge.toml"
    config.write_text(CONFIG)
    with start_host("--config", config, "--data", tmp_path) as running:
        yield running


@pytest.fixture
def kept(broker: RunningBroker, paho):
    """1 to 3 are kept, on the topics a, b and a below sensors/."""
    publisher = paho(broker)
    for number, name in enumerate("aba", 1):
        publisher.publish(f"sensors/{name}", str(number), 1)
    return publisher


@needs_mosquitto
@pytest.mark.parametrize("version", ["311", "5"])
def test_mosquitto_sub_gets_what_was_kept(broker: RunningBroker, kept, version: str) -> None:
    command = ["mosquitto_sub", "-V", version, "-p", str(broker.port), "-v", "-q", "1", "-C", "3", "-W", "20"]
    printed = subprocess.run([*command, "-t", "$replay/1h/sensors/#"], capture_output=True, text=True, timeout=30)
    assert printed.stdout.splitlines() == ["sensors/a 1", "sensors/b 2", "sensors/a 3"]


@needs_mosquitto
def test_a_replay_that_cannot_be_is_refused_and_the_log_says_why(broker: RunningBroker) -> None:
    command = ["mosquitto_sub", "-p", str(broker.port), "-W", "20", "-t", "$replay/yesterday/sensors/#"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert "denied" in refused.stderr
    broker.wait_for_output(r"subscription to '\$replay/yesterday/sensors/#' refused: yesterday: FROM must be all")


def test_midge_sub_since(broker: RunningBroker, kept) -> None:
    command = [sys.executable, "-m", "midge", "sub", "-p", str(broker.port), "-v", "-W", "20"]
    found = [
        subprocess.run([*command, *more], capture_output=True, text=True, timeout=30).stdout.splitlines()
        for more in (
            ["--since", "1h", "-C", "2", "-t", "sensors/a"],
            ["--since", "after/2", "-C", "1", "-t", "sensors/#", "-V", "5", "-F", "%t %p %P"],
        )
    ]
    assert found == [["sensors/a 1", "sensors/a 3"], [f"sensors/a 3 {SEQUENCE}:3"]]


def test_paho_continues_live_and_a_session_goes_on_where_it_was(broker: RunningBroker, kept, paho) -> None:
    lasts = {"version": mqtt.MQTTv5, "clean": False}
    reader = paho(broker, "reader", connect_properties=properties("CONNECT", SessionExpiryInterval=100), **lasts)
    assert reader.subscribe("$replay/all/sensors/#", qos=2) == [2]
    assert [reader.receive().payload for _ in range(3)] == [b"1", b"2", b"3"]
    kept.publish("sensors/c", "4", 2)
    live = reader.receive()
    assert (live.topic, live.payload, live.qos) == ("sensors/c", b"4", 2)
    assert dict(live.properties.UserProperty)[SEQUENCE] == "4"
    reader.disconnect()
    for number in (5, 6):
        kept.publish("sensors/c", str(number), 1)
    reader = paho(broker, "reader", connect_properties=properties("CONNECT", SessionExpiryInterval=100), **lasts)
    assert reader.session_present
    assert reader.subscribe("$replay/all/sensors/#", qos=2) == [2]
    assert [reader.receive().payload for _ in range(2)] == [b"5", b"6"]
    assert reader.unsubscribe("$replay/all/sensors/#") == [0]
    kept.publish("sensors/c", "7", 1)
    assert reader.receive_all() == []


def test_the_board_client_gets_what_was_kept_and_what_comes(broker: RunningBroker, kept, tmp_path: Path) -> None:
    program = tmp_path / "board.py"
    program.write_text(BOARD)
    command = [micropython(), str(program), str(broker.port)]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=40)
    assert printed.returncode == 0, printed.stdout + printed.stderr
    wanted = [("a", "1"), ("b", "2"), ("a", "3"), ("a", "end")]
    assert printed.stdout.splitlines() == [f"sensors/{name} {payload} False" for name, payload in wanted]


def test_a_history_can_come_while_the_broker_runs(broker: RunningBroker, kept, paho, tmp_path: Path) -> None:
    (tmp_path / "midge.toml").write_text(CONFIG + '[[history]]\nfilter = "doors/#"\n')
    broker.process.send_signal(signal.SIGHUP)
    broker.wait_for_output("configuration reloaded")
    kept.publish("doors/front", "open", 1)
    reader = paho(broker)
    assert reader.subscribe("$replay/all/doors/#") == [0]
    assert reader.receive().payload == b"open"


def test_what_is_kept_is_shown(broker: RunningBroker, kept, paho) -> None:
    reader = paho(broker)
    reader.subscribe("$replay/all/+/log")
    reader.subscribe("$replay/all/sensors/a")
    assert [reader.receive().payload for _ in range(2)] == [b"1", b"3"]
    url = broker.wait_for_output(r"http://127\.0\.0\.1:\d+").group(0)
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(values["midge_history_messages"]) == 3
    assert float(values["midge_history_last"]) == 3
    assert float(values["midge_replay_readers"]) == 2
    assert float(values["midge_replayed_messages_total"]) == 2
