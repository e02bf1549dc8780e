"""`midge pub`: publishes messages; options, output and exit codes as mosquitto_pub's.
Knows nothing of the broker: it is a client on paho-mqtt.
"""

import os
import sys
import time
from typing import TYPE_CHECKING

from midge.cli.options import (
    Options,
    Table,
    UsageError,
    encode,
    fraction_of,
    help_text,
    is_topic_name,
    number_of,
    parse,
    switch,
    value,
)
from midge.cli.shared_options import COMMON, RATE, SOURCES, TOPIC, check, source

if TYPE_CHECKING:
    from collections.abc import Callable

    from paho.mqtt.client import Client
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

    from midge.cli.connection import Connection
    from midge.cli.json_lines import Draft

EXAMPLES = """\
examples:
  midge pub -t kitchen/lamp -m on
  midge pub -h 192.168.4.1 -t kitchen/lamp -m on -q 1 -r
  midge pub mqtt://joe:secret@broker.local/kitchen/lamp -m on
  some-program | midge pub -t readings -l --rate 10
  midge sub --json -t '#' > all.jsonl; midge pub --json -q 1 < all.jsonl      record, and publish again
  midge pub -t kitchen/lamp -n -r                                            delete what is retained there"""

# -l reads on only while fewer messages than this wait for their acknowledgement (mosquitto_pub: 20).
_UNACKNOWLEDGED_MAX = 100
_READ_BYTES = 65536
_INT_MOST = 2**31 - 1
_COMMANDS = ("connect", "publish", "subscribe", "unsubscribe", "disconnect", "will")

OPTIONS: Table = (
    (
        "what and where",
        (
            TOPIC,
            *SOURCES,
            source("-l --stdin-line", "one message for each line of stdin"),
            source("--json", "one message for each line of stdin: {\"topic\": ..., \"payload\": ..., \"qos\": ...}"),
            switch("-r --retain", "retain", "the broker keeps the message for later subscribers"),
            value("--repeat", number_of("repeat", 1, _INT_MOST, "--repeat argument must be >0."),
                  "N publish it N times (with -m, -f, -n or -s)"),
            value("--repeat-delay", fraction_of("repeat_delay_s", 0, 1e9, "--repeat-delay argument must be >=0.0."),
                  "SECONDS to wait in between"),
            RATE,
            value("-M", number_of("in_flight_max", 1, 65535, "Maximum inflight messages must be greater than 0."),
                  "N at most N unacknowledged messages at a time"),
        ),
    ),
    *COMMON,
)  # fmt: skip


def run(argv: list[str]) -> int:
    """Runs `midge pub ARGV`. 0: sent, and acknowledged if QoS asks for it; if refused, the broker's code."""
    try:
        options = parse(argv, OPTIONS, _COMMANDS, settings_of="pub")
        if options.help:
            usage = "{-t TOPIC | URL} {-m TEXT | -f FILE | -l | -n | -s | --json} [OPTION ...]"
            print(help_text("pub", "publish messages to an MQTT broker", usage, OPTIONS, EXAMPLES))
            return 1  # sic: mosquitto_pub's
        if options.version:
            return _print_version()
        _check(options)
        payload = read_payload(options)
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
    if not options.topics and options.url_topic:
        options.topics = [options.url_topic]
    kind = options.source[0] if options.source else ""
    if not kind or not (options.topics or kind == "json"):
        raise UsageError("Both topic and message must be supplied.")
    if len(options.topics) > 1:
        raise UsageError("Only one topic can be published to at once.")
    if options.topics and not is_topic_name(options.topics[0]):
        raise UsageError(f"Invalid publish topic '{options.topics[0]}', does it contain '+' or '#'?")
    check(options)


def read_payload(options: Options) -> bytes | None:
    """The one message; None where each line of stdin is one."""
    kind, text = options.source or ("n", "")
    if kind in ("l", "json"):
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


class Pacer:
    """Says when the next message may leave: at most so many in each second, evenly; 0: always."""

    def __init__(self, per_second: float, clock: "Callable[[], float]" = time.monotonic) -> None:
        self._interval_s = 1 / per_second if per_second else 0.0
        self._clock = clock
        self._next_at = clock()

    def wait_s(self) -> float:
        """Seconds until then; 0 if now."""
        return max(0.0, self._next_at - self._clock()) if self._interval_s else 0.0

    def count(self) -> None:
        """One has left. What was missed while there was nothing to send isn't caught up with."""
        self._next_at = max(self._next_at, self._clock() - self._interval_s) + self._interval_s

    def delay(self, seconds: float) -> None:
        """Not before so many seconds from now."""
        self._interval_s = self._interval_s or 1e-9
        self._next_at = max(self._next_at, self._clock() + seconds)


