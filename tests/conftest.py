"""What all tests share: the helper modules beside this file, and brokers that end with the test.

Knows nothing of what is tested.
"""

import contextlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `import brokers`, with --import-mode=importlib

from brokers import BROKERS, BROKERS_5_0, START


@pytest.fixture
def until_the_end():
    """An ExitStack: `until_the_end.enter_context(start_host("--config", path))` is stopped with the test."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest):
    """A fresh broker of each kind: the host's, the board's on the unix port, Mosquitto."""
    with START[request.param]() as running:
        yield running


@pytest.fixture(params=BROKERS_5_0)
def broker_5_0(request: pytest.FixtureRequest):
    """A fresh broker of each kind that speaks MQTT 5.0."""
    with START[request.param]() as running:
        yield running


@pytest.fixture
def host_broker():
    with START["host"]() as running:
        yield running


@pytest.fixture
def board_broker():
    with START["board"]() as running:
        yield running


@pytest.fixture
def mosquitto_broker():
    with START["mosquitto"]() as running:
        yield running

