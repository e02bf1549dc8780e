"""Runs a fleet from its first wake-up to its last, with its outages, power cuts and commands.
Knows what happens when; how a board lives and how a link carries is theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from midge.boards.serial_line import SerialLine
from midge.boards.simulate import BoardError, Process, make_image
from midge.sim.board import ON_BOARD, PROGRAMS, SimulatedBoard
from midge.sim.fleet import BoardsSection, Fleet
from midge.sim.laptop import START_TIMEOUT_S, Laptop, start_broker
from midge.sim.link import Conditions, Link
from midge.sim.machine_load import MachineLoad, cpu_of, cpu_s

# At the end: quiet for so long means that nothing is on its way any more; and no longer than that in all.
QUIET_S = 0.7
SETTLE_MAX_S = 10.0

# Boards that are woken at once for the last time: as many as make two cores busy.
LAST_WAKES = 6

_TICK_S = 0.25

# s that a bridge has to subscribe on a link without delay; a busy machine needs some of it.
SUBSCRIBED_S = 0.5


class Simulation:
    """`await run()`; then its attributes hold all that a report needs. *directory*: of the fleet's file."""

    def __init__(self, fleet: Fleet, directory: Path, on_tick: Callable[[Simulation], None] = lambda sim: None) -> None:
        self.fleet, self.directory, self.on_tick = fleet, directory, on_tick
        self.boards: list[SimulatedBoard] = []
        self.links: dict[str, list[Link]] = {kind.name: [] for kind in fleet.link}
        self.laptop: Laptop | None = None
        self.load = MachineLoad()
        self.lasted_s = 0.0  # real time, without the start and the end
        self.own_cpu_s = self.boards_cpu_s = 0.0
        self.awake: list[tuple[float, int]] = []  # s of real time, processes of boards
        self.waiting_at_end: dict[str, int] = {}  # of each board: messages in its outbox, before the last wake-up
        self.is_drained: dict[str, bool] = {}  # of each sleeping board: its last wake-up left nothing behind
        self.started_at = 0.0
        self.is_stopped = False
        self._random = random.Random(fleet.fleet.seed)
        self._broker: Process | None = None
        self._lines: list[SerialLine] = []
        self._errors: list[BaseException] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()

    @property
    def duration_s(self) -> float:
        """Of real time."""
        return self.fleet.fleet.duration_s / self.fleet.fleet.speed

    def stop(self) -> None:
        """Ends it before its time, in good order."""
        self.is_stopped = True
        self._stop.set()

    async def run(self) -> None:
        own, children = cpu_s()
        with tempfile.TemporaryDirectory(prefix="midge-sim-", ignore_cleanup_errors=True) as name:
            try:
                await self._start(Path(name))
                await self._pass_time()
                await self._end()
            finally:
                await self._stop_all()
        own_after, children_after = cpu_s()
        self.own_cpu_s = own_after - own
        self.boards_cpu_s = children_after - children - (self.load.broker_cpu_s or 0.0)

    # -- start --

    async def _start(self, directory: Path) -> None:
        image = directory / "image"
        image.mkdir()
        await make_image(image, self._programs())
        for kind in self.fleet.boards:
            if kind.program and "wake(" in (self.directory / kind.program).read_text(encoding="utf-8"):
                (image / f"{Path(kind.program).stem}.wakes").touch()  # see sim_main.py
        host, port = await self._make_boards(directory, image)
        books = {board.name: board.messages for board in self.boards}
        self.laptop = Laptop(host, port, books, any(kind.program for kind in self.fleet.boards))
        await self.laptop.start()
        self.started_at = time.monotonic()
        for board in self.boards:
            if board.kind.profile != "hub":
                self._spawn(board.run())
            if board.kind.commands_s:
                self._spawn(self._send_commands(board))
        for outage in self.fleet.outage:
            self._spawn(self._outage(self.links[outage.link], outage.at_s, outage.for_s))
        for cut in self.fleet.power_cut:
            boards = [board for board in self.boards if board.kind.name == cut.boards]
            chosen = self._random.sample(boards, max(1, round(cut.share * len(boards))))
            self._spawn(self._power_cut(chosen, cut.at_s, cut.for_s))

    def _programs(self) -> list[Path]:
        programs = {ON_BOARD / PROGRAMS[kind.profile] for kind in self.fleet.boards if not kind.program}
        own = {self.directory / kind.program for kind in self.fleet.boards if kind.program}
        # `machine` and `network` take the place of the unix port's own.
        stand_ins = [ON_BOARD / "machine.py", ON_BOARD / "network.py"]
        return [*programs, *own, *stand_ins, *([ON_BOARD / "sim_main.py"] if own else [])]

    async def _make_boards(self, directory: Path, image: Path) -> tuple[str, int]:
        """All boards with their links, hubs first, which run when this returns; and where the broker is."""
        kinds = sorted(self.fleet.boards, key=lambda kind: kind.profile != "hub")
        hubs: dict[str, Link] = {}
        for kind in kinds:
            for name in _names(kind):
                board = await self._make_board(kind, name, directory, image)
                self.boards.append(board)
                if kind.profile == "hub":
                    assert board.link is not None
                    hubs[name] = board.link
                    self._spawn(board.run())
        await self._hubs_are_up()
        if address := self.fleet.broker.address:
            host, _, port_text = address.rpartition(":")
            if not port_text.isdigit():
                raise BoardError(f'broker.address = "{address}": HOST:PORT is allowed')
            host, port = host or "127.0.0.1", int(port_text)
        else:
            devices = [board.line.host_port for board in self.boards if board.line]
            ports = {name: link.port for name, link in hubs.items()}
            self._broker, port = await start_broker(
                directory, self.fleet.broker.durability, devices, ports
            )
            host = "127.0.0.1"
            if hubs:  # from CONNACK, which is logged, to SUBACK; what a hub gets before that, nobody waits for
                await asyncio.sleep(SUBSCRIBED_S)
        for board in self.boards:
            if board.link is not None and board.kind.profile == "hub":
                board.link.conditions = self._conditions(board.kind.link)
            if board.link is not None and board.kind.profile != "hub":
                if board.kind.via:
                    _follow(hubs[board.kind.via], board.link)
                else:
                    board.link.target, board.link.host = port, host
        return host, port

    async def _make_board(
        self, kind: BoardsSection, name: str, directory: Path, image: Path
    ) -> SimulatedBoard:
        flash = directory / name
        flash.mkdir()
        fleet = self.fleet.fleet
        seed = self._random.randrange(2**32)
        phase_s = self._random.uniform(0, kind.interval_s / fleet.speed) if kind.profile == "sensor" else 0.0
        if kind.profile == "serial":
            line = SerialLine(seed)
            self._lines.append(line)
            return SimulatedBoard(kind, name, flash, image, fleet.speed, phase_s, line=line)
        # A hub's link is perfect until the bridge has its session there: see _make_boards.
        conditions = Conditions() if kind.profile == "hub" else self._conditions(kind.link)
        link = Link(0, conditions, seed, sleeps=kind.profile == "sensor")
        await link.start()
        self.links.setdefault(kind.link, []).append(link)

        def on_port(port: int) -> None:
            link.target = port
            for other in link.followers:
                other.target = port

        return SimulatedBoard(kind, name, flash, image, fleet.speed, phase_s, link, on_port=on_port)

    def _conditions(self, name: str) -> Conditions:
        for kind in self.fleet.link:
            if kind.name == name:
                return Conditions(
                    kind.delay_ms / 1000, kind.jitter_ms / 1000, kind.loss, kind.rto_ms / 1000, kind.nagle
                )
        return Conditions()

    async def _hubs_are_up(self) -> None:
        for board in self.boards:
            if board.kind.profile == "hub":
                try:
                    await asyncio.wait_for(board.is_ready.wait(), START_TIMEOUT_S)
                except TimeoutError:
                    said = board.life.crashes or [f"{board.name} didn't start"]
                    raise BoardError(said[0]) from None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except Exception as error:  # noqa: BLE001 - whatever it is ends the simulation, and is raised there
                self._errors.append(error)
                self._stop.set()

        self._tasks.append(asyncio.create_task(guarded()))

    # -- while it runs --

    async def _pass_time(self) -> None:
        end = self.started_at + self.duration_s
        while not self._stop.is_set() and time.monotonic() < end:
            self._sample()
            self.on_tick(self)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), min(_TICK_S, max(0.01, end - time.monotonic())))
        self.lasted_s = time.monotonic() - self.started_at
        self._raise_errors()

    def _sample(self) -> None:
        pids = [board.process.pid for board in self.boards if board.process and board.process.exit_code is None
                and board.process.has_started]  # fmt: skip
        self.load.sample(pids)
        self.awake.append((time.monotonic() - self.started_at, len(pids)))
        if self._broker is not None and self._broker.exit_code is not None:
            raise BoardError(self._broker.obituary())

    def _raise_errors(self) -> None:
        if self._errors:
            raise self._errors[0]

    async def _after(self, sim_s: float) -> None:
        await asyncio.sleep(max(0.0, self.started_at + sim_s / self.fleet.fleet.speed - time.monotonic()))

    async def _outage(self, links: list[Link], at_s: float, for_s: float) -> None:
        await self._after(at_s)
        for is_down in (True, False):
            for link in links:
                link.is_down = is_down
            if is_down:
                await self._after(at_s + for_s)

    async def _power_cut(self, boards: list[SimulatedBoard], at_s: float, for_s: float) -> None:
        await self._after(at_s)
        for board in boards:
            board.cut_power()
        await self._after(at_s + for_s)
        for board in boards:
            board.restore_power()

    async def _send_commands(self, board: SimulatedBoard) -> None:
        assert self.laptop is not None
        await board.is_ready.wait()
        prefix = f"{board.kind.via}/" if board.kind.via else ""
        number = 0
        while not board.is_ending.is_set():
            number += 1
            self.laptop.command(f"{prefix}sim/{board.name}/set", f"c{number}", board.commands)
            await asyncio.sleep(board.kind.commands_s / self.fleet.fleet.speed)

    # -- end --

    async def _end(self) -> None:
        """No further cycle; then each sleeping board once more, without losses, so that what waits arrives."""
        assert self.laptop is not None
        ended_at = time.time()
        sleeping = [board for board in self.boards if board.sleeps]
        for board in sleeping:
            board.is_ending.set()
        lives = [board.process for board in sleeping if board.process]
        deadline = time.monotonic() + SETTLE_MAX_S + max([0, *(b.kind.timeout_ms / 1000 for b in sleeping)])
        while any(process.exit_code is None for process in lives) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        for links in self.links.values():
            for link in links:
                link.is_down = False
                link.conditions = Conditions(link.conditions.delay_s)
        for board in self.boards:
            board.restore_power()
        await self._settle(ended_at)
        self.waiting_at_end = {board.name: len(board.messages.by_packet_id) for board in sleeping}
        if not self.is_stopped:
            await self._wake_all(sleeping)
            await self._settle(ended_at)
            await self._wake_those_behind_hubs(sleeping, ended_at)
        for board in self.boards:
            board.is_ending.set()
            board.messages.forget_since(ended_at)
            board.commands.forget_since(ended_at)
        if self._broker is not None:
            self.load.broker_cpu_s = cpu_of(self._broker.pid)

    async def _wake_all(self, boards: list[SimulatedBoard]) -> None:
        room = asyncio.Semaphore(LAST_WAKES)

        async def wake(board: SimulatedBoard) -> None:
            async with room:
                count = len(board.life.cycles)
                await board.cycle(time.monotonic(), messages=0)
                last = board.life.cycles[count:]
                self.is_drained[board.name] = bool(last) and not last[-1].stats["error"]
                del board.life.cycles[count:]  # it isn't one of the fleet's own

        await asyncio.gather(*(wake(board) for board in boards))

    async def _wake_those_behind_hubs(self, boards: list[SimulatedBoard], made_before: float) -> None:
        """Again, while commands are missing: a hub that had no power gets them only when its bridge is back."""
        deadline = time.monotonic() + SETTLE_MAX_S
        while time.monotonic() < deadline:
            missing = [board for board in boards if board.kind.via and board.commands.outstanding(made_before)]
            if not missing:
                return
            await self._wake_all(missing)

    async def _settle(self, made_before: float) -> None:
        """Until all has arrived that is on its way, or nothing has come for a while."""
        assert self.laptop is not None
        begun_at = time.monotonic()
        while (now := time.monotonic()) < begun_at + SETTLE_MAX_S:
            # Commands may wait in a broker's queue for a board that sleeps.
            books = [book for board in self.boards
                     for book in (board.messages, *([] if board.sleeps else [board.commands]))]  # fmt: skip
            if not any(book.outstanding(made_before) for book in books):
                return
            if now - max(begun_at, self.laptop.last_at) > QUIET_S:
                return
            await asyncio.sleep(0.05)

    async def _stop_all(self) -> None:
        """Nothing stays behind, however we came here: boards before the brokers that they talk to."""
        for board in self.boards:
            board.is_ending.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for board in self.boards:
            if board.process is not None:
                await board.process.stop()
            if board.link is not None:
                board.link.close()
        if self.laptop is not None:
            self.laptop.stop()
        if self._broker is not None:
            await self._broker.stop()
        for line in self._lines:
            line.__exit__()


def _names(kind: BoardsSection) -> list[str]:
    if kind.count == 1:
        return [kind.name]
    return [f"{kind.name}-{number}" for number in range(1, kind.count + 1)]


def _follow(hub: Link, board: Link) -> None:
    """The board's link leads to wherever the hub listens, which changes each time it boots."""
    board.target = hub.target
    hub.followers.append(board)
