"""`midge bridge import`: turn the bridges of a mosquitto.conf into ours.
Knows options and where to print; the vocabularies are `midge.bridge.mosquitto`'s.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from pathlib import Path

from midge.bridge import mosquitto
from midge.config import ConfigError, parse

_EXAMPLES = """\
examples:
  midge bridge import /etc/mosquitto/mosquitto.conf              prints the sections for our configuration file
  midge bridge import mosquitto.conf >> midge.toml               adds them to it
  midge broker --check --config midge.toml

What has no counterpart here stands as a comment above the section. Exit codes: 0 done, 1 not done, 2 wrong options.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="midge bridge",
        description="Bridges to other brokers.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    importing = commands.add_parser("import", help="print the bridges of a mosquitto.conf as ours")
    importing.add_argument("file", metavar="FILE", type=Path)
    return parser


def run(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    try:
        bridges = mosquitto.read(options.file)
    except OSError as error:
        print(f"midge bridge: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except (mosquitto.NotUnderstood, UnicodeDecodeError) as error:
        print(f"midge bridge: {error}", file=sys.stderr)
        return 1
    if not bridges:
        print(f"midge bridge: {options.file} has no bridge (no line that starts with connection)", file=sys.stderr)
        return 1
    text = "\n".join(bridge.toml() for bridge in bridges)
    print(text, end="")
    try:
        parse(tomllib.loads(text), "the result")
    except ConfigError as error:
        print(f"midge bridge: can't be used as it is: {error}", file=sys.stderr)
        return 1
    return 0
