"""The host broker is killed (SIGKILL) again and again under load, and restarted on the same store.

Nothing that was acknowledged is lost; nothing at QoS 2 is delivered twice; order is kept.
MIDGE_KILLS sets the number of kills for each case (5), MIDGE_SEED the moments.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from brokers import RunningBroker, start_host

from .peers import Disconnected, Publisher, Subscriber

KILLS = int(os.environ.get("MIDGE_KILLS", "5"))
SEED = int(os.environ.get("MIDGE_SEED", "1883"))


def check_history(published: list[int], delivered: list[int], qos: int, about: str) -> None:
    """The invariants, for one topic from one publisher to one subscriber."""
    lost = sorted(set(published) - set(delivered))
    assert not lost, f"{about}: acknowledged and never delivered: {lost[:10]} and {len(lost)} in all"
    if qos == 2:
        assert len(delivered) == len(set(delivered)), f"{about}: delivered twice at QoS 2"
    first_seen = list(dict.fromkeys(delivered))
    assert first_seen == sorted(first_seen), f"{about}: out of order"


def _until_killed(broker: RunningBroker, rng: random.Random, *steps: Callable[[], object]) -> None:
    """Repeat *steps* until the broker is killed, which happens at a moment of its own choosing."""
    timer = threading.Timer(rng.uniform(0.05, 0.4), broker.process.kill)
    timer.start()
    try:
        while True:
            for step in steps:
                step()
    except Disconnected:
        pass
    finally:
        timer.join()
        broker.kill()


@pytest.mark.timeout(120 + 10 * KILLS)
@pytest.mark.parametrize("is_online", [True, False], ids=["subscriber connected", "subscriber away"])
@pytest.mark.parametrize("qos", [1, 2])
def test_nothing_acknowledged_is_lost_when_the_broker_is_killed(
    tmp_path: Path, qos: int, is_online: bool
) -> None:
    rng = random.Random(f"{SEED} {qos} {is_online}")
    config = tmp_path / "midge.toml"
    config.write_text("[limits]\nmax_queued_messages = 1_000_000\n")
    arguments = ("--config", str(config), "--data", str(tmp_path), "--log-level", "warning")
    publisher, subscriber = Publisher("publisher", "numbers", qos), Subscriber("subscriber", "numbers", qos)
    with start_host(*arguments) as broker:
        assert subscriber.resume(broker.port) is False
    for kill in range(KILLS):
        with start_host(*arguments) as broker:
            try:
                if is_online or kill % 2:
                    assert subscriber.resume(broker.port), "the session was lost"
                    publisher.resume(broker.port)
                    _until_killed(broker, rng, publisher.step, lambda: _drain(subscriber))
                else:
                    subscriber.close()
                    publisher.resume(broker.port)
                    _until_killed(broker, rng, publisher.step)
            except Disconnected:
                pass
    with start_host(*arguments) as broker:
        publisher.resume(broker.port)
        publisher.finish()
        assert subscriber.resume(broker.port)
        while subscriber.step(timeout_s=0.5):
            pass
    count = len(publisher.acknowledged)
    print(
        f"seed {SEED}: {count} acknowledged, {KILLS} kills, {len(subscriber.numbers)} delivered at QoS {qos}"
    )
    assert count > 10 * KILLS
    check_history(publisher.acknowledged, subscriber.numbers, qos, f"seed {SEED}")


def _drain(subscriber: Subscriber) -> None:
    while subscriber.step(timeout_s=0.001):
        pass
