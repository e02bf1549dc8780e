"""`midge boards`: flash, deploy, set, log, update ... the boards on this computer's USB ports and on the network.
Knows options and how to print; the rest is in midge.boards.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from midge.boards.simulate import BoardError

_EXAMPLES = """\
examples:
  midge boards list                                             what is on USB
  midge boards flash /dev/ttyUSB0 --firmware ESP32_GENERIC-20260406-v1.28.0.bin
  midge boards deploy /dev/ttyUSB0 --as sensor --name kitchen
  midge boards set /dev/ttyUSB0 wifi.ssid=home wifi.password broker.host=192.168.1.10
  midge boards log /dev/ttyUSB0                                 what the board prints; Ctrl-C ends it
  midge boards update kitchen my_sensors.py                     over MQTT, to a board that is connected

Exit codes: 0 done, 1 not done (the text says why and what is left), 2 wrong options.
"""


def run(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    try:
        return int(options.command(options))
    except BoardError as error:
        print(f"midge boards: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="midge boards",
        description="Bring MicroPython and your program onto boards, and look after them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str, port: str | None) -> Any:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(command=command)
        if port:
            sub.add_argument("port", metavar="PORT", help=port)
        return sub

    serial = "the board's serial port (midge boards list)"
    sub = add("list", _list, "list the boards on USB; with ports: ask the boards there", None)
    sub.add_argument("port", metavar="PORT", nargs="*", help="ask this board (its program is restarted)")
    sub.add_argument("--json", action="store_true", help="print JSON, an object for each line")
    sub = add("info", _info, "print what is known of a kind of board, with sources", None)
    sub.add_argument("board", metavar="BOARD", nargs="?", help="esp32, pico-w ...; without: all names")
    sub = add("flash", _flash, "put MicroPython onto a board", "serial port, or the directory of a UF2 drive")
    sub.add_argument("--firmware", type=Path, required=True, metavar="FILE", help="from micropython.org/download")
    sub.add_argument("--board", metavar="BOARD", help="default: the one whose firmware has such a name")
    sub.add_argument("--sha256", metavar="HEX", help="the file's checksum; else FILE.sha256 is looked for")
    sub.add_argument("--erase", action="store_true", help="erase the whole flash first (ESP32: for the first time)")
    sub.add_argument("--attempts", type=int, metavar="N", help="of esptool to reach the board")
    sub.add_argument("--check", action="store_true", help="check the file only")
    sub = add("deploy", _deploy, "bring a program and all that it needs onto a board", serial)
    sub.add_argument("--as", dest="role", required=True, metavar="ROLE", help="sensor, hub or serial")
    sub.add_argument("--name", help="the board's name, if it has none yet (default: the role)")
    sub.add_argument("--program", type=Path, metavar="FILE.py", help="yours in the place of the role's")
    sub.add_argument("--no-reset", action="store_true", help="leave the board in its REPL")
    sub = add("set", _set, "change a board's settings, or show them", serial)
    sub.add_argument(
        "settings",
        nargs="*",
        metavar="KEY=VALUE",
        help="KEY= removes it; KEY asks for it, KEY=@FILE and KEY=env:NAME take it from there: so are secrets given",
    )
    sub.add_argument("--keys", action="store_true", help="list the keys (give any PORT)")
    sub = add("log", _log, "print what a board prints, as it comes", serial)
    sub.add_argument("--seconds", type=float, metavar="S", help="end after that")
    sub.add_argument("--traceback", action="store_true", help="print the saved tracebacks (restarts the program)")
    add("repl", _repl, "talk to a board's Python; Ctrl-] ends it", serial)
    sub = add("reset", _reset, "restart a board", serial)
    sub.add_argument("--bootloader", action="store_true", help="into its boot loader (RP2040, RP2350)")
    sub = add("update", _update, "send a new version to a board over MQTT", None)
    sub.add_argument("name", metavar="NAME", help="the board's name; through a bridge with its prefix: hub/kitchen")
    sub.add_argument("files", metavar="FILE", nargs="+", type=Path, help="Python is compiled; app.py is the program")
    sub.add_argument("--broker", default="mqtt://127.0.0.1:1883", metavar="URL", help="default %(default)s")
    sub.add_argument("--cafile", metavar="FILE", help="certificates for mqtts://")
    sub.add_argument("--remove", action="append", default=[], metavar="NAME", help="a file that the version loses")
    sub.add_argument("--key-file", type=Path, metavar="FILE", help="the setting update.key; or $MIDGE_UPDATE_KEY")
    sub.add_argument("--wait", type=float, default=300.0, metavar="S", help="for the board to run it (%(default)g)")
    return parser


# ---- commands ----


def _list(options: argparse.Namespace) -> int:
    from midge.boards import ports

    if options.port:
        return _ask(options)
    found = ports.find()
    for port in found:
        if options.json:
            print(json.dumps({"device": port.device, "boards": port.boards, "product": port.product}))
        else:
            print(f"{port.device:24} {port.product}: {', '.join(port.boards)}")
    if not found and not options.json:
        print("no board is on USB (a serial port that isn't known by its USB numbers still works)", file=sys.stderr)
    return 0 if found else 1


def _ask(options: argparse.Namespace) -> int:
    from midge.boards.console import Console
    from midge.boards.deploy import survey

    for port in options.port:
        with Console(port) as console:
            board = survey(console)
            console.reset()
        said = {
            "device": port,
            "board": board.profile.key if board.profile else None,
            "machine": board.machine,
            "micropython": board.version,
            "name": board.name,
            "role": board.role,
            "version": board.id,
            "heap_free": board.heap_free,
            "flash_free": board.flash_free,
        }
        if options.json:
            print(json.dumps(said))
        else:
            print(f"{port}: {board.machine}, MicroPython {board.version}")
            program = f"{board.name} ({board.role}), version {board.id}" if board.id else "nothing of ours"
            print(f"    runs {program}")
            print(f"    free: {board.heap_free:,} bytes of heap, {board.flash_free:,} of flash")
    return 0


def _info(options: argparse.Namespace) -> int:
    from midge.boards import profiles

    if not options.board:
        for profile in profiles.load_all().values():
            print(f"{profile.key:10} {profile.name} ({profile.chip})")
        return 0
    profile = profiles.find(options.board)
    print(f"{profile.name}: {profile.chip}, {'Wi-Fi' if profile.has_radio else 'no radio'}; {profile.serial}")
    print(f"flashed by {profile.flash.method}, {profile.flash.firmware} from {profile.flash.download}")
    print(f"    {profile.flash.bootloader}")
    if profile.heap.free_bytes:
        print(f"heap: {profile.heap.free_bytes:,} bytes free ({profile.heap.source})")
    print(f"broker: {profile.broker.max_clients} clients ({profile.broker.source})")
    print(f"RTC memory: {profile.rtc_memory.bytes:,} bytes ({profile.rtc_memory.source})")
    for key, figure in profile.current.figures().items():
        print(f"{key:22} {figure.value:>8g}   {figure.source}")
    for caveat in profile.caveat:
        print(f"- {caveat.text} ({caveat.source})")
    return 0


def _flash(options: argparse.Namespace) -> int:
    import fnmatch

    from midge.boards import firmware, flash, profiles

    name = options.firmware.name
    if options.board:
        profile = profiles.find(options.board)
    else:
        matching = [p for p in profiles.load_all().values() if fnmatch.fnmatchcase(name, p.flash.firmware)]
        if len(matching) != 1:
            raise BoardError(f"{name} isn't the official firmware of a board that we know: give --board")
        profile = matching[0]
    file = firmware.check(options.firmware, profile, options.sha256)
    for note in file.notes:
        print(f"{name}: {note}")
    if options.check:
        return 0
    if profile.flash.method == "esptool":
        print(f"flashing {profile.name} on {options.port} from {profile.flash.offset:#x}; don't unplug it")
        flash.flash_esp(
            options.port,
            file,
            profile,
            is_erased=options.erase,
            attempts=options.attempts,
            on_output=lambda data: (sys.stdout.buffer.write(data), sys.stdout.flush())[1],
        )
    else:
        drive = Path(options.port)
        if not drive.is_dir():
            before = flash.find_drives(profile)
            flash.enter_boot_loader(options.port)
            print(f"{options.port}: in its boot loader; waiting for its drive")
            drive = flash.wait_for_drive(profile, before=before)
        with _progress(f"flashing {profile.name} on {drive}", len(file.data)) as advance:
            flash.flash_uf2(drive, file, profile, on_bytes=advance)
    print(f"{profile.name} runs MicroPython. Next: midge boards deploy PORT --as ROLE")
    return 0


def _deploy(options: argparse.Namespace) -> int:
    from midge.boards import bundle, deploy, settings
    from midge.boards.console import Console

    if options.name:
        settings.take([f"name={options.name}"])
    with Console(options.port) as console:
        try:
            board = deploy.survey(console)
            profile = board.profile
            if profile and not profile.has_radio and options.role != "serial":
                raise BoardError(f"a {profile.name} has no radio: --as serial")
            files = bundle.make(options.role, profile.mpy_arch if profile else None, options.program)
            kept = deploy.keep_foreign_program(console, board)
            if kept:
                print(f"the board's own main.py is {kept} now")
            bar = _Bar(f"deploying to {options.port}")
            try:
                outcome = deploy.deploy(console, board, files, bar.plan, bar.advance)
            finally:
                bar.close()
            deploy.introduce(console, options.role, options.name)
        except BaseException:
            console.reset()  # the old version goes on
            raise
        for name, size in outcome.sent.items():
            print(f"    {name:28} {size:>7,} bytes")
        what = f"version {outcome.id}: {len(outcome.sent)} files sent, {outcome.kept} were there"
        print(what if outcome.is_new else f"nothing to do: version {outcome.id} is there")
        if not options.no_reset:
            console.reset()
    return 0


def _set(options: argparse.Namespace) -> int:
    from midge.boards import settings
    from midge.boards.console import Console

    if options.keys:
        for name, key in settings.KEYS.items():
            print(f"{name:20} {key.text}{' (secret)' if key.is_secret else ''}")
        return 0
    taken = settings.take(options.settings)  # before the board is disturbed
    with Console(options.port) as console:
        try:
            text = console.read("midge.json")
            try:
                now = json.loads(text) if text else {}
            except ValueError:
                raise BoardError("midge.json on the board isn't JSON: remove it with mpremote") from None
            merged = settings.merge(now, taken)
            if merged != now:
                console.replace("midge.json", json.dumps(merged).encode())
        finally:
            console.reset()
    print("\n".join(settings.show(merged)) or "no settings yet")
    return 0


def _log(options: argparse.Namespace) -> int:
    from midge.boards.console import Console, open_port

    if options.traceback:
        with Console(options.port) as console:
            text = console.read("midge_traceback.txt")
            console.reset()
        print(text.decode("utf-8", "replace") if text else "no traceback is saved")
        return 0
    transport = open_port(options.port)
    until = time.monotonic() + options.seconds if options.seconds else None
    try:
        transport.serial.timeout = 0.1
        while until is None or time.monotonic() < until:
            data = transport.serial.read(max(1, transport.serial.in_waiting))
            sys.stdout.write(data.decode("utf-8", "replace").replace("\r", ""))
            sys.stdout.flush()
    except OSError:
        raise BoardError(f"{options.port}: the board is gone (unplugged, or reset on its own USB)") from None
    finally:
        transport.close()
    return 0


def _repl(options: argparse.Namespace) -> int:
    from midge.boards.console import open_port

    open_port(options.port).close()  # plain words if it can't be
    command = [sys.executable, "-P", "-m", "mpremote", "connect", options.port, "resume", "repl"]
    return subprocess.run(command, check=False).returncode


def _reset(options: argparse.Namespace) -> int:
    from midge.boards import flash
    from midge.boards.console import Console

    if options.bootloader:
        flash.enter_boot_loader(options.port)
        return 0
    with Console(options.port) as console:
        console.reset()
    return 0


def _update(options: argparse.Namespace) -> int:
    from midge.boards import bundle, update
    from midge.boards.link import BrokerLink

    key: str | None = os.environ.get("MIDGE_UPDATE_KEY")
    if options.key_file:
        try:
            key = options.key_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise BoardError(f"{options.key_file}: {error.strerror}") from None
    files = bundle.load(options.files)
    with BrokerLink(options.broker, options.cafile) as link:
        job = update.Update(link, options.name, files, options.remove, key.encode() if key else None)
        with _progress(f"updating {options.name}", job.size) as advance:
            job.run(trial_s=options.wait, on_bytes=advance, on_state=print)
    print(f"{options.name} runs version {job.id}")
    return 0


# ---- progress ----


class _Bar:
    """A bar on a terminal; elsewhere nothing, the command says what it did."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._progress: Any = None
        self._task: Any = None

    def plan(self, total: int) -> None:
        if not sys.stdout.isatty() or not total:
            return
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns)
        self._task = self._progress.add_task(self._text, total=total)
        self._progress.start()

    def advance(self, count: int) -> None:
        if self._progress is not None:
            self._progress.advance(self._task, count)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


@contextmanager
def _progress(text: str, total: int) -> Iterator[Callable[[int], None]]:
    bar = _Bar(text)
    bar.plan(total)
    try:
        yield bar.advance
    finally:
        bar.close()
