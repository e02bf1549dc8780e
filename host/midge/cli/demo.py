"""`midge demo`: the main job in one terminal, on simulated boards: two boards, a hub that is a board too, a board
on a serial cable, the broker and its bridge on this machine, and a view of what arrives. Knows nothing of how any
of them works.
"""

import argparse
import asyncio
import contextlib
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from midge.boards.serial_line import SerialLine
from midge.boards.simulate import Board, BoardError, Process, device_directory

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage

    from midge.cli.demo_view import View

# A program compiles its files on the board first; two busy cores make that slow.
START_TIMEOUT_S = 30.0

# Between two commands to the same board.
COMMAND_INTERVAL_S = 3.0

LISTENING = r"listening on mqtt://127\.0\.0\.1:(\d+)"

# The bridge's topics: what the boards say comes here under hub/, what is said to hub/NAME/set/... goes to them.
CONFIGURATION = """\
[[listener]]
port = {port}

[[listener]]
type = "serial"
device = "{cable}"

[store]
path = "{directory}/midge.db"

[[bridge]]
name = "hub"
address = "mqtt://127.0.0.1:{hub_port}"
topics = [
  {{ filter = "#", direction = "in", qos = 1, local_prefix = "hub/" }},
  {{ filter = "+/set/#", direction = "out", qos = 1, local_prefix = "hub/" }},
]
"""


@dataclass(slots=True)
class Goal:
    """What one board must show for the demo to have worked: readings here, commands there and confirmed."""

    board: str
    command: str  # under BOARD/set/ and, confirmed, under BOARD/state/
    values: tuple[str, str]  # sent in turn
    prefix: str = ""  # of its topics here
    readings: int = 0
    online: bool = False
    sent: int = 0
    confirmed: int = 0
    awaited: str | None = None  # the value sent last; cleared by its confirmation
    next_command: float = 0.0  # by time.monotonic

    def missing(self) -> list[str]:
        """What didn't happen, as sentences; empty if all is well."""
        if not self.readings:
            return [f"no reading of '{self.board}' arrived here"]
        if not self.sent:
            return [f"'{self.board}' never said that it is online, so no command was sent to it"]
        if not self.confirmed:
            return [f"'{self.board}' confirmed none of {self.sent} commands ({self.command})"]
        return []


@dataclass(slots=True)
class Demo:
    """The state of a running demo. `messages` is filled by the subscriber's thread through the event loop."""

    port: int
    seconds: float | None
    goals: list[Goal]
    messages: "asyncio.Queue[tuple[str, bytes]]" = field(default_factory=asyncio.Queue)
    processes: list[Process] = field(default_factory=list)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="midge demo", description="The broker, a bridge and four boards.")
    parser.add_argument("--seconds", type=float, metavar="N", help="end after N seconds and check the result")
    parser.add_argument(
        "--port", type=int, default=0, help="of the broker (1883 if it is free, else another)"
    )
    return parser


def run(argv: list[str]) -> int:
    """0: interrupted, or with --seconds: messages went both ways. 1: they didn't, or something died."""
    options = _parser().parse_args(argv)
    goals = [
        Goal("sensor", "interval", ("2", "1"), "hub/"),
        Goal("controller", "led", ("on", "off"), "hub/"),
        Goal("cable", "interval", ("2", "1")),
    ]
    try:
        demo = Demo(options.port or _free_port(preferred=1883), options.seconds, goals)
        return asyncio.run(_run(demo))
    except BoardError as error:
        print(f"midge demo: {error}", file=sys.stderr)
        return 1


def _free_port(preferred: int) -> int:
    for port in (preferred, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise BoardError("no free port on 127.0.0.1")


async def _run(demo: Demo) -> int:
    from midge.cli.demo_view import make_view

    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stopped.set)
    stop = asyncio.create_task(stopped.wait())
    with (
        tempfile.TemporaryDirectory(prefix="midge-demo-") as directory,
        SerialLine(seed=0) as line,
        make_view(demo.port) as view,
    ):
        try:
            if not await _first_of(stop, _start(demo, Path(directory), line, view)):
                return 0
            with _subscribed(demo) as client:
                ended_well = await _first_of(stop, _watch(demo, client, view))
        finally:
            stop.cancel()
            await _stop(demo, view)
    if demo.seconds is None or not ended_well:
        return 0
    return _report(demo)


