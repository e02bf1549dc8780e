"""The host broker is killed (SIGKILL) again and again under load, and restarted on the same store.

Nothing that was acknowledged is lost; nothing at QoS 2 is delivered twice; order per topic is kept; retained
messages and subscriptions are whole.
MIDGE_KILLS sets the number of kills for each case (3), MIDGE_SEED the moments.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from brokers import RunningBroker, start_host
from midge.protocol import packets as p

from .peers import DEADLINE_S, TOPICS, Disconnected, Peer, Publisher, Subscriber

KILLS = int(os.environ.get("MIDGE_KILLS", "3"))
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


@pytest.mark.timeout(300 + 20 * KILLS)
@pytest.mark.parametrize("is_online", [True, False], ids=["subscriber connected", "subscriber away"])
@pytest.mark.parametrize("qos", [1, 2])
def test_nothing_acknowledged_is_lost_when_the_broker_is_killed(
    tmp_path: Path, qos: int, is_online: bool
) -> None:
    rng = random.Random(f"{SEED} {qos} {is_online}")
    config = tmp_path / "midge.toml"
    config.write_text("[limits]\nmax_queued_messages = 1_000_000\n")
    arguments = ("--config", str(config), "--data", str(tmp_path), "--log-level", "warning")
    publisher, subscriber = Publisher("publisher", "numbers/{}", qos), Subscriber("subscriber", "numbers/+", qos)
    keeper = Publisher("keeper", "kept/{}", qos, window=3, retain=True)
    extra: list[int] = []  # the kills before which one more subscription was acknowledged: to extra/KILL
    with start_host(*arguments) as broker:
        assert subscriber.resume(broker.port) is False
    for kill in range(KILLS):
        with start_host(*arguments) as broker:
            try:
                publisher.resume(broker.port)
                keeper.resume(broker.port)
                steps: list[Callable[[], object]] = [publisher.step, keeper.step]
                subscriber.close()
                if is_online or kill % 2:
                    assert subscriber.resume(broker.port), "the session was lost"
                    subscriber.subscribe(f"extra/{kill}")
                    extra.append(kill)
                    steps.append(lambda: _drain(subscriber))
                _until_killed(broker, rng, *steps)
            except Disconnected:
                pass
    with start_host(*arguments) as broker:
        _check_retained(broker, keeper)
        publisher.resume(broker.port)
        publisher.finish()
        assert subscriber.resume(broker.port)
        subscriber.take_all(publisher.acknowledged)
        _check_subscriptions(broker, subscriber, extra)
    count = len(publisher.acknowledged)
    print(
        f"seed {SEED}: {count} acknowledged, {KILLS} kills, {len(subscriber.numbers)} delivered at QoS {qos}, "
        f"{len(extra)} subscriptions and {len(keeper.acknowledged)} retained messages were acknowledged"
    )
    assert count > 2 * KILLS and extra and len(keeper.acknowledged) >= TOPICS
    for topic in range(TOPICS):
        published, delivered = (
            [number for number in numbers if number % TOPICS == topic]
            for numbers in (publisher.acknowledged, subscriber.numbers)
        )
        check_history(published, delivered, qos, f"seed {SEED}, numbers/{topic}")


def _check_retained(broker: RunningBroker, keeper: Publisher) -> None:
    """Each topic has what was acknowledged last, or what came after it and was not acknowledged."""
    reader = Subscriber("reader", "kept/+", 0)
    reader.resume(broker.port)
    while len(reader.numbers) < TOPICS:
        assert reader.step(timeout_s=DEADLINE_S), f"retained: only {reader.numbers}"
    reader.close()
    for topic in range(TOPICS):
        (kept,) = [number for number in reader.numbers if number % TOPICS == topic]
        acknowledged = max(number for number in keeper.acknowledged if number % TOPICS == topic)
        assert acknowledged <= kept < keeper.next_number, f"kept/{topic}: {kept}, acknowledged was {acknowledged}"


def _check_subscriptions(broker: RunningBroker, subscriber: Subscriber, extra: list[int]) -> None:
    """Each subscription that was acknowledged is there: what is published for it arrives."""
    prober = Peer("prober")
    prober.connect(broker.port)
    for kill in extra:
        prober.send(p.Publish(f"extra/{kill}", b"%d" % (-1 - kill)))
    wanted = {-1 - kill for kill in extra}
    while not wanted <= set(subscriber.numbers):
        assert subscriber.step(timeout_s=DEADLINE_S), f"nothing for {sorted(wanted - set(subscriber.numbers))}"
    subscriber.numbers = [number for number in subscriber.numbers if number >= 0]
    prober.close()


def _drain(subscriber: Subscriber) -> None:
    while subscriber.step(timeout_s=0.001):
        pass
