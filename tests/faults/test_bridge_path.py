"""The whole path: the board's client and the board's broker, with its journal, each on a unix port of its own; the
bridge, the host's store, a subscriber; and back. The host, the board's broker or the link between them ends at one
packet of a hand-over.

What the first broker acknowledged arrives: at least once at QoS 1, exactly once at QoS 2, in order. MIDGE_BRIDGE_KILLS
sets the number of kills for each of the four cases (5; `make bridgefaults`: 50), MIDGE_SEED the moments.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "device"))

from mqtt_wire import start

from brokers import RunningBroker, start_host

from .board_peers import BoardPublisher, BoardSubscriber
from .cut_link import NAMES, PHASES, CutLink
from .peers import Disconnected, Publisher, Subscriber
from .test_host_killed import SEED

KILLS = int(os.environ.get("MIDGE_BRIDGE_KILLS", "5"))
CONFIG = """
[limits]
max_queued_messages = 1_000_000
[[bridge]]
name = "board"
address = "mqtt://127.0.0.1:{port}"
reconnect_min = 0.05
reconnect_max = 0.2
topics = [
  {{ filter = "up/#", direction = "in", qos = {qos}, local_prefix = "board/" }},
  {{ filter = "down/#", direction = "out", qos = {qos}, local_prefix = "board/" }},
]
"""
# Room on the board for what comes while the host is away, and a journal that is compacted again and again.
BOARD = {"heap": "4m", "max_queued_messages": 30_000, "max_queued_bytes": 3_000_000, "max_store_bytes": 100_000}


class Chain:
    """Board, link and host; each comes back where it was."""

    def __init__(self, directory: Path, qos: int) -> None:
        self._directory = directory
        self.link = CutLink()  # between the board's broker and the host
        self.port_of_board = CutLink()  # where the board's client finds its broker, whichever port that has now
        self._config = directory / "midge.toml"
        self._config.write_text(CONFIG.format(port=self.link.port, qos=qos))
        self.running: dict[str, RunningBroker] = {}
        for name in ("board", "host"):
            self.start(name)

    def start(self, name: str) -> RunningBroker:
        if name == "board":
            broker = start("micropython", store=self._directory / "journal", **BOARD)
            self.link.target_port = self.port_of_board.target_port = broker.port
        else:
            broker = start_host("--config", str(self._config), "--data", str(self._directory / "data"))
        self.running[name] = broker
        return broker

    def end_of(self, victim: str) -> Callable[[], None]:
        """What ends it, at once and from any thread."""
        return self.link.cut if victim == "link" else self.running[victim].process.kill

    def stop(self) -> None:
        self.link.close()
        self.port_of_board.close()
        for broker in self.running.values():
            broker.kill()


@pytest.fixture
def path(tmp_path: Path, qos: int):
    made = Chain(tmp_path, qos)
    yield made
    made.stop()


@pytest.fixture
def ends(path: Chain, qos: int, direction: str):
    """The publisher and the subscriber."""
    port = path.port_of_board.port
    if direction == "up":
        board = BoardPublisher(port, "up/n", qos)
        yield board, Subscriber("subscriber", "board/up/n", qos)
    else:
        board = BoardSubscriber(port, "down/n", qos)
        yield Publisher("publisher", "board/down/n", qos), board
    board.stop()


@pytest.mark.timeout(180 + 20 * KILLS)
@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("qos", [1, 2])
def test_what_was_acknowledged_at_one_end_arrives_at_the_other(path: Chain, ends, qos: int, direction: str) -> None:
    rng = random.Random(f"{SEED} {qos} {direction}")
    source, target = ("board", "host") if direction == "up" else ("host", "board")
    publisher, subscriber = ends
    path.running["host"].wait_for_output(r"bridge board .*connected", 20)
    assert subscriber.resume(path.running[target].port) is False
    publisher.resume(path.running[source].port)
    kills: Counter[str] = Counter()
    victims = ["host", "board", "link"] * (KILLS // 3 + 1)
    rng.shuffle(victims)
    for victim in victims[:KILLS]:
        kind, is_before = rng.choice(PHASES[qos]), rng.random() < 0.5
        kills[victim] += 1
        about = f"{victim} {'before' if is_before else 'after'} {NAMES[kind]}"
        path.link.arm(kind, rng.randint(1, 40), is_before, path.end_of(victim))
        _load_until_fired(path.link, publisher, subscriber, about)
        if victim == "link":
            continue
        path.running[victim].kill()
        broker = path.start(victim)
        if victim == source:
            publisher.resume(broker.port)
        else:
            assert subscriber.resume(broker.port), f"{about}: the subscriber's session was lost"
    publisher.finish()
    _until_all_is_there(publisher, subscriber)
    _check(publisher.acknowledged, subscriber.numbers, qos, direction, kills)


def _load_until_fired(
    link: CutLink, publisher: Publisher | BoardPublisher, subscriber: Subscriber | BoardSubscriber, about: str
) -> None:
    """Publish and read along until it has happened; one of the two may notice."""
    deadline = time.monotonic() + 60
    try:
        while not link.fired.is_set():
            assert time.monotonic() < deadline, f"no such packet came: {about}"
            # A board has little room: what waits for the bridge must not become more and more.
            publisher.step(len(publisher.acknowledged) - len(subscriber.numbers) < 500, timeout_s=0.01)
            while subscriber.step(timeout_s=0.0005):
                pass
    except Disconnected:
        assert link.fired.wait(5), f"a broker ended by itself: {about}"


def _until_all_is_there(publisher: Publisher | BoardPublisher, subscriber: Subscriber | BoardSubscriber) -> None:
    while set(publisher.acknowledged) - set(subscriber.numbers) and subscriber.step(timeout_s=30):
        pass
    while subscriber.step(timeout_s=0.5):  # whatever comes too often comes now
        pass


def _check(sent: list[int], got: list[int], qos: int, direction: str, kills: Counter[str]) -> None:
    lost = sorted(set(sent) - set(got))
    doubled = [number for number, count in Counter(got).items() if count > 1]
    first_seen = list(dict.fromkeys(got))
    disorder = sum(1 for before, after in pairwise(first_seen) if after < before)
    victims = ", ".join(f"{name} {count}" for name, count in sorted(kills.items()))
    line = (
        f"seed {SEED}, QoS {qos}, {direction}: {len(sent)} messages, {sum(kills.values())} kills ({victims}), "
        f"lost {len(lost)}, doubled {len(doubled)}, out of order {disorder}"
    )
    print(line)
    assert not lost, f"{line}: {lost[:10]}"
    assert qos == 1 or not doubled, f"{line}: {doubled[:10]}"
    assert not disorder, line
