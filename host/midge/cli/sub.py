"""`midge sub`: subscribes and prints what arrives; options, output and exit codes as mosquitto_sub's.
Knows nothing of the broker: it is a client on paho-mqtt. Reads no configuration file of mosquitto's.
"""

import signal
import sys
import time
from types import FrameType
from typing import TYPE_CHECKING

from midge.cli.message_format import (
    FormatError,
    Message,
    compile_format,
    payload_only,
    topic_and_payload,
)
from midge.cli.options import (
    COMMON,
    Options,
    UsageError,
    append_to,
    check,
    help_text,
    is_topic_filter,
    number_of,
    parse,
    switch,
    text_of,
    value,
)

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

    from midge.cli.connection import Connection

EXAMPLES = """\
examples:
  midge sub -v -t '#'
  midge sub -h 192.168.4.1 -t 'kitchen/+' -q 1 -i laptop -c     what came meanwhile is printed too
  midge sub -t kitchen/temperature -C 1 -W 10                   one reading, or exit code 27 after 10 s"""

EXIT_TIMED_OUT = 27  # MOSQ_ERR_TIMEOUT

# A message that waits for the terminal no longer than this is soon enough for a reader's eye.
_WAIT_S = 1.0

_INT_MOST = 2**31 - 1
_COUNT_ERROR = 'Invalid message count "{}".'
_TIMEOUT_ERROR = 'Invalid timeout "{}".'

OPTIONS = (
    value("-t --topic", append_to("topics"), "FILTER to subscribe to; repeatable"),
    value("-T --filter-out", append_to("filters_out"), "FILTER of topics not to print; repeatable"),
    value("-U --unsubscribe", append_to("unsubscribes"), "FILTER to unsubscribe from; repeatable"),
    value("-C", number_of("count", 1, _INT_MOST, _COUNT_ERROR), "COUNT of messages to end after"),
    value("-W", number_of("timeout_s", 1, _INT_MOST, _TIMEOUT_ERROR), "SECONDS to end after, exit code 27"),
    switch("-E", "exit_when_subscribed", "end when the broker has acknowledged the subscriptions"),
    value("-F", text_of("format"), "FORMAT of a line: %t topic, %p payload, %j JSON ... as mosquitto_sub's"),
    switch("-v --verbose", "verbose", "print the topic before the payload"),
    switch("-N", "end_of_line", "no end of line after a message", to=False),
    switch("-R", "skip_retained", "don't print retained messages"),
    switch("--retained-only", "retained_only", "print retained messages only, end at the first other"),
    *COMMON,
)


