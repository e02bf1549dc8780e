"""`midge rr`: publishes a request, waits for the answer and prints it; options and output as mosquitto_rr's.
Knows nothing of who answers. docs/request-reply.md has what both sides agree on.
"""

import os
import signal
import sys
import time
from typing import TYPE_CHECKING

from midge.cli import pub, sub
from midge.cli.options import (
    QUEUE_PREFIX,
    Options,
    Table,
    UsageError,
    help_text,
    is_topic_name,
    parse,
    switch,
    text_of,
    value,
)
from midge.cli.printing import Printer
from midge.cli.shared_options import COMMON, PRINTING, SOURCES, TOPIC, check

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

    from midge.cli.connection import Connection

EXAMPLES = """\
examples:
  midge serve -t time -- date +%s                                in one terminal: answers
  midge rr -t time -n -W 5                                       in another: asks, and waits 5 s at most
  midge rr -t kitchen/lamp/get -m brightness -F '%p %C'
  midge rr -V 311 -t time -n                                     a broker of MQTT 3.1.1: time/request/ID is asked,
                                                                 time/response/ID answers
  midge rr -t ask -e answers/me -m hello                         as mosquitto_rr: the answer's topic is yours"""

EXIT_ANSWERED_WITH_ERROR = 1
# The user property of an answer that is none: its value says why.
ERROR_PROPERTY = "error"
_COMMANDS = ("connect", "publish", "subscribe", "unsubscribe", "disconnect", "will")
_WAIT_S = 1.0

OPTIONS: Table = (
    (
        "the request",
        (
            TOPIC,
            *SOURCES,
            value("-e", text_of("response_topic"), "TOPIC of the answer (none: one of its own)"),
        ),
    ),
    (
        "the answer",
        (
            *PRINTING,
            switch("--retain-as-published", "retain_as_published", "%r and -R see the publisher's flag (MQTT 5.0)"),
        ),
    ),
    *COMMON,
)


