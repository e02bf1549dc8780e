"""The board's broker under siege, in 128 kB of heap (64 kB on a board of 32 bits): all at once, and for long.

Whoever attacks it: it lives, the others' QoS 1 messages all arrive, and when the attackers have left, the heap is as it
was before. `make siege` sends 100,000 mutants; MIDGE_SIEGE sets how many.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "device"))

import bad_input
from bad_input import SEED, VERSIONS, Flow
from mqtt_wire import (
    PINGREQ,
    PINGRESP,
    Wire,
    client,
    connect,
    message,
    packet,
    publish,
    start,
    subscribe,
    subscriber,
    sys_value,
    text,
)

MUTANTS = int(os.environ.get("MIDGE_SIEGE", "4000"))
MAX_CLIENTS = 12
# No more places than for the connected: the sessions that mutants left behind give way when all are taken.
MAX_SESSIONS = MAX_CLIENTS
GROWTH_BYTES = 1024
AT_ONCE = MAX_CLIENTS - 6


@pytest.fixture
def port() -> Iterator[int]:
    options = {"max_clients": MAX_CLIENTS, "max_sessions": MAX_SESSIONS, "session_expiry_s": 0, "sys_interval_s": 1}
    with start("micropython", connect_timeout_s=60, **options) as broker:
        yield broker.port
        assert broker.is_running(), broker.output()
        assert "MemoryError" not in broker.output()


def clear(port: int) -> None:
    """Ends the sessions that nobody is connected to, and deletes what is retained."""
    with contextlib.ExitStack() as stack:
        for number in range(MAX_CLIENTS):
            stack.enter_context(client(port, f"clear{number}"))
    with client(port, "clear") as wire:
        wire.send(subscribe(1, ("#", 0)) + PINGREQ)
        while (received := wire.receive()) != PINGRESP:
            if received[0] >> 4 == 3:
                wire.send(publish(message(received).topic, b"", retain=True))
    assert sys_value(port, "clients/total") == 1  # who asks


def heap_free(port: int) -> int:
    """What is free, and what is retained: a name that begins with $ can't be found to delete it.

    The collector is conservative: what a stale word on the C stack points to stays, and a reading that is asked for
    always goes the same way down that stack. So the best of several counts, two that the broker's clock asked for
    among them.
    """
    with subscriber(port, "heap", ("$SYS/broker/heap/free", 0)) as watcher:
        free = [int(m.payload) for m in watcher.messages(3)]
    free += [sys_value(port, "heap/free") for _ in range(4)]
    return max(free) + sys_value(port, "retained/bytes")


def bad_vectors(port: int) -> None:
    for version in VERSIONS:
        for _ in bad_input.waited_for(port, bad_input.malformed(version), AT_ONCE):
            pass


def cut_packets(port: int) -> None:
    for version in VERSIONS:
        for _ in bad_input.waited_for(port, bad_input.truncated(version)[::10], AT_ONCE):
            pass


def mutants(port: int) -> None:
    print(f"MIDGE_SEED={SEED} MIDGE_SIEGE={MUTANTS}")
    assert sum(1 for _ in bad_input.waited_for(port, bad_input.mutants(MUTANTS, SEED), AT_ONCE)) == MUTANTS


def abandoned_connections(port: int) -> None:
    wires = [Wire(port, connect(f"gone{number}")[: number % 14]) for number in range(200)]
    for wire in wires:
        wire.abort()


def a_byte_at_a_time(port: int) -> None:
    """Packets whose bytes come a second apart, but for the time that we have: a round trip of another lies between."""
    data = connect("slow", keep_alive_s=1) + publish("slow", bytes(8), 1, 1)
    with Wire(port) as slow, client(port, "witness") as witness:
        for byte in data:
            slow.send(bytes((byte,)))
            witness.expect_silence()
        slow.expect(b"\x20\x02\x00\x00", b"\x40\x02\x00\x01")


def flood_to_a_stuck_reader(port: int) -> None:
    for qos in (0, 1):
        stuck = Wire(port, connect("stuck") + subscribe(1, ("flood", qos)), receive_buffer_bytes=2048)
        stuck.expect(b"\x20\x02\x00\x00", packet(0x90, bytes((0, 1, qos))))
        flooding = Wire(port, connect("flood"), timeout_s=30)
        taking = threading.Thread(target=_take_all, args=(flooding,))
        taking.start()
        data = b"".join(publish("flood", bytes(300), qos, number + 1) for number in range(100))
        for _ in range(60):
            flooding.send(data)
        stuck.abort()
        flooding.send(b"\xe0\x00")
        taking.join()


def _take_all(wire: Wire) -> None:
    with contextlib.suppress(OSError):
        wire.expect_close()


def strange_characters(port: int) -> None:
    """Topics and filters that begin with a thousand different characters: none of them may stay."""
    with client(port, "strange") as wire:
        for number in range(1000):
            topic = chr(0x4E00 + number) + "/a"
            wire.send(subscribe(1, (topic, 0)) + publish(topic, b"") + publish(topic, b"", 1, 1))
            wire.send(packet(0xA2, b"\x00\x02" + text(topic)))
            while wire.receive()[0] != 0xB0:
                pass


ATTACKS: list[Callable[[int], None]] = [
    bad_vectors, cut_packets, strange_characters, abandoned_connections, a_byte_at_a_time, flood_to_a_stuck_reader,
    mutants,
]


def test_a_siege_leaves_the_heap_as_it_was_and_the_others_undisturbed(port: int) -> None:
    # Dictionaries and lists keep the room that they once needed: some 1.2 kB, whatever comes afterwards.
    with Flow(port, stall_s=30):
        for attack in (bad_vectors, cut_packets, flood_to_a_stuck_reader):
            attack(port)
        for _ in bad_input.waited_for(port, bad_input.mutants(MUTANTS // 10, SEED + 1), AT_ONCE):
            pass
    clear(port)
    before = heap_free(port)
    for attack in ATTACKS:
        with Flow(port, stall_s=30) as flow:
            attack(port)
            flow.finish()
        clear(port)
        free = heap_free(port)
        print(f"{attack.__name__}: {flow.messages} messages of the others meanwhile, heap {before} -> {free}")
        assert flow.messages
        assert free >= before - GROWTH_BYTES, attack.__name__


def test_all_at_once(port: int) -> None:
    errors: list[BaseException] = []

    def run(attack: Callable[[int], None]) -> None:
        try:
            attack(port)
        except (ConnectionError, TimeoutError):
            pass  # the attackers take each other's places
        except BaseException as error:  # noqa: BLE001 - for the test's thread
            errors.append(error)

    with subscriber(port, "well", ("t", 1)) as well, client(port, "publisher") as sender:
        threads = [threading.Thread(target=run, args=(attack,))
                   for attack in (bad_vectors, abandoned_connections, flood_to_a_stuck_reader)]
        for thread in threads:
            thread.start()
        number = 0
        while any(thread.is_alive() for thread in threads):
            number += 1
            sender.send(publish("t", b"%d" % number, 1, number % 1000 + 1))
            received = [sender.receive(), *well.messages(1)]
            assert int(received[1].payload) == number
            well.send(b"\x40\x02" + received[1].packet_id.to_bytes(2, "big"))
        assert number
    assert not [error for error in errors if not isinstance(error, AssertionError)], errors
