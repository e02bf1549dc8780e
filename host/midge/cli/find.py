"""`midge find`: brokers on the network, boards and cables on USB.
Knows options and how to print; `midge.mdns` asks the network, `midge.boards.usb` the USB ports.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import asdict

from midge import mdns
from midge.boards import usb

_EXAMPLES = """\
examples:
  midge find                 what answers within 2 s
  midge find -w 5 --json     wait longer; one JSON object per line, for scripts

Exit codes: 0 something was found, 1 nothing was, 2 wrong options.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="midge find",
        description="List the brokers on the network (mDNS) and the boards on USB.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-w", "--wait", type=float, default=2.0, metavar="S", help="for answers (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--all", action="store_true", help="all serial ports, not only those that can be a board's")
    parser.add_argument(
        "--interface",
        action="append",
        metavar="ADDRESS",
        help="ask only on the network of this address of ours; may be repeated",
    )
    return parser


def run(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    code = 1
    try:
        services = asyncio.run(mdns.find(options.wait, options.interface))
    except OSError as error:
        print(f"midge find: can't ask the network: {error.strerror or error}", file=sys.stderr)
        services = []
    for service in services:
        code = 0
        if options.json:
            print(json.dumps({"kind": "broker", "url": service.url, **asdict(service)}))
        else:
            print(f"{service.url:40} {service.instance} ({', '.join(service.addresses)})")
    for port in usb.serial_ports(options.all):
        code = 0
        if options.json:
            print(json.dumps({"kind": "serial", **asdict(port)}))
        else:
            number = f", number {port.serial_number}" if port.serial_number else ""
            print(f"{port.device:40} {port.what}{number}")
    if code and not options.json:
        print("nothing found: no broker answers by mDNS, no board is on USB", file=sys.stderr)
    return code
