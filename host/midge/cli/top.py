"""`midge top`: a live view of a broker and its boards, from what they tell under `$SYS/`.
Knows options and the connection; `top_state` understands what comes, `top_view` shows it.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

from midge.cli.options import Options, Table, UsageError, fraction_of, help_text, parse, switch, value
from midge.cli.shared_options import COMMON, check

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage

    from midge.cli.connection import Connection
    from midge.cli.top_state import State

EXAMPLES = """\
examples:
  midge top                          this machine's broker, until Ctrl-C
  midge top -h 192.168.4.1           another one, Mosquitto too: it shows what that tells
  midge top --once                   one look, as text
  midge top --once --json            one look, for scripts; without --once a line in each interval

Boards are those whose broker's $SYS/ comes through a bridge (topics = [{ filter = "$SYS/#", direction = "in",
local_prefix = "hub/" }]), and those that publish NAME/status (online, offline) and NAME/memory (kB), as the programs
in device/examples do."""

_COMMANDS = ("connect", "subscribe", "disconnect", "will")
_EXIT_NOTHING = 1

OPTIONS: Table = (
    (
        "what to show",
        (
            switch("--once", "once", "one look, then end"),
            switch("--json", "json", "JSON instead of tables"),
            value("-w --wait", fraction_of("wait_s", 0.1, 3600, "Invalid wait {}."),
                  "SECONDS to listen before the first look (2); with --json also between looks"),
        ),
    ),
    *COMMON,
)  # fmt: skip


def run(argv: list[str]) -> int:
    """Runs `midge top ARGV`. 0: seen, or ended by a signal; 1: the broker tells nothing; or the broker's code."""
    try:
        options = parse(argv, OPTIONS, _COMMANDS)
        if options.help or options.version:
            return _print_about(options)
        check(options)
        from midge.cli.connection import Connection, run_until_signal

        watcher = Watcher(Connection(options))
    except UsageError as error:
        print(f"Error: {error}\n\nUse 'midge top --help' to see usage.", file=sys.stderr)
        return 1
    return run_until_signal(watcher.connection, watcher.run)


def _print_about(options: Options) -> int:
    from midge import __version__

    if options.help:
        print(help_text("top", "watch a broker and its boards", "[URL] [OPTION ...]", OPTIONS, EXAMPLES))
    else:
        print(f"midge top {__version__}")
    return 0


class Watcher:
    """Subscribes on every connect, and feeds what comes to the state."""

    def __init__(self, connection: Connection) -> None:
        from midge.cli.top_state import State

        self.connection = connection
        self.options = connection.options
        self.state: State = State()
        self.where = self.options.unix_path or f"{self.options.host}:{self.options.port}"
        connection.on_ready = self._subscribe
        connection.client.on_message = self._on_message

    def run(self) -> int:
        self.connection.open()
        self._listen(self.options.wait_s)
        if self.options.once:
            self._print_look()
            self.connection.finish()
            return 0 if self.state.values else _EXIT_NOTHING
        if self.options.json or not sys.stdout.isatty():
            while True:
                self._print_look()
                self._listen(self.options.wait_s)
        self._show_live()
        return 0

    def _listen(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left_s := end - time.monotonic()) > 0:
            self.connection.step(min(left_s, 0.5))
            if self.connection.closed:
                self._recover()

    def _recover(self) -> None:
        if not self.connection.was_connected:
            from midge.cli.connection import EXIT_CONNECTION_LOST, Failure

            raise Failure(EXIT_CONNECTION_LOST, "Error: The connection was lost.")
        self.connection.reconnect()

    def _print_look(self) -> None:
        now = time.monotonic()
        if self.options.json:
            print(json.dumps(self.state.as_json(now), indent=1 if self.options.once else None), flush=True)
            return
        from rich.console import Console

        from midge.cli.top_view import render

        Console(highlight=False).print(render(self.state, self.where, now))

    def _show_live(self) -> None:
        from rich.console import Console
        from rich.live import Live

        from midge.cli.top_view import render

        with Live(console=Console(highlight=False), screen=True, auto_refresh=False) as live:
            while True:
                live.update(render(self.state, self.where, time.monotonic()), refresh=True)
                self._listen(0.5)

    def _subscribe(self) -> None:
        from midge.cli.top_state import FILTERS

        boards = [f"{name}/#" for name in self.state.boards]
        self.connection.client.subscribe([(each, 0) for each in (*FILTERS, *boards)])

    def _on_message(self, client: Client, _userdata: object, message: MQTTMessage) -> None:
        client.ack(message.mid, message.qos)
        found = self.state.feed(message.topic, bytes(message.payload), message.retain, time.monotonic())
        if found is not None:
            client.subscribe(f"{found}/#", 0)  # whatever it says: it was seen