class Publisher:
    """Publishes one payload, or stdin line by line (`payload` None), and waits until all are done."""

    def __init__(self, connection: "Connection", payload: bytes | None) -> None:
        from midge.cli.packet_properties import make_properties

        options = connection.options
        self.connection = connection
        self.options = options
        self.payload = payload
        self.pending = 0  # messages handed to paho, not yet done; `_publish` counts up, `_on_publish` down
        self.properties = make_properties(options, "publish")
        self.pacer = Pacer(options.per_second)
        connection.client.on_publish = self._on_publish

    def run(self) -> None:
        self.connection.open()
        if self.payload is not None:
            self._send_repeated(self.payload)
        elif self.options.source and self.options.source[0] == "json":
            from midge.cli.json_lines import Drafts

            drafts = Drafts(self.options)
            self._send_lines(lambda line: self._publish_draft(drafts.read(line)))
        else:
            self._send_lines(self._publish)
        self.connection.finish()

    def _send_repeated(self, payload: bytes) -> None:
        """The next one leaves when the one before has been delivered, as mosquitto_pub does it."""
        connection, options = self.connection, self.options
        sent = 0
        while sent < options.repeat or self.pending:
            if connection.closed:
                if options.repeat == 1 or (options.qos == 0 and sent == options.repeat):
                    self._fail_lost()
                self._recover()
            wait_s = 1.0
            if connection.connected and sent < options.repeat and not self.pending:
                wait_s = self.pacer.wait_s()
                if not wait_s:
                    self._publish(payload)
                    sent += 1
            connection.step(min(wait_s, 1.0))

    def _send_lines(self, publish: "Callable[[bytes], None]") -> None:
        """Reads stdin while the window is open. As mosquitto_pub does: a lost connection is opened again,
        messages of QoS 1 and 2 are resent; stdin waits meanwhile."""
        connection, stdin = self.connection, sys.stdin.fileno()
        lines: list[bytes] = []
        rest, ended = b"", False
        while not ended or lines or self.pending:
            if connection.closed:
                self._recover()
            may_read = connection.connected and not ended and not lines
            if connection.step(self._line_wait_s(lines), stdin if may_read else None):
                data = os.read(stdin, _READ_BYTES)
                ended = not data
                *lines, rest = (rest + data).split(b"\n")
                if ended and rest:
                    lines.append(rest)  # a last line without its end is a message too
            lines = self._publish_lines(lines, publish)

    def _line_wait_s(self, lines: list[bytes]) -> float:
        return min(self.pacer.wait_s(), 1.0) or 1.0 if lines else 1.0

    def _publish_lines(self, lines: list[bytes], publish: "Callable[[bytes], None]") -> list[bytes]:
        """Publishes what fits into the window and the rate; returns the others."""
        window = self.options.in_flight_max or _UNACKNOWLEDGED_MAX
        sent = 0
        while sent < len(lines) and self.connection.connected and self.pending < window:
            if self.pacer.wait_s():
                break
            publish(lines[sent])
            sent += 1
        return lines[sent:]

    def _recover(self) -> None:
        if not self.connection.was_connected:
            self._fail_lost()
        self.connection.complain("Error: The connection was lost. Trying again.")
        if self.options.qos == 0:
            self.pending = 0  # QoS 0: what was on its way is gone, nobody will report it
        self.connection.reconnect()

    def _publish(self, payload: bytes) -> None:
        options = self.options
        self.pending += 1
        self.pacer.count()
        self.connection.client.publish(
            options.topics[0], payload, options.qos, options.retain, self.properties
        )

    def _publish_draft(self, draft: "Draft") -> None:
        self.pending += 1
        self.pacer.count()
        self.connection.client.publish(
            draft.topic, draft.payload, draft.qos, draft.retain, draft.properties or self.properties
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
        if self.options.repeat_delay_s:
            self.pacer.delay(self.options.repeat_delay_s)
        if reason.is_failure:
            self.connection.complain(f"Warning: Publish {mid} failed: {reason}.")

    def _fail_lost(self) -> None:
        from midge.cli.connection import EXIT_CONNECTION_LOST, Failure

        raise Failure(EXIT_CONNECTION_LOST, "Error: The connection was lost.")
