"""Bad input leaves nothing behind in the core: exact, where RSS over sockets (tests/fuzz) can only be bounded."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "fuzz"))  # `import bad_input`

from bad_input import VERSIONS, Case, malformed

from .harness import Client, Core

# Bytes that may stay for each packet: 0, but dictionaries that were emptied keep their tables.
KEPT_MAX = 10


def send(core: Core, cases: list[Case]) -> None:
    for case in cases:
        client = Client(core, 4)
        # One piece as a socket gives it; what comes back is closing_reason_code's business in tests/fuzz.
        client.flush = lambda client=client: finish(client)  # type: ignore[method-assign]
        client.send_bytes(case.before + case.data)
        assert not client.is_open, case


def finish(client: Client) -> None:
    client.connection.data_to_send()
    if client.connection.is_closing and client.is_open:
        client.is_open = False
        client.connection.lost(client.core.now)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_malformed_packet_leaves_nothing_behind(version: str) -> None:
    core = Core()
    cases = malformed(version)
    send(core, cases)
    tracemalloc.start()
    try:
        send(core, cases)
        core.advance(60)  # deadlines that were cancelled stay until they would have been due
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(2):
            send(core, cases)
        core.advance(60)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < KEPT_MAX * 2 * len(cases)
