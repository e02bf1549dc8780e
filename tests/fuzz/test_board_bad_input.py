"""Bad input to the board's broker over real sockets: it closes that connection, lives, and the others notice nothing.

The cases and the clients that must not notice are `bad_input`'s, the broker is `device/mqtt_wire`'s.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "device"))

import bad_input
from bad_input import MUTANTS, SEED, VERSIONS, Case, Flow
from mqtt_wire import INTERPRETERS, start, sys_value

from brokers import RunningBroker

# Connections at the same time, beside Flow's two and the witness: no more than the broker has places for.
AT_ONCE = 12
# MicroPython's collector is conservative: what a stale word on the stack points to stays, with all that it refers
# to, until the next time. The smallest leak there can be, 32 bytes a case, would come to 64 kB in 2,000 cases.
GROWTH_BYTES = 16_384
LEAKING_CASES = 2000


@pytest.fixture(params=INTERPRETERS)
def broker(request: pytest.FixtureRequest):
    # Mutated CONNECTs leave persistent sessions behind: the longest absent gives way.
    with start(request.param, max_clients=16, max_sessions=40, session_expiry_s=0, connect_timeout_s=60) as running:
        yield running
        assert running.is_running(), running.output()


def heap_free(port: int) -> int:
    """Measured while nothing is under way."""
    return sys_value(port, "heap/free")


def refuse_all(port: int, cases: Iterable[Case]) -> None:
    with Flow(port):
        for outcome in bad_input.refused(port, cases, AT_ONCE):
            assert outcome.ended, outcome


def send_all(port: int, cases: Iterable[Case]) -> int:
    with Flow(port):
        return sum(1 for _ in bad_input.waited_for(port, cases, AT_ONCE))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_bad_packet_ends_its_connection(broker: RunningBroker, version: str):
    # What a client may send, too.
    right = {f"{kind}-from-server" for kind in ("connect", "subscribe", "unsubscribe", "pingreq", "disconnect")}
    cases = [case for case in bad_input.malformed(version) if case.name not in right]
    refuse_all(broker.port, cases)
    free = heap_free(broker.port)
    refuse_all(broker.port, cases * (LEAKING_CASES // len(cases) + 1))
    assert heap_free(broker.port) >= free - GROWTH_BYTES


@pytest.mark.parametrize("version", VERSIONS)
def test_packets_cut_at_every_byte_end_or_are_waited_for(broker: RunningBroker, version: str):
    cases = [*bad_input.truncated(version), *bad_input.truncated_malformed(version)]
    if version != VERSIONS[0]:  # there are five times as many of them
        cases = cases[::5]
    send_all(broker.port, cases[::20])
    free = heap_free(broker.port)
    assert send_all(broker.port, cases) == len(cases)
    assert heap_free(broker.port) >= free - GROWTH_BYTES


def test_mutated_packets_harm_nobody(broker: RunningBroker):
    print(f"MIDGE_SEED={SEED} MIDGE_MUTANTS={MUTANTS}")
    assert send_all(broker.port, bad_input.mutants(MUTANTS, SEED)) == MUTANTS
    free = heap_free(broker.port)
    # The same again, in part: what they retain is there already.
    send_all(broker.port, bad_input.mutants(MUTANTS // 5, SEED))
    assert heap_free(broker.port) >= free - GROWTH_BYTES
