"""ZeroMQ's caveats, start order and slow joiners: whatever is started first, all find each other; and whoever has its
SUBACK misses nothing that is published from then on.

The parts are a board with sensors, the board that is its hub, the host's broker with its bridge to the hub, and a
client on the laptop. They are started in each of the 24 orders, the next when the one before is up, or (a client whose
broker isn't there yet) has tried for a moment in vain.
"""

from __future__ import annotations

import itertools
import os
import queue
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest

from brokers import ROOT, BrokerDidNotStart, free_port, micropython, start_board, start_host
from faults.peers import Peer
from midge.protocol import packets as p

PARTS = ("board", "hub", "host", "laptop")
ORDERS = list(itertools.permutations(PARTS))
# Orders that are tried at a time: most of each is waiting for the next attempt to connect.
AT_A_TIME = 3
MOMENT_S = 0.2
# Far more than any waits for its next attempt (the bridge at most 2 s, Paho 1 s, the board's client 8 s).
DEADLINE_S = 60
BRIDGE = """
[[bridge]]
name = "hub"
address = "mqtt://127.0.0.1:{}"
reconnect_min = 1
reconnect_max = 2
topics = [
  {{ filter = "#", direction = "in", qos = 1, local_prefix = "hub/" }},
  {{ filter = "+/set/#", direction = "out", qos = 1, local_prefix = "hub/" }},
]
"""


class Laptop:
    """Paho, as its users start it: it tries until the broker is there."""

    def __init__(self, port: int) -> None:
        self.messages: queue.Queue[tuple[str, str]] = queue.Queue()
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = lambda client, *_: client.subscribe("hub/#", 1)
        self.client.on_message = lambda _client, _data, message: self.messages.put(
            (message.topic, message.payload.decode())
        )
        self.client.connect_async("127.0.0.1", port)
        self.client.loop_start()

    def wait_for(self, topic: str, payload: str = "") -> None:
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            try:
                found = self.messages.get(timeout=1)
            except queue.Empty:
                continue
            if found[0] == topic and payload in ("", found[1]):
                return
        raise AssertionError(f"no {topic} {payload}")

    def stop(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


class Parts:
    """What is started, in some order, on ports that are chosen before; stopped together."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.stack = stack
        self.host_port, self.hub_port = free_port(), free_port()
        self.config = directory / "midge.toml"
        self.config.write_text(BRIDGE.format(self.hub_port))
        self.directory = directory

    def start(self, part: str) -> None:
        if part == "hub":
            self.stack.enter_context(start_board(port=self.hub_port))
        elif part == "host":
            arguments = ("--port", str(self.host_port), "--config", self.config, "--data", self.directory)
            self.stack.enter_context(start_host(*arguments))
        elif part == "laptop":
            self.laptop = Laptop(self.host_port)
            self.stack.callback(self.laptop.stop)
            time.sleep(MOMENT_S)
        else:
            command = [micropython(), str(ROOT / "device/examples/sensor.py"), "sensor", "127.0.0.1"]
            environment = {**os.environ, "MICROPYPATH": f"{ROOT / 'device'}:.frozen"}
            board = subprocess.Popen(
                [*command, str(self.hub_port), "1"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            self.stack.callback(_end, board)
            time.sleep(MOMENT_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def _start_and_talk(order: tuple[str, ...], directory: Path) -> None:
    try:
        _try(order, directory)
    except BrokerDidNotStart:  # another process has taken the port since it was chosen: on others, then
        _try(order, directory.with_name(f"{directory.name}-again"))


def _try(order: tuple[str, ...], directory: Path) -> None:
    directory.mkdir()
    with ExitStack() as stack:
        parts = Parts(directory, stack)
        for part in order:
            parts.start(part)
        parts.laptop.wait_for("hub/sensor/load")
        parts.laptop.client.publish("hub/sensor/set/interval", "2", 1)
        parts.laptop.wait_for("hub/sensor/state/interval", "2")


@pytest.mark.timeout(300)
def test_parts_find_each_other_whatever_is_started_first(tmp_path: Path) -> None:
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        waiting = {
            order: pool.submit(_start_and_talk, order, tmp_path / "-".join(order)) for order in ORDERS
        }
        failed = {order: error for order, run in waiting.items() if (error := run.exception())}
    assert not failed, "\n".join(f"{', '.join(order)}: {error!r}" for order, error in failed.items())


class Load:
    """Others' traffic meanwhile: bursts of messages from one client to another, as fast as both can."""

    def __init__(self, port: int) -> None:
        self.received = 0
        self._ends = False
        self._subscriber, self._publisher = Peer("load's subscriber"), Peer("load's publisher")
        for peer in (self._subscriber, self._publisher):
            peer.connect(port)
        self._subscriber.send(p.Subscribe(1, [p.Subscription("load/#", 1)]))
        assert isinstance(self._subscriber.receive(10), p.Suback)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        burst = [p.Publish(f"load/{number % 7}", bytes(50)) for number in range(50)]
        while not self._ends:
            self._publisher.send(*burst)
            for _ in burst:
                assert self._subscriber.receive(30) is not None
                self.received += 1

    def stop(self) -> None:
        self._ends = True
        self._thread.join(30)
        self._subscriber.close()
        self._publisher.close()


@pytest.mark.parametrize(("kind", "rounds"), [("host", 1000), ("board", 200)])
def test_nothing_published_after_suback_is_missed(kind: str, rounds: int) -> None:
    with {"host": start_host, "board": start_board}[kind]() as broker:
        load = Load(broker.port)
        joiner, publisher = Peer("joiner"), Peer("publisher")
        joiner.connect(broker.port)
        publisher.connect(broker.port)
        for number in range(rounds):
            topic, wanted = f"round/{number}", f"round/{number if number % 3 else '+'}"
            joiner.send(p.Subscribe(1, [p.Subscription(wanted, number % 2)]))
            suback = joiner.receive(30)
            assert isinstance(suback, p.Suback) and suback.reason_codes == [number % 2]
            publisher.send(p.Publish(topic, b"%d" % number))
            came = joiner.receive(30)
            assert isinstance(came, p.Publish) and (came.topic, came.payload) == (topic, b"%d" % number)
            joiner.send(p.Unsubscribe(2, [wanted]))
            assert isinstance(joiner.receive(30), p.Unsuback)
        received = load.received
        load.stop()
        joiner.close()
        publisher.close()
    print(f"{rounds} rounds, none missed, while {received} messages went between others")
    assert received > rounds // 10
