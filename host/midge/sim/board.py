"""A simulated board's life: boots, works, sleeps as no process at all, loses its power and comes back.
Knows what its program says on stdout, nothing of brokers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midge.boards.serial_line import SerialLine
from midge.boards.simulate import Board, BoardError
from midge.sim.fleet import BoardsSection
from midge.sim.ledger import Book
from midge.sim.link import Link

ON_BOARD = Path(__file__).with_name("on_board")
PROGRAMS = {"sensor": "sim_sensor.py", "controller": "sim_always_on.py", "serial": "sim_always_on.py",
            "hub": "sim_hub.py"}  # fmt: skip

_DEEP_SLEEP = re.compile(r"deep sleep (\d+)$")
_LISTENING = re.compile(r"listening on mqtt://127\.0\.0\.1:(\d+)")

# s that a program has beyond its cycle's time-out before it counts as hanging; a busy machine starts it late.
_PATIENCE_S = 30.0

# s after a program's death before it is started again, as a supervisor would.
_RESTART_S = 1.0


@dataclass(slots=True)
class Cycle:
    """One wake cycle as the board saw it (`stats` of wake()), and as the machine did."""

    stats: dict[str, Any]
    awake_ms: float = 0.0  # the process's life, its start included
    late_ms: float = 0.0  # behind the time at which it was to wake: this machine is too slow


@dataclass(slots=True)
class Life:
    """What a board went through."""

    boots: int = 0
    cycles: list[Cycle] = field(default_factory=list)
    power_cuts: int = 0
    crashes: list[str] = field(default_factory=list)  # obituaries of programs that ended by themselves
    awake_s: float = 0.0


class SimulatedBoard:
    """*flash*: its directory, which stays. *link* or *line*: how it reaches its broker."""

    def __init__(
        self,
        kind: BoardsSection,
        name: str,
        flash: Path,
        image: Path,
        speed: float,
        phase_s: float = 0.0,
        link: Link | None = None,
        line: SerialLine | None = None,
        on_port: Callable[[int], None] = lambda port: None,
    ) -> None:
        """*phase_s*: real time from the start to its first wake-up. *on_port*: told a hub's port at each boot."""
        self.kind, self.name, self.flash, self.image = kind, name, flash, image
        self.speed, self.phase_s, self.link, self.line, self.on_port = speed, phase_s, link, line, on_port
        self.messages = Book()
        self.commands = Book()
        self.life = Life()
        self.is_ready = asyncio.Event()  # its session exists: it has had a whole cycle, or is connected
        self.is_ending = asyncio.Event()  # set by whoever runs the simulation: no further cycle
        self.process: Board | None = None  # None: it sleeps, or has no power
        self._has_power = asyncio.Event()
        self._has_power.set()
        self._power_lost = asyncio.Event()  # set by cut_power, cleared when the board boots again
        self._sleep_ms = 0

    @property
    def sleeps(self) -> bool:
        return self.kind.profile == "sensor"

    async def run(self) -> None:
        """Its whole life, until `is_ending`."""
        await self._pause(self.phase_s)
        planned_at = time.monotonic()
        while not self.is_ending.is_set():
            if not self._has_power.is_set():
                await _first(self._has_power, self.is_ending)
                planned_at = time.monotonic()
                continue
            self._power_lost.clear()
            if self.sleeps:
                await self.cycle(planned_at)
                pause_s = self._sleep_ms / 1000 / self.speed
            else:
                await self._stay_on()
                pause_s = _RESTART_S
            planned_at = time.monotonic() + pause_s
            await self._pause(pause_s)

    async def cycle(self, planned_at: float, messages: int | None = None) -> None:
        """One boot, to deep sleep or death. *messages*: instead of what its kind sends."""
        self._sleep_ms = int(self.kind.interval_s * 1000)
        late_ms = (time.monotonic() - planned_at) * 1000
        count = len(self.life.cycles)
        started_at = time.monotonic()
        process = self._make_process(self.kind.messages if messages is None else messages)
        self.process = process
        try:
            await process.start()
            code = await asyncio.wait_for(process.wait(), self.kind.timeout_ms / 1000 + _PATIENCE_S)
            awake_s = time.monotonic() - started_at
            self.life.awake_s += awake_s
            for cycle in self.life.cycles[count:]:
                cycle.awake_ms, cycle.late_ms = awake_s * 1000, late_ms
            if code and not self._power_lost.is_set():
                self.life.crashes.append(process.obituary())
            if self.kind.outbox == "memory":
                self.messages.deep_sleep()
        except TimeoutError:
            self.life.crashes.append(f"{self.name} didn't go to sleep{process.quote_lines()}")
            process.kill()
        finally:
            self.process = None
            await process.stop()

    async def _stay_on(self) -> None:
        started_at = time.monotonic()
        self.process = process = self._make_process(self.kind.messages)
        try:
            await process.start()
            ended = asyncio.create_task(process.wait())
            ending = asyncio.create_task(self.is_ending.wait())
            await asyncio.wait([ended, ending], return_when=asyncio.FIRST_COMPLETED)
            ending.cancel()
            if ended.done() and not self._power_lost.is_set():
                self.life.crashes.append(process.obituary())
                self.messages.power_cut(is_outbox_lost=True, are_all=True)
            ended.cancel()
        finally:
            self.life.awake_s += time.monotonic() - started_at
            self.process = None
            await process.stop()

    def cut_power(self) -> None:
        """Now: what runs is killed, RTC memory is gone. Until `restore_power`."""
        self.life.power_cuts += 1
        self._has_power.clear()
        self._power_lost.set()
        if self.link is not None:
            self.link.power_cut()
        if self.process is not None:
            self.process.kill()
        with contextlib.suppress(FileNotFoundError):
            (self.flash / "rtc").unlink()
        is_lost = not self.sleeps or self.kind.outbox != "file"
        self.messages.power_cut(is_lost, are_all=not self.sleeps)

    def restore_power(self) -> None:
        self._has_power.set()

    async def _pause(self, seconds: float) -> None:
        """Sleeps; a power cut or the end of the simulation wakes it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await _first(self._power_lost, self.is_ending)

    def _make_process(self, messages: int) -> Board:
        self.life.boots += 1
        kind = self.kind
        program, arguments = ON_BOARD / PROGRAMS[kind.profile], []
        port = self.link.port if self.link else 0
        if kind.program:
            mark = "+" if (self.image / f"{Path(kind.program).stem}.wakes").exists() else ""
            program = ON_BOARD / "sim_main.py"
            arguments = [mark + Path(kind.program).stem]
            arguments += [part.format(name=self.name, port=port) for part in kind.arguments]
        settings = {
            "boot": self.life.boots, "client_id": f"sim-{self.name}", "topic": f"sim/{self.name}/data",
            "command_topic": f"sim/{self.name}/set", "port": port,
            "device": self.line.board_port if self.line else "", "messages": messages,
            "payload_bytes": kind.payload_bytes, "qos": kind.qos, "outbox": kind.outbox,
            "outbox_bytes": kind.outbox_bytes, "timeout_ms": kind.timeout_ms, "keep_alive_s": kind.keep_alive_s,
            "sleep_ms": kind.interval_s * 1000 if self.sleeps else kind.interval_s * 1000 / self.speed,
            "max_clients": kind.max_clients, "store": "/".join([str(self.flash), "store"]) if kind.store else None,
        }  # fmt: skip
        env = {"MIDGE_BOARD": str(self.flash), "MIDGE_SIM": json.dumps(settings), "MIDGE_AIR": "{}"}
        return Board(
            self.name, program, arguments, f"{2 * kind.heap_kB}k", env, self._take_line, self.flash, self.image
        )

    # -- what the program says --

    def _take_line(self, line: str) -> None:
        if line.startswith("@"):
            try:
                what, *rest = json.loads(line[1:])
            except ValueError:  # killed while it printed
                return
            handler = getattr(self, f"_on_{what}", None)
            if handler is None:
                raise BoardError(f"{self.name} said {line!r}")
            handler(*rest)
        elif found := _DEEP_SLEEP.match(line):
            self._sleep_ms = int(found[1])
        elif found := _LISTENING.match(line):
            self.on_port(int(found[1]))

    def _on_ready(self) -> None:
        self.is_ready.set()

    def _on_put(self, name: str, packet_id: int) -> None:
        self.messages.made(name, self.kind.qos, time.time(), packet_id)

    def _on_dropped(self, packet_id: int) -> None:
        self.messages.dropped(packet_id)

    def _on_full(self, _name: str) -> None:
        self.messages.refused += 1

    def _on_failed(self, name: str, _error: str) -> None:
        self.messages.failed(name)

    def _on_got(self, payload: str) -> None:
        name, made_ms = payload.split()[:2]
        self.commands.arrived(name, 1, int(made_ms) / 1000, time.time())

    def _on_cycle(self, stats: dict[str, Any], packet_ids: list[int]) -> None:
        self.life.cycles.append(Cycle(stats))
        self.messages.kept(packet_ids)
        if not stats["error"]:
            self.is_ready.set()


async def _first(*events: asyncio.Event) -> None:
    tasks = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
