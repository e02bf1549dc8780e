"""Turns of the event loop: what is ready together ends together, and one timer stands for all deadlines."""

from __future__ import annotations

import asyncio

from midge.core.broker import Broker
from midge.core.connection import Connection
from midge.core.limits import Limits
from midge.listeners.turns import Turns


class Peer:
    """A connection's owner that notes when it is asked to write."""

    connection: Connection

    def __init__(self, takes: bool = True) -> None:
        self.flushes = 0
        self._takes = takes

    def flush(self) -> None:
        self.flushes += 1
        if self._takes:
            self.connection.data_to_send()

    def hold_reading(self, hold: bool) -> None: ...


def _start() -> tuple[Broker, Turns, list[Connection], list[None]]:
    broker = Broker(Limits())
    held: list[Connection] = []
    ended: list[None] = []
    turns = Turns(broker, held.append, lambda: ended.append(None))
    turns.start(asyncio.get_running_loop())
    return broker, turns, held, ended


def _open(broker: Broker, turns: Turns, takes: bool = True) -> Peer:
    peer = Peer(takes)
    peer.connection = broker.open("test", peer, turns.now())
    return peer


def test_all_that_begins_a_turn_together_is_one_turn_with_one_time() -> None:
    async def run() -> None:
        _, turns, _, ended = _start()
        times = {turns.begin(), turns.begin(), turns.begin()}
        assert len(times) == 1
        assert not ended
        await asyncio.sleep(0)
        assert len(ended) == 1

    asyncio.run(run())


def test_a_connection_is_asked_to_write_once_a_turn() -> None:
    async def run() -> None:
        broker, turns, held, _ = _start()
        peer = _open(broker, turns)
        peer.connection.send_bytes(b"\xd0\0")
        peer.connection.send_bytes(b"\xd0\0")
        turns.begin()
        await asyncio.sleep(0)
        assert peer.flushes == 1
        assert not held

    asyncio.run(run())


def test_output_that_may_not_leave_yet_is_told_of() -> None:
    async def run() -> None:
        broker, turns, held, _ = _start()
        peer = _open(broker, turns, takes=False)
        peer.connection.send_bytes(b"\xd0\0")
        turns.end()
        assert held == [peer.connection]

    asyncio.run(run())


def test_deadlines_run_in_order_though_earlier_ones_were_cancelled() -> None:
    async def run() -> list[str]:
        broker, turns, _, _ = _start()
        now = turns.now()
        ran: list[str] = []
        done = asyncio.Event()
        first = broker.timers.at(now + 0.01, lambda _: ran.append("cancelled"))
        turns.end()
        broker.timers.at(now + 0.05, lambda _: done.set())
        broker.timers.at(now + 0.03, lambda _: ran.append("second"))
        turns.end()
        first.cancel()
        await asyncio.wait_for(done.wait(), 30)
        turns.stop()
        return ran

    assert asyncio.run(run()) == ["second"]
