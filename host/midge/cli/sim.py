"""`midge sim`: fleets of simulated boards, and how long a battery lasts.
Knows the command line; the simulation is midge.sim's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

    from midge.sim.run import Simulation

# s between two lines of progress where there is no terminal.
_LINE_S = 10.0


def run(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    if options.command == "init":
        return _init(options.file)
    if options.command == "battery":
        return _battery(options)
    return _run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="midge sim", description="Fleets of simulated boards: MicroPython's unix port runs the real programs."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    runs = commands.add_parser("run", help="run a fleet, and report what arrived")
    runs.add_argument("fleet", type=Path, metavar="FLEET.toml")
    runs.add_argument("--json", type=Path, metavar="FILE", help="write the figures; - is stdout")
    runs.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots")
    init = commands.add_parser("init", help="print a commented example of a FLEET.toml")
    init.add_argument("file", nargs="?", type=Path, help="write it there, unless it exists")
    _add_battery(commands.add_parser("battery", help="measure wake cycles; how long does a battery last?"))
    return parser


def _add_battery(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--board", default="esp32", metavar="NAME", help="whose currents: a profile (midge boards)")
    parser.add_argument("--interval", type=float, default=600, metavar="S", help="between two cycles (600)")
    parser.add_argument("--messages", type=int, default=3, metavar="N", help="in each cycle (3)")
    parser.add_argument("--payload", type=int, default=20, metavar="BYTES", help="of each message (20)")
    parser.add_argument("--delay", type=float, default=20, metavar="MS", help="of the link, one way (20)")
    parser.add_argument("--jitter", type=float, default=0, metavar="MS", help="added at random (0)")
    parser.add_argument("--loss", type=float, default=0, metavar="PERCENT", help="of segments (0)")
    parser.add_argument("--cycles", type=int, default=10, metavar="N", help="of each program (10)")
    parser.add_argument("--cell", default="18650", metavar="NAME", help="18650, lipo500, 2xAA, 2xL91, cr2032")
    parser.add_argument("--program", type=Path, action="append", default=[], metavar="FILE.py",
                        help="measure this one too; may be repeated")  # fmt: skip
    parser.add_argument("--argument", action="append", default=[], metavar="TEXT",
                        help="for it; {port} is replaced; may be repeated")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures; - is stdout")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the report as a page")


def _battery(options: argparse.Namespace) -> int:
    from platformdirs import user_cache_path

    from midge.boards import profiles
    from midge.boards.simulate import BoardError
    from midge.sim import battery_report as report
    from midge.sim.energy import Consumption
    from midge.sim.link import Conditions
    from midge.sim.umqtt import fetch

    if not (0 <= options.loss <= 50 and options.delay >= 0 and options.jitter >= 0):
        return _fail("--loss is 0 to 50 percent, --delay and --jitter 0 or more")
    if options.cycles < 1 or options.messages < 1 or options.payload < 1 or options.interval <= 0:
        return _fail("--cycles, --messages, --payload and --interval are more than 0")
    wishes = report.Wishes(
        options.board, Conditions(options.delay / 1000, options.jitter / 1000, options.loss / 100), options.cycles,
        options.interval, options.messages, options.payload, options.cell, tuple(options.program),
        tuple(options.argument) or ("battery", "127.0.0.1", "{port}"),
    )  # fmt: skip
    why = ""
    try:
        consumption = Consumption(profiles.find(options.board))
        report.check(wishes, consumption)
        try:
            umqtt = fetch(user_cache_path("midge") / "umqtt.simple")
        except BoardError as error:
            umqtt, why = None, str(error)
        result = asyncio.run(report.measure(wishes, consumption, umqtt, _tell_step))
        paper = report.document(result, why)
    except BoardError as error:
        return _fail(str(error))
    is_json_out = options.json == Path("-")
    paper.print(_console(sys.stderr if is_json_out else sys.stdout))
    try:
        if options.json is not None:
            _write_json(report.figures(result), options.json)
        if options.markdown is not None:
            options.markdown.write_text(paper.markdown(), encoding="utf-8")
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}")
    return 0


def _tell_step(text: str) -> None:
    print(f"measuring {text.replace('`', '')}", file=sys.stderr, flush=True)


def _write_json(result: object, path: Path) -> None:
    text = json.dumps(result, indent=1) + "\n"
    if path == Path("-"):
        sys.stdout.write(text)
    else:
        path.write_text(text, encoding="utf-8")


def _init(file: Path | None) -> int:
    from midge.sim.fleet import EXAMPLE

    if file is None:
        print(EXAMPLE, end="")
        return 0
    try:
        with file.open("x", encoding="utf-8") as target:
            target.write(EXAMPLE)
    except OSError as error:
        return _fail(f"{file}: {error.strerror}")
    return 0


def _run(options: argparse.Namespace) -> int:

    from midge.boards.simulate import BoardError
    from midge.config import ConfigError
    from midge.sim.figures import figures, is_well
    from midge.sim.fleet import load
    from midge.sim.run import Simulation
    from midge.sim.tables import print_report

    try:
        fleet = load(options.fleet)
        with _progress(fleet.fleet.duration_s) as on_tick:
            simulation = Simulation(fleet, options.fleet.parent, on_tick)
            asyncio.run(_until_stopped(simulation))
    except (BoardError, ConfigError) as error:
        return _fail(str(error))
    if simulation.laptop is None:  # stopped before it began
        return 0
    result = figures(simulation)
    is_json_out = options.json == Path("-")
    print_report(result, _console(sys.stderr if is_json_out else sys.stdout))
    try:
        if options.json is not None:
            _write_json(result, options.json)
        if options.html is not None:
            from midge.sim.page import page

            options.html.write_text(page(result), encoding="utf-8")
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}")
    if not is_well(result):
        return _fail("something was lost without an explanation, doubled at QoS 2, or a program died: see above")
    return 0


async def _until_stopped(simulation: Simulation) -> None:
    """Ctrl-C ends the simulation in good order; a second one the waiting for its end."""
    loop = asyncio.get_running_loop()
    running = asyncio.ensure_future(simulation.run())

    def stop() -> None:
        if simulation.is_stopped or not simulation.started_at:
            running.cancel()
        simulation.stop()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop)
    with contextlib.suppress(asyncio.CancelledError):
        await running


@contextlib.contextmanager
def _progress(duration_s: float) -> Iterator[Callable[[Simulation], None]]:
    """A bar on a terminal, a line now and then elsewhere; on stderr."""
    import time

    console = _console(sys.stderr)
    if not console.is_terminal:
        said_at = [time.monotonic()]

        def say(simulation: Simulation) -> None:
            if time.monotonic() - said_at[0] >= _LINE_S:
                said_at[0] = time.monotonic()
                console.print(_state(simulation), highlight=False)

        yield say
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=duration_s)

        def draw(simulation: Simulation) -> None:
            done_s = (time.monotonic() - simulation.started_at) * simulation.fleet.fleet.speed
            progress.update(task, completed=done_s, description=_state(simulation))

        yield draw


def _state(simulation: Simulation) -> str:
    at, awake = simulation.awake[-1]
    count = simulation.laptop.count if simulation.laptop else 0
    seconds = at * simulation.fleet.fleet.speed
    return f"{seconds:.0f} s, {awake} of {len(simulation.boards)} boards awake, {count} messages arrived"


def _console(file: TextIO) -> Console:
    from rich.console import Console

    console = Console(file=file)
    # A table is no use in 80 columns where nobody reads it as it comes.
    return console if console.is_terminal else Console(file=file, width=160)


def _fail(text: str) -> int:
    print(f"midge sim: {text}", file=sys.stderr)
    return 1
