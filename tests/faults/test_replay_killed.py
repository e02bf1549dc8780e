"""The host broker is killed (SIGKILL) while messages are published that a [[history]] keeps, and a reader follows.

What was acknowledged is in the replay, in order; the reader, whose session lasts, goes on where it was: it misses
nothing, and at QoS 2 gets nothing twice. MIDGE_KILLS sets the number of kills (3), MIDGE_SEED the moments.
"""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest

from brokers import start_host

from .peers import TOPICS, Disconnected, Publisher, Subscriber
from .test_host_killed import KILLS, SEED, _drain, _until_killed, check_history


@pytest.mark.timeout(120 + 10 * KILLS)
def test_what_was_acknowledged_is_replayed_after_the_broker_was_killed(tmp_path: Path) -> None:
    rng = random.Random(f"replay {SEED}")
    config = tmp_path / "midge.toml"
    config.write_text('[[history]]\nfilter = "+/numbers/#"\n')
    arguments = ("--config", str(config), "--data", str(tmp_path), "--log-level", "warning")
    publishers = {qos: Publisher(f"publisher {qos}", f"{qos}/numbers/{{}}", qos) for qos in (1, 2)}
    readers = {qos: Subscriber(f"reader {qos}", f"$replay/all/{qos}/numbers/+", qos) for qos in (1, 2)}
    with start_host(*arguments) as broker:
        for reader in readers.values():
            assert reader.resume(broker.port) is False
    for kill in range(KILLS):
        with start_host(*arguments) as broker:
            try:
                steps = []
                for qos, publisher in publishers.items():
                    publisher.resume(broker.port)
                    steps.append(publisher.step)
                    readers[qos].close()
                    if (kill + qos) % 3:  # every third time it is away
                        assert readers[qos].resume(broker.port), "the session was lost"
                        steps.append(partial(_drain, readers[qos]))
                _until_killed(broker, rng, *steps)
            except Disconnected:
                pass
    with start_host(*arguments) as broker:
        for qos, publisher in publishers.items():
            publisher.resume(broker.port)
            publisher.finish()
            assert readers[qos].resume(broker.port)
            _read_all(readers[qos], publisher)
            fresh = Subscriber(f"fresh {qos}", f"$replay/all/{qos}/numbers/#", 1)  # as somebody who comes now
            fresh.resume(broker.port)
            _read_all(fresh, publisher)
            count = len(publisher.acknowledged)
            print(f"seed {SEED}: {count} acknowledged at QoS {qos}, {KILLS} kills, {len(fresh.numbers)} kept")
            assert count > KILLS
            _check(publisher, readers[qos].numbers, "the reader")
            _check(publisher, fresh.numbers, "a replay of all")


def _read_all(reader: Subscriber, publisher: Publisher) -> None:
    """Until it has all that was acknowledged; and what may still come, of messages that were not."""
    missing = set(publisher.acknowledged) - set(reader.numbers)
    while missing and reader.step(timeout_s=30):
        missing.discard(reader.numbers[-1] if reader.numbers else -1)
    _drain(reader)


def _check(publisher: Publisher, numbers: list[int], who: str) -> None:
    for topic in range(TOPICS):
        published, delivered = (
            [number for number in some if number % TOPICS == topic] for some in (publisher.acknowledged, numbers)
        )
        check_history(published, delivered, publisher.qos, f"seed {SEED}, {who}, numbers/{topic}")
