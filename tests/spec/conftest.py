"""A broker of each kind for each module, and clients of it that end with the test.

The board's broker runs all tests but those that board.py names.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `import spec_client`, with --import-mode=importlib
sys.path.insert(0, str(Path(__file__).parent.parent / "faults"))
sys.path.insert(0, str(Path(__file__).parent.parent / "device"))

import mqtt_wire
from board import NOT_ON_THE_BOARD
from spec_client import Client

from brokers import start_host

_numbers = count(1)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "shows(v3, v5): the statements that the test shows (see table.py)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if _is_left_out(item)]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def _is_left_out(item: pytest.Item) -> bool:
    call = getattr(item, "callspec", None)
    if call is None or call.params.get("port") != "board":
        return False
    return not NOT_ON_THE_BOARD.keys().isdisjoint((item.originalname, item.name.replace("[board-", "[")))


# The board has room for topics of 65,535 bytes here, which the specification allows.
@pytest.fixture(scope="module", params=["host", "board"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    limits = {"max_packet": 262_144, "max_clients": 40, "max_sessions": 400, "max_queued_bytes": 1_000_000,
              "max_subscription_bytes": 400_000, "max_queued_messages": 1000, "session_expiry_s": 0}
    start = start_host if request.param == "host" else lambda: mqtt_wire.start("micropython", heap="16m", **limits)
    with start() as running:
        yield running.port


@pytest.fixture(params=[4, 5], ids=["3.1.1", "5.0"])
def version(request: pytest.FixtureRequest) -> int:
    """For what both specifications say."""
    return request.param


@pytest.fixture
def name() -> str:
    """One that no other test of this process uses: for topics and client identifiers."""
    return f"t{next(_numbers)}"


@pytest.fixture
def client(port: int) -> Iterator[Callable[..., Client]]:
    """client(version, client_id, **what CONNECT may say): one that has been accepted."""
    opened: list[Client] = []

    def connect(version: int = 5, client_id: str | None = None, **options: object) -> Client:
        opened.append(Client(options.pop("port", port), version, client_id or f"c{next(_numbers)}", **options))
        return opened[-1]

    yield connect
    for each in opened:
        each.close()
