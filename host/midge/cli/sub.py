"""`midge sub`: subscribes and prints what arrives; options, output and exit codes as mosquitto_sub's.
Knows nothing of the broker: it is a client on paho-mqtt.
"""

import random
import sys
import time
from typing import TYPE_CHECKING

from midge.cli.options import (
    Options,
    Table,
    UsageError,
    append_to,
    fraction_of,
    help_text,
    is_topic_filter,
    number_of,
    parse,
    switch,
    text_of,
    value,
)
from midge.cli.printing import Printer
from midge.cli.shared_options import COMMON, PRINTING, check

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

    from midge.cli.connection import Connection

EXAMPLES = """\
examples:
  midge sub -v -t '#'
  midge sub mqtt://192.168.4.1/kitchen/+ --json                 one JSON object for each message
  midge sub -h 192.168.4.1 -t 'kitchen/+' -q 1 -i laptop -c     what came meanwhile is printed too
  midge sub -t kitchen/temperature -C 1 -W 10                   one reading, or exit code 27 after 10 s
  midge sub -t 'sensors/#' -F '@H:@M:@S %t %p'                  the time, the topic, the payload
  midge sub -t 'sensors/#' --rate                               how much arrives, each second
  midge sub --since 1h -v -t 'kitchen/#'                        what a [[history]] has kept, then what comes
  midge sub -t 'old/#' --remove-retained --retained-only -W 2   delete what is retained below old/"""

EXIT_TIMED_OUT = 27  # MOSQ_ERR_TIMEOUT

# A message that waits for the terminal no longer than this is soon enough for a reader's eye.
_WAIT_S = 1.0

_INT_MOST = 2**31 - 1
_COUNT_ERROR = 'Invalid message count "{}".'
_CHANCE_ERROR = "--random-filter chance must be between 0.1-100.0"
_COMMANDS = ("connect", "publish", "subscribe", "unsubscribe", "disconnect", "will")

OPTIONS: Table = (
    (
        "what to receive",
        (
            value("-t --topic", append_to("topics"), "FILTER to subscribe to; repeatable"),
            value("--since", text_of("since"), "FROM where to begin in what is kept: 1h, all, TIME or after/N"),
            value("-T --filter-out", append_to("filters_out"), "FILTER of topics not to print; repeatable"),
            value("-U --unsubscribe", append_to("unsubscribes"), "FILTER to unsubscribe from; repeatable"),
            value("-C", number_of("count", 1, _INT_MOST, _COUNT_ERROR), "COUNT of messages to end after"),
            switch("-E", "exit_when_subscribed", "end when the broker has acknowledged the subscriptions"),
            switch("--retained-only", "retained_only", "print retained messages only, end at the first other"),
            switch("--remove-retained", "remove_retained", "delete on the broker each retained message that comes"),
            switch("--retain-as-published", "retain_as_published",
                   "%r and -R see the publisher's flag, on live messages too (MQTT 5.0)"),
            value("--random-filter", fraction_of("random_percent", 0.1, 1000, _CHANCE_ERROR),
                  "PERCENT of messages to print, chosen by chance"),
        ),
    ),
    (
        "how to print it",
        (*PRINTING, switch("--rate", "show_rate", "each second how many messages came, instead of messages")),
    ),
    *COMMON,
)  # fmt: skip


def run(argv: list[str]) -> int:
    """Runs `midge sub ARGV`. 0: ended by -C, -E, a signal; 27: by -W; if refused, the broker's code."""
    try:
        options = parse(argv, OPTIONS, _COMMANDS, settings_of="sub")
        if options.help or options.version:
            return _print_about(options)
        if options.since is not None:
            options.topics = [f"$replay/{options.since}/{topic}" for topic in options.topics]
        _check(options)
        # paho is imported only now: a wrong command line is told at once.
        from midge.cli.connection import Connection, run_until_signal

        subscriber = Subscriber(Connection(options))
    except UsageError as error:
        print(f"Error: {error}\n\nUse 'midge sub --help' to see usage.", file=sys.stderr)
        return 1
    return run_until_signal(subscriber.connection, subscriber.run)


