"""`midge broker`: run the broker until it is told to stop.
Knows options and signals, nothing of MQTT.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from midge.config import Config, ConfigError, load, parse

_EXAMPLES = """\
examples:
  midge broker                                  this machine only, messages kept in your data directory
  midge broker --data :memory:                  keep nothing
  midge broker --config midge.toml              listeners, limits and bridges from a file
  midge broker --bind 0.0.0.0 --allow-anonymous let boards on the network in, without passwords
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="midge broker",
        description="An MQTT 3.1.1 and 5.0 broker. What it acknowledged, it keeps.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-p", "--port", type=int, help="TCP port (default 1883; 0: any free one)")
    parser.add_argument("--bind", metavar="ADDR", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--data", metavar="DIR", help="directory of the store, or :memory: to keep nothing")
    parser.add_argument("-c", "--config", metavar="FILE.toml", type=Path, help="configuration file")
    parser.add_argument(
        "--allow-anonymous", action="store_true", default=None, help="let clients in without a password"
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        metavar="L",
        help="debug, info (default), warning or error",
    )
    return parser


def run(argv: list[str]) -> int:
    """Exit codes: 0 stopped by a signal, 1 it can't run, 2 wrong options or configuration."""
    options = _parser().parse_args(argv)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    try:
        config = _configure(options)
        directory = _data_directory(options)
        return _run(config, directory)
    except ConfigError as error:
        print(f"midge broker: {error}", file=sys.stderr)
        return 2


def _configure(options: argparse.Namespace) -> Config:
    config = load(options.config) if options.config else Config()
    listener = config.listener[0].model_dump()
    if options.port is not None:
        listener["port"] = options.port
    if options.bind is not None:
        listener["bind"] = options.bind
    data = config.model_dump()
    data["listener"][0] = listener
    if options.data == ":memory:":
        data["store"]["path"] = ":memory:"
    if options.allow_anonymous is not None:
        data["access"]["allow_anonymous"] = True
    return parse(data, "command line", options.config.parent if options.config else Path())


def _data_directory(options: argparse.Namespace) -> Path:
    if options.data and options.data != ":memory:":
        return Path(options.data)
    if options.config:
        return Path(options.config).resolve().parent
    from platformdirs import user_data_path

    return user_data_path("midge")


def _run(config: Config, directory: Path) -> int:
    from midge.server import Server
    from midge.store import StoreError

    loop_factory: Callable[[], asyncio.AbstractEventLoop]
    try:
        from uvloop import new_event_loop as loop_factory
    except ImportError:  # not on every platform
        loop_factory = asyncio.new_event_loop

    async def main() -> None:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopped.set)
        server = Server(config, directory)
        await server.start()
        for address in server.addresses:
            print(f"listening on {address}", flush=True)
        await stopped.wait()
        await server.stop()

    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())
    except (StoreError, OSError) as error:
        print(f"midge broker: {error}", file=sys.stderr)
        return 1
    return 0
