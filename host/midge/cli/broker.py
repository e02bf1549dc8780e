"""`midge broker`: run the broker until it is told to stop.
Knows options and signals, nothing of MQTT.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from midge import logs
from midge.checks import check, warnings
from midge.config import Config, ConfigError, load, parse
from midge.process import allow_connections, keep_watchdog_quiet, leave_busy_threads, notify

if TYPE_CHECKING:
    from midge.server import Server

log = logging.getLogger("midge.broker")

_EXAMPLES = """\
examples:
  midge broker                                  this machine only, messages kept in your data directory
  midge broker --data :memory:                  keep nothing
  midge broker --config midge.toml              listeners, limits and bridges from a file
  midge broker --print-config > midge.toml      every key with its default and its meaning
  midge broker --check --config midge.toml      can it be used? if not, why
  midge broker --bind 0.0.0.0 --allow-anonymous  let boards on the network in, without passwords
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="midge broker",
        description="An MQTT 3.1.1 and 5.0 broker. What it acknowledged, it keeps.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-p", "--port", type=_port, help="TCP port (default 1883; 0: any free one)")
    parser.add_argument("--bind", metavar="ADDR", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--data", metavar="DIR", help="directory of the store, or :memory: to keep nothing")
    parser.add_argument("-c", "--config", metavar="FILE.toml", type=Path, help="configuration file")
    parser.add_argument(
        "--allow-anonymous", action="store_true", default=None, help="let clients in without a password"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print every key with its default and its meaning, and end"
    )
    parser.add_argument(
        "--check", action="store_true", help="say whether the configuration and its files can be used, and end"
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        metavar="L",
        help="debug, info (default), warning or error",
    )
    parser.add_argument(
        "--log-format", choices=("text", "json"), metavar="F", help="text (default) or json: an object a line"
    )
    return parser


def _tell(error: Exception) -> None:
    """Why it can't run: for people as any command says it, for programs as a line of the log."""
    for line in str(error).splitlines():
        if logs.style == "json":
            log.error("%s", line)
        else:
            print(f"midge broker: {line}", file=sys.stderr)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: 0 to 65535")
    return int(text)


def run(argv: list[str]) -> int:
    """Exit codes: 0 stopped by a signal, 1 it can't run, 2 wrong options or configuration."""
    options = _parser().parse_args(argv)
    if options.print_config:
        from midge.config.reference import toml

        print(toml(), end="")
        return 0
    logs.set_up(options.log_level or "info", options.log_format or "text")
    try:
        config = _configure(options)
        logs.set_up(config.log.level, config.log.format)
        directory = _data_directory(options)
        if options.check:
            check(config, directory)
            for text in warnings(config):
                print(f"midge broker: warning: {text}", file=sys.stderr)
            print(f"{options.config or 'the configuration'} can be used")
            return 0
        return _run(config, directory, options)
    except ConfigError as error:
        _tell(error)
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
    if options.log_level is not None:
        data["log"]["level"] = options.log_level
    if options.log_format is not None:
        data["log"]["format"] = options.log_format
    return parse(data, "command line", options.config.parent if options.config else Path())


def _data_directory(options: argparse.Namespace) -> Path:
    if options.data and options.data != ":memory:":
        return Path(options.data)
    if options.config:
        return Path(options.config).resolve().parent
    from platformdirs import user_data_path

    return user_data_path("midge")


async def _reload_when(changed: asyncio.Event, server: Server, options: argparse.Namespace) -> None:
    """SIGHUP: read the file again. What can't be used is said, and the broker goes on as it was."""
    while True:
        await changed.wait()
        changed.clear()
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            config = _configure(options)
            await server.reload(config)
            logs.set_up(config.log.level, config.log.format)
            log.info("configuration reloaded")
        except ConfigError as error:
            for line in str(error).splitlines():
                log.error("not reloaded: %s", line)
        except Exception:
            log.exception("not reloaded, or only in part")
        notify("READY=1")


def _spare_garbage_collector() -> None:
    """What the start made stays until the end: it is never walked again. And what comes and goes with connections
    and messages has no cycles, so that it is looked for less often than by default (700): while thousands connect,
    that is a tenth of what each costs."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _run(config: Config, directory: Path, options: argparse.Namespace) -> int:
    from midge.server import Server
    from midge.store import StoreError

    loop_factory: Callable[[], asyncio.AbstractEventLoop]
    try:
        from uvloop import new_event_loop as loop_factory
    except ImportError:  # not on every platform
        loop_factory = asyncio.new_event_loop

    async def main() -> None:
        stopped, changed = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopped.set)
        loop.add_signal_handler(signal.SIGHUP, changed.set)
        executor = ThreadPoolExecutor(thread_name_prefix="look-up")
        loop.set_default_executor(executor)
        allow_connections(config.limits.max_connections)
        server = Server(config, directory)
        await server.start()
        _spare_garbage_collector()
        for address in server.addresses:
            print(f"listening on {address}", flush=True)
        if server.monitoring_address:
            print(f"monitoring on {server.monitoring_address}", flush=True)
        notify("READY=1")
        tasks = [
            loop.create_task(_reload_when(changed, server, options)),
            loop.create_task(keep_watchdog_quiet()),
        ]
        await stopped.wait()
        notify("STOPPING=1")
        for task in tasks:
            task.cancel()
        await server.stop()
        executor.shutdown(wait=False, cancel_futures=True)
        leave_busy_threads()

    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())
    except (StoreError, OSError) as error:
        _tell(error)
        return 1
    return 0