def run(argv: list[str]) -> int:
    """Runs `midge rr ARGV`. 0: answered; 1: the answer is an error; 27: none in time (-W); or the broker's code."""
    try:
        options = Options()
        options.protocol_level = 5  # mosquitto_rr's
        parse(argv, OPTIONS, _COMMANDS, options, settings_of="rr")
        if options.help or options.version:
            return _print_about(options)
        _check(options)
        payload = pub.read_payload(options) or b""
        # paho is imported only now: a wrong command line is told at once.
        from midge.cli.connection import Connection, Failure

        requester = Requester(Connection(options), payload)
    except UsageError as error:
        print(f"Error: {error}\n\nUse 'midge rr --help' to see usage.", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return requester.run()
    except Failure as failure:
        requester.connection.complain(str(failure))
        return failure.exit_code


def _print_about(options: Options) -> int:
    from midge import __version__

    if options.help:
        usage = "{-t TOPIC | URL} {-m TEXT | -f FILE | -n | -s} [OPTION ...]"
        print(help_text("rr", "ask, and wait for the answer", usage, OPTIONS, EXAMPLES))
    else:
        print(f"midge rr {__version__}")
    return 1  # sic: mosquitto_rr's


def _check(options: Options) -> None:
    if not options.topics and options.url_topic:
        options.topics = [options.url_topic]
    if not options.topics or options.source is None:
        raise UsageError("Both topic and message must be supplied.")
    if len(options.topics) > 1:
        raise UsageError("Only one topic can be asked at once.")
    if not is_topic_name(options.topics[0]):
        raise UsageError(f"Invalid publish topic '{options.topics[0]}', does it contain '+' or '#'?")
    if options.response_topic is not None and not is_topic_name(options.response_topic):
        raise UsageError(f"Invalid response topic '{options.response_topic}', does it contain '+' or '#'?")
    check(options)


class Requester:
    """One request. Where it goes and what is subscribed to follows from the protocol version and -e."""

    def __init__(self, connection: "Connection", payload: bytes) -> None:
        from midge.cli.packet_properties import make_properties

        options = connection.options
        self.connection = connection
        self.options = options
        self.payload = payload
        self.printer = Printer(options)
        self.exit_code: int | None = None  # set when it is over
        self.request_topic = topic = options.topics[0]
        # An identifier of its own: a late answer to another request is never taken for ours.
        identifier = os.urandom(8).hex()
        self.correlation = identifier.encode()
        if options.response_topic is not None:
            self.response_topic = options.response_topic
        else:
            # Not below $queue/: that would be a queue, too.
            self.response_topic = f"{topic.removeprefix(QUEUE_PREFIX)}/response/{identifier}"
            if options.protocol_level < 5:
                if topic.startswith(QUEUE_PREFIX):
                    raise UsageError("Requests of MQTT 3.1.1 go to a topic that feeds a queue, not to the queue.")
                self.request_topic = f"{topic}/request/{identifier}"
        self.subscribe_properties = make_properties(options, "subscribe")
        self.properties = self._publish_properties()
        connection.on_ready = self._subscribe
        connection.client.on_subscribe = self._on_subscribe
        connection.client.on_message = self._on_message

    def _publish_properties(self) -> "Properties | None":
        if self.options.protocol_level < 5:
            return None
        from midge.cli.packet_properties import make_properties, new_properties

        properties = make_properties(self.options, "publish")
        if hasattr(properties, "ResponseTopic"):
            raise UsageError("-D publish response-topic: say -e instead.")
        properties = properties or new_properties("publish")
        properties.ResponseTopic = self.response_topic
        if hasattr(properties, "CorrelationData"):
            self.correlation = properties.CorrelationData
        else:
            properties.CorrelationData = self.correlation
        return properties

    def run(self) -> int:
        from midge.cli.connection import EXIT_CONNECTION_LOST, Failure

        connection = self.connection
        connection.open()
        end = time.monotonic() + self.options.timeout_s if self.options.timeout_s else float("inf")
        while self.exit_code is None:
            left_s = end - time.monotonic()
            if left_s <= 0:
                connection.finish()
                connection.complain("Timed out")
                return sub.EXIT_TIMED_OUT
            connection.step(min(left_s, _WAIT_S))
            if connection.closed and self.exit_code is None:
                raise Failure(EXIT_CONNECTION_LOST, "Error: The connection was lost.")
        connection.finish()
        return self.exit_code

    def _subscribe(self) -> None:
        from paho.mqtt.subscribeoptions import SubscribeOptions

        options, client = self.options, self.connection.client
        if options.protocol_level == 5:
            choice = SubscribeOptions(
                qos=options.qos,
                retainAsPublished=options.retain_as_published,
                retainHandling=2 if options.skip_retained else 0,
            )
            client.subscribe([(self.response_topic, choice)], properties=self.subscribe_properties)
        elif options.response_topic is not None:
            client.subscribe(self.response_topic, options.qos)
        else:
            # .../error below it is where 3.1.1 has answers that are none: it has no user properties.
            client.subscribe(f"{self.response_topic}/#", options.qos)

    def _on_subscribe(
        self,
        client: "Client",
        _userdata: object,
        _mid: int,
        reasons: "list[ReasonCode]",
        _properties: "Properties | None",
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            self.connection.complain(f"{reasons[0]}")  # mosquitto_rr's words
            self.exit_code = 0  # sic: mosquitto_rr's
            return
        client.publish(self.request_topic, self.payload, self.options.qos, False, self.properties)

    def _on_message(self, client: "Client", _userdata: object, message: "MQTTMessage") -> None:
        client.ack(message.mid, message.qos)
        if self.exit_code is not None or (message.retain and self.options.skip_retained):
            return
        answered_to = getattr(message.properties, "CorrelationData", self.correlation)
        if answered_to != self.correlation:
            self.connection.debug(f"an answer to another request: {answered_to!r}")
            return
        why = self._error_of(message)
        if why is None:
            self.printer.print(message)
            self.exit_code = 0
            return
        text = bytes(message.payload).decode("utf-8", "replace").strip()
        self.connection.complain(f"Error: {why}" + (f": {text}" if text else ""))
        self.exit_code = EXIT_ANSWERED_WITH_ERROR

    def _error_of(self, message: "MQTTMessage") -> str | None:
        """Why the answer is none; None if it is one."""
        if self.options.response_topic is None and message.topic == f"{self.response_topic}/error":
            return "the responder couldn't answer"
        pairs: list[tuple[str, str]] = getattr(message.properties, "UserProperty", [])
        return next((value for name, value in pairs if name == ERROR_PROPERTY), None)