async def _first_of(stop: "asyncio.Task[bool]", work: Awaitable[None]) -> bool:
    """Runs `work` to its end, or until we are told to stop: then False."""
    task = asyncio.ensure_future(work)
    await asyncio.wait([stop, task], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task  # its error is ours
        return True
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return False


async def _start(demo: Demo, directory: Path, line: SerialLine, view: "View") -> None:
    """The hub first, since its port is in the broker's configuration, then the broker, then the boards."""
    device = device_directory()
    hub = Board("hub", device / "midge_broker.py", ["0"], on_line=view.line("hub"))
    hub_port = await _start_one(demo, hub)
    config = directory / "midge.toml"
    config.write_text(
        CONFIGURATION.format(
            port=demo.port, directory=directory.as_posix(), hub_port=hub_port, cable=line.host_port
        ),
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "midge", "broker", "--config", str(config)]
    await _start_one(demo, Process("broker", command, {"PYTHONUNBUFFERED": "1"}, view.line("broker")))
    for goal in demo.goals:
        program = device / "examples" / f"{goal.board}.py"
        args = [goal.board, *([line.board_port] if goal.board == "cable" else ["127.0.0.1", str(hub_port)]), "1"]
        board = Board(goal.board, program, args, on_line=view.line(goal.board))
        demo.processes.append(board)
        await board.start()


async def _start_one(demo: Demo, process: Process) -> int:
    """Starts a broker; returns the port it listens on."""
    demo.processes.append(process)
    await process.start()
    found = await process.wait_for_line(LISTENING, START_TIMEOUT_S)
    return int(found[1])


async def _stop(demo: Demo, view: "View") -> None:
    """Boards before the brokers that they talk to. Nothing interrupts this: each step has its deadline, and
    whoever read our output may be gone (`make run | head`)."""
    with contextlib.suppress(OSError):
        view.note("stopping")
    for process in reversed(demo.processes):
        await process.stop()


@contextlib.contextmanager
def _subscribed(demo: Demo) -> Iterator["Client"]:
    """A subscriber of everything on the broker here, as any program on the laptop would be one."""
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    loop = asyncio.get_running_loop()
    client = Client(CallbackAPIVersion.VERSION2, "midge-demo")
    client.on_connect = lambda client, *_: client.subscribe("#", 1)

    def take(_client: "Client", _userdata: object, message: "MQTTMessage") -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: we are at the end
            loop.call_soon_threadsafe(demo.messages.put_nowait, (message.topic, bytes(message.payload)))

    client.on_message = take
    try:
        client.connect("127.0.0.1", demo.port)
    except OSError as error:
        raise BoardError(f"can't connect to the broker on port {demo.port}: {error.strerror}") from None
    client.loop_start()
    try:
        yield client
    finally:
        client.disconnect()
        client.loop_stop()


async def _watch(demo: Demo, client: "Client", view: "View") -> None:
    """Shows what arrives and sends a command now and then, until the time is over or a process ends."""
    ends = {asyncio.create_task(process.wait()): process for process in demo.processes}
    end = None if demo.seconds is None else time.monotonic() + demo.seconds
    next_message = asyncio.create_task(demo.messages.get())
    try:
        while end is None or time.monotonic() < end:
            done, _ = await asyncio.wait(
                [next_message, *ends], timeout=0.25, return_when=asyncio.FIRST_COMPLETED
            )
            for ended, process in ends.items():
                if ended in done:
                    raise BoardError(process.obituary())
            if next_message in done:
                topic, payload = next_message.result()
                next_message = asyncio.create_task(demo.messages.get())
                view.message(topic, payload)
                _note_message(demo, topic, payload)
            _send_commands(demo, client, view)
            view.refresh()
    finally:
        for task in (next_message, *ends):
            task.cancel()


def _note_message(demo: Demo, topic: str, payload: bytes) -> None:
    for goal in demo.goals:
        prefix, _, rest = topic.partition(f"{goal.prefix}{goal.board}/")
        if prefix or not rest:
            continue
        if rest == "status":
            goal.online = payload == b"online"
        elif rest == f"state/{goal.command}":
            if goal.awaited is not None and payload.decode("utf-8", "replace") == goal.awaited:
                goal.awaited = None
                goal.confirmed += 1
        elif "/" not in rest:
            goal.readings += 1


def _send_commands(demo: Demo, client: "Client", view: "View") -> None:
    now = time.monotonic()
    for goal in demo.goals:
        if not goal.online or now < goal.next_command:
            continue
        goal.next_command = now + COMMAND_INTERVAL_S
        goal.awaited = goal.values[goal.sent % 2]
        goal.sent += 1
        topic = f"{goal.prefix}{goal.board}/set/{goal.command}"
        client.publish(topic, goal.awaited, qos=1)
        view.command(topic, goal.awaited)


def _report(demo: Demo) -> int:
    missing = [sentence for goal in demo.goals for sentence in goal.missing()]
    if missing:
        print(f"midge demo: {'; '.join(missing)}", file=sys.stderr)
        return 1
    for goal in demo.goals:
        print(
            f"{goal.board}: {goal.readings} readings arrived, "
            f"{goal.confirmed} of {goal.sent} commands ({goal.command}) confirmed"
        )
    print("messages went both ways")
    return 0
