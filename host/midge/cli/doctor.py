"""`midge doctor`: what is wrong with this set-up, and what to do about it.
Knows options and how to print; `midge.diagnosis` and `midge.boards.usb` look.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from midge import diagnosis, mdns
from midge.boards import usb
from midge.config import Config, ConfigError, load
from midge.diagnosis import NOTE, OK, PROBLEM, WARNING, Finding

_EXAMPLES = """\
examples:
  midge doctor                          the default set-up on this machine
  midge doctor --config midge.toml      with its listeners, store, bridges and limits
  midge doctor --ask-boards             also the firmware of each board on USB; their programs start again
  midge doctor --json                   one JSON object for each finding, for scripts

Exit codes: 0 nothing is wrong (warnings and notes may be); 1 a problem was found; 2 wrong options.
"""

# MicroPython that the files in device/ need.
_FIRMWARE_LEAST = (1, 22)
_MARKS = {OK: ("✓", "green"), NOTE: ("·", "cyan"), WARNING: ("!", "yellow"), PROBLEM: ("✗", "bold red")}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="midge doctor",
        description="What is wrong with this set-up, and what to do about it. Changes nothing.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-c", "--config", metavar="FILE.toml", type=Path, help="the broker's configuration file")
    parser.add_argument("--data", metavar="DIR", type=Path, help="the directory of its store")
    parser.add_argument("-w", "--wait", type=float, default=1.0, metavar="S", help="for mDNS answers (%(default)s)")
    parser.add_argument("--ask-boards", action="store_true", help="ask each board on USB for its firmware's version")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def run(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    tell = _tell_json if options.json else _teller()
    is_wrong = False
    for finding in _findings(options):
        tell(finding)
        is_wrong |= finding.status == PROBLEM
    return int(is_wrong)


def _findings(options: argparse.Namespace) -> Iterator[Finding]:
    yield from diagnosis.system()
    try:
        config = load(options.config) if options.config else Config()
    except ConfigError as error:
        for line in str(error).splitlines():
            yield Finding("config", PROBLEM, line, "see docs/configuration.md")
        config = Config()
    directory = options.data or _directory(options.config)
    yield from diagnosis.configuration(config, directory)
    yield from diagnosis.store(config, directory)
    yield from diagnosis.listeners(config)
    yield from diagnosis.bridges(config)
    yield from _announced(config, options.wait)
    yield from _boards(options.ask_boards)


def _directory(config: Path | None) -> Path:
    """As `midge broker` finds it."""
    if config:
        return config.resolve().parent
    from platformdirs import user_data_path

    return user_data_path("midge")


def _announced(config: Config, wait_s: float) -> Iterator[Finding]:
    try:
        services = asyncio.run(mdns.find(wait_s))
    except OSError as error:
        text = f"the network can't be asked: {error.strerror or error}"
        yield Finding("mdns", WARNING, text, "boards find the broker by its address only")
        return
    for service in services:
        yield Finding("mdns", OK, f"{service.instance} is announced: {service.url}")
    if not services:
        advice = ""
        if not config.discovery.announce:
            advice = "discovery.announce is off"
        yield Finding("mdns", NOTE, "no broker announces itself on this network", advice)


def _boards(is_to_be_asked: bool) -> Iterator[Finding]:
    ports = usb.serial_ports()
    if not ports:
        advice = "plug one in by a cable that carries data; midge find --all lists every port"
        yield Finding("boards", NOTE, "no board on USB", advice)
    for port in ports:
        text, advice = usb.why_not_ours(port.device)
        if text:
            yield Finding("boards", PROBLEM, text, advice)
        elif is_to_be_asked:
            yield _firmware(port.device)
        else:
            yield Finding("boards", OK, f"{port.device}: {port.what}")


def _firmware(device: str) -> Finding:
    try:
        told = usb.firmware_of(device)
    except usb.NoAnswer as error:
        advice = "is another program at the port? else press its reset button, or flash MicroPython"
        return Finding("boards", PROBLEM, f"{device}: {error}", advice)
    try:
        version = tuple(int(part) for part in told.split()[1].split(".")[:2])
    except (IndexError, ValueError):
        return Finding("boards", WARNING, f"{device}: not understood: {told!r}")
    if version < _FIRMWARE_LEAST:
        advice = f"flash MicroPython {_FIRMWARE_LEAST[0]}.{_FIRMWARE_LEAST[1]} or newer: micropython.org/download"
        return Finding("boards", PROBLEM, f"{device}: {told}", advice)
    return Finding("boards", OK, f"{device}: {told}")


def _tell_json(finding: Finding) -> None:
    print(json.dumps(asdict(finding), ensure_ascii=False), flush=True)


def _teller() -> Callable[[Finding], None]:
    """Prints with colours, where the terminal has them."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    is_plain = not (console.encoding or "").lower().startswith("utf")

    def tell(finding: Finding) -> None:
        mark, colour = _MARKS[finding.status]
        line = Text.assemble((finding.status if is_plain else mark, colour), f" {finding.about:9}{finding.text}")
        console.print(line)
        if finding.advice:
            console.print(Text(f"{'':11}-> {finding.advice}", style="bold" if finding.status == PROBLEM else ""))

    return tell
