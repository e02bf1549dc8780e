"""The board's broker is killed (SIGKILL) again and again under load, and restarted on the same journal.

Nothing that was acknowledged is lost; nothing at QoS 2 is delivered twice; order is kept.
MIDGE_KILLS sets the number of kills for each case (3), MIDGE_SEED the moments.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "device"))

from mqtt_wire import start

from .peers import Disconnected, Publisher, Subscriber
from .test_host_killed import KILLS, SEED, _drain, _until_killed, check_history


@pytest.mark.timeout(120 + 10 * KILLS)
@pytest.mark.parametrize("is_online", [True, False], ids=["subscriber connected", "subscriber away"])
@pytest.mark.parametrize("qos", [1, 2])
def test_nothing_acknowledged_is_lost_when_the_board_is_killed(
    tmp_path: Path, qos: int, is_online: bool
) -> None:
    rng = random.Random(f"{SEED} {qos} {is_online}")
    # Room for what a second brings while the subscriber is away, and a journal that is compacted again and again.
    options = {"store": tmp_path / "journal", "heap": "4m", "max_queued_messages": 30_000,
               "max_queued_bytes": 3_000_000, "max_store_bytes": 40_000}
    publisher = Publisher("publisher", "numbers", qos)
    subscriber = Subscriber("subscriber", "numbers", qos)
    with start("micropython", **options) as broker:
        assert subscriber.resume(broker.port) is False
    for kill in range(KILLS):
        with start("micropython", **options) as broker:
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
    with start("micropython", **options) as broker:
        publisher.resume(broker.port)
        publisher.finish()
        assert subscriber.resume(broker.port)
        while subscriber.step(timeout_s=0.5):
            pass
    count = len(publisher.acknowledged)
    print(f"seed {SEED}: {count} acknowledged, {KILLS} kills, {len(subscriber.numbers)} delivered at QoS {qos}")
    assert count > 10 * KILLS
    check_history(publisher.acknowledged, subscriber.numbers, qos, f"seed {SEED}")