def run(argv: list[str]) -> int:
    """Runs `midge sub ARGV`. 0: ended by -C, -E, a signal; 27: by -W; if refused, the broker's code."""
    try:
        options = parse(argv, OPTIONS, ("connect", "subscribe", "unsubscribe", "disconnect", "will"))
        if options.help or options.version:
            return _print_about(options)
        _check(options)
        # paho is imported only now: a wrong command line is told at once.
        from midge.cli.connection import Connection, Failure

        subscriber = Subscriber(Connection(options))
    except UsageError as error:
        print(f"Error: {error}\n\nUse 'midge sub --help' to see usage.", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return subscriber.run()
    except Failure as failure:
        subscriber.connection.complain(str(failure))
        return failure.exit_code
    except KeyboardInterrupt:
        if not subscriber.connection.was_connected:
            raise
        subscriber.connection.finish()
        return 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _print_about(options: Options) -> int:
    from midge import __version__

    if options.help:
        print(help_text("sub", "subscribe to topics of an MQTT broker", OPTIONS, EXAMPLES))
    else:
        print(f"midge sub {__version__}")
    return 1  # sic: mosquitto_sub's


def _check(options: Options) -> None:
    if not options.topics:
        raise UsageError("You must specify a topic to subscribe to.")
    for kind, filters in (
        ("subscription", options.topics),
        ("unsubscribe", options.unsubscribes),
        ("filter", options.filters_out),
    ):
        for topic in filters:
            if not is_topic_filter(topic):
                text = f"Invalid {kind} topic '{topic}', are all '+' and '#' wildcards correct?"
                raise UsageError(text)
    if options.skip_retained and options.retained_only:
        raise UsageError("Combining '-R' and '--retained-only' makes no sense.")
    check(options)


class Subscriber:
    """Subscribes on every connect, prints, and acknowledges a message only when it is printed: what arrives
    after the last one wanted (-C) stays in the broker's queue for the next time."""

    def __init__(self, connection: "Connection") -> None:
        from midge.cli.connection import make_properties

        options = connection.options
        self.connection = connection
        self.options = options
        self.printed = 0
        self.done = False  # set when no further message is wanted; never cleared
        self.subscribe_properties = make_properties(options, "subscribe")
        self.unsubscribe_properties = make_properties(options, "unsubscribe")
        if options.format is not None:
            self.format = compile_format(options.format)
        else:
            self.format = topic_and_payload if options.verbose else payload_only
        connection.on_ready = self._subscribe
        connection.client.on_subscribe = self._on_subscribe
        connection.client.on_message = self._on_message

    def run(self) -> int:
        connection = self.connection
        connection.open()
        end = time.monotonic() + self.options.timeout_s if self.options.timeout_s else float("inf")
        while not self.done:
            left_s = end - time.monotonic()
            if left_s <= 0:
                connection.finish()
                connection.complain("Timed out")
                return EXIT_TIMED_OUT
            connection.step(min(left_s, _WAIT_S))
            if connection.closed and not self.done:
                self._recover()
        connection.finish()
        return 0

    def _recover(self) -> None:
        from midge.cli.connection import EXIT_CONNECTION_LOST, Failure

        if not self.connection.was_connected:
            raise Failure(EXIT_CONNECTION_LOST, "Error: The connection was lost.")
        self.connection.debug("connection lost, trying again")
        self.connection.reconnect()

    def _subscribe(self) -> None:
        from paho.mqtt.subscribeoptions import SubscribeOptions

        options, client = self.options, self.connection.client
        if options.protocol_level == 5:
            choice = SubscribeOptions(qos=options.qos)
            client.subscribe([(t, choice) for t in options.topics], properties=self.subscribe_properties)
        else:
            client.subscribe([(topic, options.qos) for topic in options.topics])
        if options.unsubscribes:
            client.unsubscribe(options.unsubscribes, properties=self.unsubscribe_properties)

    def _on_subscribe(
        self,
        _client: "Client",
        _userdata: object,
        mid: int,
        reasons: "list[ReasonCode]",
        _properties: "Properties | None",
    ) -> None:
        if self.options.debug:
            granted = ", ".join(str(reason.value) for reason in reasons)
            print(f"Subscribed (mid: {mid}): {granted}", flush=True)
        if all(reason.is_failure for reason in reasons):
            self.connection.complain("All subscription requests were denied.")
            self.done = True
        elif self.options.exit_when_subscribed:
            self.done = True

    def _on_message(self, client: "Client", _userdata: object, message: "MQTTMessage") -> None:
        if self.done:
            return
        options = self.options
        if options.retained_only and not message.retain:
            self.done = True
            return
        if self._is_wanted(message):
            self._print(message)
            self.printed += 1
            self.done = self.printed == options.count
        client.ack(message.mid, message.qos)

    def _is_wanted(self, message: "MQTTMessage") -> bool:
        from paho.mqtt.client import topic_matches_sub

        if message.retain and self.options.skip_retained:
            return False
        return not any(topic_matches_sub(each, message.topic) for each in self.options.filters_out)

    def _print(self, message: "MQTTMessage") -> None:
        try:
            line = self.format(_to_message(message))
        except FormatError as error:
            print(f"Error: {error}", file=sys.stderr)
            line = b""
        sys.stdout.buffer.write(line + b"\n" if self.options.end_of_line else line)
        sys.stdout.buffer.flush()


# The properties of a PUBLISH in the order in which mosquitto_sub prints them as JSON.
_PROPERTIES = {
    "content-type": "ContentType",
    "response-topic": "ResponseTopic",
    "correlation-data": "CorrelationData",
    "payload-format-indicator": "PayloadFormatIndicator",
    "message-expiry-interval": "MessageExpiryInterval",
    "topic-alias": "TopicAlias",
}


def _to_message(message: "MQTTMessage") -> Message:
    result = Message(message.topic, bytes(message.payload), message.qos, message.retain, message.mid)
    result.time_ns = time.time_ns()
    given = vars(message.properties) if message.properties is not None else {}
    for name, attribute in _PROPERTIES.items():
        if attribute in given:
            result.properties[name] = given[attribute]
    if "SubscriptionIdentifier" in given:
        result.properties["subscription-identifier"] = " ".join(map(str, given["SubscriptionIdentifier"]))
    result.user_properties = given.get("UserProperty", [])
    return result
