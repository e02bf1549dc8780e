"""`midge find`: brokers on the network, boards and cables on USB.
Knows options and how to print; `midge.mdns` asks the network, pyserial the USB ports.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import asdict
from typing import Any

from midge import mdns

# USB vendors of boards that run MicroPython, and of the UART chips on such boards; what else is on USB isn't shown
# unless it is asked for. From MicroPython's ports and the Linux kernel's usb-serial drivers.
_VENDORS = {
    0x2E8A: "Raspberry Pi (RP2040, RP2350)",
    0x303A: "Espressif (ESP32)",
    0xF055: "MicroPython (pyboard)",
    0x10C4: "Silicon Labs CP210x (many ESP32 boards)",
    0x1A86: "WCH CH340 (many ESP boards)",
    0x0403: "FTDI",
    0x239A: "Adafruit",
    0x2341: "Arduino",
}

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
    for port in _serial_ports(options.all):
        code = 0
        if options.json:
            print(json.dumps({"kind": "serial", **port}))
        else:
            number = f", number {port['serial_number']}" if port["serial_number"] else ""
            print(f"{port['device']:40} {port['what']}{number}")
    if code and not options.json:
        print("nothing found: no broker answers by mDNS, no board is on USB", file=sys.stderr)
    return code


def _serial_ports(is_all: bool) -> list[dict[str, Any]]:
    """Serial ports; empty where pyserial isn't installed."""
    try:
        from serial.tools import list_ports
    except ImportError:
        return []
    found = []
    for port in sorted(list_ports.comports(), key=lambda each: each.device):
        what = _VENDORS.get(port.vid or 0)
        if what or is_all:
            found.append(
                {
                    "device": port.device,
                    "what": what or port.description or "?",
                    "product": port.product,
                    "serial_number": port.serial_number,
                }
            )
    return found