def _print_about(options: Options) -> int:
    from midge import __version__

    if options.help:
        print(help_text("sub", "subscribe and print what arrives", "{-t FILTER | URL} [OPTION ...]", OPTIONS, EXAMPLES))
    else:
        print(f"midge sub {__version__}")
    return 1  # sic: mosquitto_sub's


def _check(options: Options) -> None:
    if options.url_topic:
        options.topics.append(options.url_topic)
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
        from midge.cli.packet_properties import make_properties

        options = connection.options
        self.connection = connection
        self.options = options
        self.printed = 0
        self.removals = 0  # --remove-retained: published, not acknowledged; `_on_publish` counts down
        self.done = False  # set when no further message is wanted; never cleared
        self.subscribe_properties = make_properties(options, "subscribe")
        self.unsubscribe_properties = make_properties(options, "unsubscribe")
        self.printer = Printer(options)
        self.rate = RateLine() if options.show_rate else None
        connection.on_ready = self._subscribe
        connection.client.on_subscribe = self._on_subscribe
        connection.client.on_message = self._on_message
        connection.client.on_publish = self._on_removed

    def run(self) -> int:
        connection = self.connection
        connection.open()
        end = time.monotonic() + self.options.timeout_s if self.options.timeout_s else float("inf")
        while not self.done or self.removals:
            left_s = end - time.monotonic()
            if left_s <= 0:
                connection.finish()
                connection.complain("Timed out")
                return EXIT_TIMED_OUT
            connection.step(min(left_s, _WAIT_S))
            if self.rate is not None:
                self.rate.tell()
            if connection.closed and (not self.done or self.removals):
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
            choice = SubscribeOptions(
                qos=options.qos,
                retainAsPublished=options.retain_as_published,
                # -R: what isn't to be printed isn't asked for; as mosquitto_sub does it.
                retainHandling=2 if options.skip_retained and not options.remove_retained else 0,
            )
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
        if self._is_of_interest(message):
            if message.retain and options.remove_retained:
                client.publish(message.topic, b"", 1, retain=True)
                self.removals += 1
            if not (message.retain and options.skip_retained):
                self._take(message)
        client.ack(message.mid, message.qos)

    def _on_removed(
        self,
        _client: "Client",
        _userdata: object,
        _mid: int,
        reason: "ReasonCode",
        _properties: "Properties | None",
    ) -> None:
        self.removals -= 1
        if reason.is_failure:
            self.connection.complain(f"Warning: a retained message stays: {reason}.")

    def _is_of_interest(self, message: "MQTTMessage") -> bool:
        from paho.mqtt.client import topic_matches_sub

        return not any(topic_matches_sub(each, message.topic) for each in self.options.filters_out)

    def _take(self, message: "MQTTMessage") -> None:
        options = self.options
        if self.rate is not None:
            self.rate.add(message)
        elif options.random_percent >= 100 or random.random() * 100 < options.random_percent:
            self.printer.print(message)
        self.printed += 1
        self.done = self.printed == options.count


class RateLine:
    """`--rate`: one line a second, of what came in it."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._clear()

    def _clear(self) -> None:
        self._messages = self._bytes = 0
        self._topics: set[str] = set()

    def add(self, message: "MQTTMessage") -> None:
        self._messages += 1
        self._bytes += len(message.payload)
        self._topics.add(message.topic)

    def tell(self) -> None:
        """Call it often; it prints when a second has passed."""
        passed_s = time.monotonic() - self._since
        if passed_s < 1:
            return
        topics = len(self._topics)
        rates = f"{self._messages / passed_s:.1f} messages/s, {self._bytes / passed_s:.0f} bytes/s"
        print(f"{rates}, {topics} topic{'' if topics == 1 else 's'}", flush=True)
        self._since = time.monotonic()
        self._clear()
