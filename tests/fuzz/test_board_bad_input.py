"""Bad input to the board's broker over real sockets: it closes that connection, lives, and the others notice nothing.

The cases and the clients that must not notice are `bad_input`'s, the broker is `device/mqtt_wire`'s.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "device"))

import bad_input
from bad_input import MUTANTS, SEED, Flow
from mqtt_wire import INTERPRETERS, start, sys_value

VERSION = "3.1.1"
# Connections at the same time, beside Flow's two and the witness: no more than the broker has places for.
AT_ONCE = 12
# The broker allocates for the next seconds' log and the like; a leak of one byte per case would show.
GROWTH_BYTES = 1024


@pytest.fixture(params=INTERPRETERS)
def broker(request: pytest.FixtureRequest):
    # Mutated CONNECTs leave persistent sessions behind: the longest absent gives way.
    with start(request.param, max_clients=16, max_sessions=40, session_expiry_s=0, connect_timeout_s=60) as running:
        yield running
        assert running.is_running(), running.output()


def heap_free(port: int) -> int:
    return sys_value(port, "heap/free")


def refuse_all(port: int, cases: list) -> None:
    for outcome in bad_input.refused(port, cases, AT_ONCE):
        assert outcome.ended, outcome


def send_all(port: int, cases) -> int:
    return sum(1 for _ in bad_input.waited_for(port, cases, AT_ONCE))


def test_every_bad_packet_ends_its_connection(broker):
    accepted = {"connect-from-server", "subscribe-from-server", "unsubscribe-from-server", "pingreq-from-server",
                "disconnect-from-server"}  # a client may
    cases = [case for case in bad_input.malformed(VERSION) if case.name not in accepted]
    with Flow(broker.port):
        refuse_all(broker.port, cases)
        free = heap_free(broker.port)
        refuse_all(broker.port, cases)
        assert heap_free(broker.port) >= free - GROWTH_BYTES


def test_packets_cut_at_every_byte_end_or_are_waited_for(broker):
    cases = [*bad_input.truncated(VERSION), *bad_input.truncated_malformed(VERSION)]
    with Flow(broker.port):
        send_all(broker.port, cases[::20])
        free = heap_free(broker.port)
        assert send_all(broker.port, cases) == len(cases)
        assert heap_free(broker.port) >= free - GROWTH_BYTES


def test_mutated_packets_harm_nobody(broker):
    print(f"MIDGE_SEED={SEED} MIDGE_MUTANTS={MUTANTS}")
    with Flow(broker.port):
        assert send_all(broker.port, bad_input.mutants(MUTANTS, SEED, (VERSION,))) == MUTANTS
        free = heap_free(broker.port)
        # The same again, in part: what they retain is there already.
        send_all(broker.port, bad_input.mutants(MUTANTS // 5, SEED, (VERSION,)))
        assert heap_free(broker.port) >= free - GROWTH_BYTES
