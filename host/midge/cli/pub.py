"""`midge pub`: publishes messages; options, output and exit codes as mosquitto_pub's.
Knows nothing of the broker: it is a client on paho-mqtt. Reads no configuration file of mosquitto's.
"""

import os
import sys
from typing import TYPE_CHECKING

from midge.cli.options import (
    COMMON,
    Option,
    Options,
    UsageError,
    append_to,
    check,
    encode,
    help_text,
    is_topic_name,
    parse,
    switch,
    value,
)

if TYPE_CHECKING:
    from paho.mqtt.client import Client
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

    from midge.cli.connection import Connection

EXAMPLES = """\
examples:
  midge pub -t kitchen/lamp -m on
  midge pub -h 192.168.4.1 -t kitchen/lamp -m on -q 1 -r
  some-program | midge pub -t readings -l"""

# -l reads on only while fewer messages than this wait for their acknowledgement (mosquitto_pub: 20).
_UNACKNOWLEDGED_MAX = 100
_READ_BYTES = 65536


def _source(names: str, text: str) -> Option:
    kind = names[1]

    def apply(options: Options, given: str) -> None:
        if options.source is not None:
            raise UsageError("Only one type of message can be sent at once.")
        options.source = kind, given

    return Option(tuple(names.split()), apply, kind in "mf", text)


OPTIONS = (
    value("-t --topic", append_to("topics"), "TOPIC to publish to"),
    _source("-m --message", "TEXT of the message"),
    _source("-f --file", "FILE whose content is the message"),
    _source("-l --stdin-line", "one message for each line of stdin"),
    _source("-n --null-message", "an empty message (with -r: deletes the retained one)"),
    _source("-s --stdin-file", "stdin to its end is the message"),
    switch("-r --retain", "retain", "the broker keeps the message for later subscribers"),
    *COMMON,
)


def run(argv: list[str]) -> int:
    """Runs `midge pub ARGV`. 0: sent, and acknowledged if QoS asks for it; if refused, the broker's code."""
    try:
        options = parse(argv, OPTIONS, ("connect", "publish", "disconnect", "will"))
        if options.help:
            print(help_text("pub", "publish messages to an MQTT broker", OPTIONS, EXAMPLES))
            return 1  # sic: mosquitto_pub's
        if options.version:
            return _print_version()
        _check(options)
        payload = _read_payload(options)
        # paho is imported only now: a wrong command line is told at once.
        from midge.cli.connection import Connection, Failure

        publisher = Publisher(Connection(options), payload)
    except UsageError as error:
        print(f"Error: {error}\n\nUse 'midge pub --help' to see usage.", file=sys.stderr)
        return 1
    try:
        publisher.run()
    except Failure as failure:
        publisher.connection.complain(str(failure))
        return failure.exit_code
    return 0


def _print_version() -> int:
    from midge import __version__

    print(f"midge pub {__version__}")
    return 1  # sic: mosquitto_pub's


def _check(options: Options) -> None:
    if not options.topics or options.source is None:
        raise UsageError("Both topic and message must be supplied.")
    if len(options.topics) > 1:
        raise UsageError("Only one topic can be published to at once.")
    if not is_topic_name(options.topics[0]):
        raise UsageError(f"Invalid publish topic '{options.topics[0]}', does it contain '+' or '#'?")
    check(options)


def _read_payload(options: Options) -> bytes | None:
    """The one message; None for -l, which sends many."""
    kind, text = options.source or ("n", "")
    if kind == "l":
        return None
    if kind == "s":
        return sys.stdin.buffer.read()
    if kind == "m":
        return encode(text)
    if kind == "n":
        return b""
    try:
        with open(text, "rb") as file:
            return file.read()
    except OSError as error:
        raise UsageError(f'Unable to open file "{text}": {error.strerror}.') from None


class Publisher:
    """Publishes one payload, or stdin line by line (`payload` None), and waits until all are done."""

    def __init__(self, connection: "Connection", payload: bytes | None) -> None:
        from midge.cli.connection import make_properties

        self.connection = connection
        self.payload = payload
        self.pending = 0  # messages handed to paho, not yet done; `_publish` counts up, `_on_publish` down
        self.properties = make_properties(connection.options, "publish")
        connection.client.on_publish = self._on_publish

    def run(self) -> None:
        self.connection.open()
        if self.payload is None:
            self._send_lines()
        else:
            self._send_one(self.payload)
        self.connection.finish()

    def _send_one(self, payload: bytes) -> None:
        self.connection.on_ready = lambda: self._publish(payload)
        while not self.connection.connected or self.pending:
            self.connection.step(1.0)
            if self.connection.closed:
                self._fail_lost()

    def _send_lines(self) -> None:
        """Reads stdin while the window is open. As mosquitto_pub does: a lost connection is opened again,
        messages of QoS 1 and 2 are resent; stdin waits meanwhile."""
        connection, stdin = self.connection, sys.stdin.fileno()
        lines: list[bytes] = []
        rest, ended = b"", False
        while not ended or lines or self.pending:
            if connection.closed:
                self._recover()
            may_read = connection.connected and not ended and not lines
            if connection.step(1.0, stdin if may_read else None):
                data = os.read(stdin, _READ_BYTES)
                ended = not data
                *lines, rest = (rest + data).split(b"\n")
                if ended and rest:
                    lines.append(rest)  # a last line without its end is a message too
            lines = self._publish_lines(lines)

    def _publish_lines(self, lines: list[bytes]) -> list[bytes]:
        """Publishes what fits into the window; returns the others."""
        sent = 0
        while sent < len(lines) and self.connection.connected and self.pending < _UNACKNOWLEDGED_MAX:
            self._publish(lines[sent])
            sent += 1
        return lines[sent:]

    def _recover(self) -> None:
        if not self.connection.was_connected:
            self._fail_lost()
        self.connection.complain("Error: The connection was lost. Trying again.")
        if self.connection.options.qos == 0:
            self.pending = 0  # QoS 0: what was on its way is gone, nobody will report it
        self.connection.reconnect()

    def _publish(self, payload: bytes) -> None:
        options = self.connection.options
        self.pending += 1
        self.connection.client.publish(
            options.topics[0], payload, options.qos, options.retain, self.properties
        )

    def _on_publish(
        self,
        _client: "Client",
        _userdata: object,
        mid: int,
        reason: "ReasonCode",
        _properties: "Properties | None",
    ) -> None:
        self.pending -= 1
        if reason.is_failure:
            self.connection.complain(f"Warning: Publish {mid} failed: {reason}.")

    def _fail_lost(self) -> None:
        from midge.cli.connection import EXIT_CONNECTION_LOST, Failure

        raise Failure(EXIT_CONNECTION_LOST, "Error: The connection was lost.")
