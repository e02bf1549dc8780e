"""A broker for each module, and clients of it that end with the test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `import spec_client`, with --import-mode=importlib
sys.path.insert(0, str(Path(__file__).parent.parent / "faults"))

from spec_client import Client

from brokers import start_host

_numbers = count(1)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "shows(v3, v5): the statements that the test shows (see table.py)")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with start_host() as running:
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
