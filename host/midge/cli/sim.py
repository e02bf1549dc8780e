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
    return parser


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
            text = json.dumps(result, indent=1) + "\n"
            if is_json_out:
                sys.stdout.write(text)
            else:
                options.json.write_text(text, encoding="utf-8")
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
