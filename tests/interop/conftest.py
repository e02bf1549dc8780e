"""The tests of this directory talk through `paho(...)`, a client that can be waited for.

Knows nothing of which broker answers.
"""

import time
from collections.abc import Callable

import pytest

from paho_peer import TIMEOUT_S, Paho, sweep


@pytest.fixture
def paho():
    """Makes clients (`paho(broker, "name", clean=False)`); leaves no session and nothing retained behind."""
    made: list[Paho] = []

    def connect(broker, *args: object, **options: object) -> Paho:
        made.append(Paho(broker.port, *args, **options))
        return made[-1]

    yield connect
    for peer in made:
        peer.disconnect()
    for port in {peer.port for peer in made}:
        sweep(port, {peer.client_id for peer in made if peer.port == port and peer.may_leave_a_session})


@pytest.fixture
def eventually():
    """Waits for a condition that only the broker can bring about, and that no packet announces."""

    def wait(condition: Callable[[], object], timeout_s: float = TIMEOUT_S) -> object:
        deadline = time.monotonic() + timeout_s
        while not (result := condition()):
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.02)
        return result

    return wait
