"""Two brokers and a bridge between them; one or the other is killed (SIGKILL) again and again under load.

A message that one side acknowledged arrives on the other: at least once at QoS 1, exactly once at QoS 2.
MIDGE_KILLS sets the number of kills for each case (3), MIDGE_SEED the moments.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from brokers import RunningBroker, start_host

from .peers import Disconnected, Publisher, Subscriber
from .test_host_killed import KILLS, SEED, check_history

LIMITS = "[limits]\nmax_queued_messages = 1_000_000\n"
BRIDGE = """
[[bridge]]
name = "remote"
address = "mqtt://127.0.0.1:{port}"
reconnect_min = 0.05
reconnect_max = 0.2
topics = [
  {{ filter = "up/#", direction = "in", qos = {qos}, local_prefix = "remote/" }},
  {{ filter = "down/#", direction = "out", qos = {qos}, local_prefix = "remote/" }},
]
"""


class Pair:
    """The local broker, which has the bridge, and the remote one; each restarts where it was."""

    def __init__(self, directory: Path, qos: int) -> None:
        self._directory = directory
        self._qos = qos
        self._ports: dict[str, int] = {}
        self.running: dict[str, RunningBroker] = {}
        for name in ("remote", "local"):
            (directory / name).mkdir()
            self.start(name)

    def start(self, name: str) -> RunningBroker:
        config = self._directory / f"{name}.toml"
        bridge = BRIDGE.format(port=self._ports["remote"], qos=self._qos) if name == "local" else ""
        config.write_text(LIMITS + bridge)
        broker = start_host(
            "--config", str(config), "--data", str(self._directory / name), "--port", str(self._ports.get(name, 0))
        )
        self._ports[name] = broker.port
        self.running[name] = broker
        return broker

    def stop(self) -> None:
        for broker in self.running.values():
            broker.stop()


@pytest.fixture
def pair(tmp_path: Path, request: pytest.FixtureRequest):
    brokers = Pair(tmp_path, request.getfixturevalue("qos"))
    yield brokers
    brokers.stop()


@pytest.mark.timeout(120 + 20 * KILLS)
@pytest.mark.parametrize("direction", ["in", "out"])
@pytest.mark.parametrize("qos", [1, 2])
def test_what_one_side_acknowledged_arrives_on_the_other(pair: Pair, qos: int, direction: str) -> None:
    rng = random.Random(f"{SEED} {qos} {direction}")
    source, target = ("remote", "local") if direction == "in" else ("local", "remote")
    topic_there, topic_here = ("up/n", "remote/up/n") if direction == "in" else ("remote/down/n", "down/n")
    publisher, subscriber = Publisher("publisher", topic_there, qos), Subscriber("subscriber", topic_here, qos)
    pair.running["local"].wait_for_output(r"bridge remote .*connected", 20)
    assert subscriber.resume(pair.running[target].port) is False
    publisher.resume(pair.running[source].port)
    victims = []
    for _ in range(KILLS):
        _load(publisher, subscriber, rng.randint(20, 200))
        victim = rng.choice(["local", "remote"])
        victims.append(victim)
        pair.running[victim].kill()
        broker = pair.start(victim)
        if victim == source:
            publisher.resume(broker.port)
        else:
            subscriber.resume(broker.port)
    publisher.finish()
    missing = len(publisher.acknowledged)
    subscriber.take_all(publisher.acknowledged)
    print(
        f"seed {SEED}: {missing} acknowledged, killed {', '.join(victims)}, "
        f"{len(subscriber.numbers)} delivered at QoS {qos}"
    )
    check_history(publisher.acknowledged, subscriber.numbers, qos, f"seed {SEED}, killed {', '.join(victims)}")


def _load(publisher: Publisher, subscriber: Subscriber, count: int) -> None:
    """Until *count* more messages are acknowledged, with the subscriber reading along."""
    wanted = len(publisher.acknowledged) + count
    try:
        while len(publisher.acknowledged) < wanted:
            publisher.step()
            while subscriber.step(timeout_s=0.0005):
                pass
    except Disconnected as error:
        raise AssertionError(f"a broker ended by itself: {error}") from None
