"""`midge serve`: answers requests on a topic with what a command prints.
Knows subscriptions, answers and acknowledgements; `serve_command` runs the command.
"""

import signal
import sys
from collections import deque
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

from midge.cli.options import (
    QUEUE_PREFIX,
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
from midge.cli.rr import ERROR_PROPERTY
from midge.cli.shared_options import COMMON, check

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

    from midge.cli.connection import Connection
    from midge.cli.serve_command import Answer

EXAMPLES = """\
examples:
  midge serve -t time -- date +%s                         midge rr -t time -n
  midge serve -t upper -- tr a-z A-Z                      the request's payload is the command's input
  midge serve -t 'say/+' -- sh -c 'echo "$MIDGE_TOPIC"'   one command for many topics
  midge serve -t render --group farm -j 2 -- ./render.sh  start it on several machines: they share the requests

The command finds MIDGE_TOPIC, MIDGE_CONTENT_TYPE and MIDGE_USER_PROPERTIES (JSON) in its environment. What it prints
is the answer. If it ends with another code than 0, or not in time, the answer carries the user property "error", and
`midge rr` ends with code 1. docs/request-reply.md says what requesters of other programs see."""

_COMMANDS = ("connect", "subscribe", "publish", "disconnect", "will")
_WAIT_S = 1.0
_REQUEST, _RESPONSE = "request", "response"

OPTIONS: Table = (
    (
        "requests",
        (
            value("-t --topic", append_to("topics"), "FILTER of requests; repeatable"),
            value("--group", text_of("group"), "NAME responders of one name share the requests ($share)"),
            value("-j --jobs", number_of("jobs", 1, 1000, "Invalid number of jobs {}."),
                  "N at most N commands at a time (4)"),
            value("--waiting", number_of("waiting_max", 0, 1_000_000, "Invalid number of requests {}."),
                  'N further requests may wait; what comes then is answered with the error "busy" (1000)'),
            value("--timeout", fraction_of("command_timeout_s", 0.001, 1e6, "Invalid timeout {}."),
                  "SECONDS a command may take (30)"),
            value("--content-type", text_of("content_type"), "TYPE of the answers, such as application/json"),
            switch("-r --retain", "retain", "retain the answers"),
            value("--", lambda _options, _text: None, "COMMAND [ARGUMENT ...] answers"),
        ),
    ),
    *COMMON,
)  # fmt: skip


def run(argv: list[str]) -> int:
    """Runs `midge serve ARGV` until a signal: then it answers what it has begun, and ends with 0."""
    try:
        options = Options()
        options.protocol_level, options.qos = 5, 1
        parse(argv, OPTIONS, _COMMANDS, options)
        if options.help or options.version:
            return _print_about(options)
        _check(options)
        from midge.cli.connection import Connection, Failure

        responder = Responder(Connection(options))
    except UsageError as error:
        print(f"Error: {error}\n\nUse 'midge serve --help' to see usage.", file=sys.stderr)
        return 1

    def end(_number: int, _frame: FrameType | None) -> None:
        if responder.ending:
            raise KeyboardInterrupt  # the second time: at once
        responder.ending = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    try:
        responder.run()
    except Failure as failure:
        responder.connection.complain(str(failure))
        return failure.exit_code
    finally:
        responder.runner.close()
    return 0


def _print_about(options: Options) -> int:
    from midge import __version__

    if options.help:
        usage = "-t FILTER [OPTION ...] -- COMMAND [ARGUMENT ...]"
        print(help_text("serve", "answer requests with what a command prints", usage, OPTIONS, EXAMPLES))
    else:
        print(f"midge serve {__version__}")
    return 0


def _check(options: Options) -> None:
    if options.url_topic:
        options.topics.append(options.url_topic)
    if not options.topics:
        raise UsageError("You must specify a topic to answer on (-t).")
    for topic in options.topics:
        if not is_topic_filter(topic):
            raise UsageError(f"Invalid subscription topic '{topic}', are all '+' and '#' wildcards correct?")
    if not options.command:
        raise UsageError("You must specify a command behind --, such as: midge serve -t time -- date.")
    if options.group is not None and (not options.group or any(c in options.group for c in "/+#")):
        raise UsageError(f"Invalid group '{options.group}': one word without '/', '+' and '#'.")
    if options.group is not None and any(topic.startswith(QUEUE_PREFIX) for topic in options.topics):
        raise UsageError("--group: who answers on a $queue/ shares it with others without.")
    check(options)
    if options.group is not None and options.protocol_level < 4:
        raise UsageError("--group needs MQTT 3.1.1 or 5.0.")


class Address(NamedTuple):
    """What was asked, and where the answer goes."""

    asked: str
    topic: str
    error_topic: str
    correlation: bytes | None


def address_of(topic: str, response_topic: str | None, correlation: bytes | None) -> Address | None:
    """MQTT 5.0: what the request says. Else by convention: TOPIC/request/ID is answered at TOPIC/response/ID, and
    where that is no answer, at .../error below. None: this is no request, nobody waits."""
    if response_topic:
        return Address(topic, response_topic, response_topic, correlation)
    levels = topic.split("/")
    if len(levels) < 3 or levels[-2] != _REQUEST:
        return None
    asked = "/".join(levels[:-2])
    answer = f"{asked}/{_RESPONSE}/{levels[-1]}"
    return Address(asked, answer, f"{answer}/error", None)


class _Taken:
    """A request that came: its acknowledgement waits until its answer is out, and those before it are."""

    __slots__ = ("is_done", "mid", "qos")

    def __init__(self, mid: int, qos: int) -> None:
        self.mid = mid
        self.qos = qos
        self.is_done = False


class Responder:
    """Subscribes, hands requests to the runner, publishes what it answers.

    A request is acknowledged when its answer has left: if we die before, the broker gives it to another of the group,
    or to us again. Acknowledgements leave in the order in which the requests came [MQTT-4.6.0-2].
    """

    def __init__(self, connection: "Connection") -> None:
        from midge.cli.serve_command import Runner

        options = connection.options
        self.connection = connection
        self.options = options
        self.ending = False  # set by a signal, never cleared
        self.runner = Runner(options.command, options.jobs, options.command_timeout_s)
        self.served = 0
        self._taken: deque[_Taken] = deque()
        self._answers: dict[int, _Taken] = {}  # by packet identifier of the answer, until that is acknowledged
        self._limit_unacknowledged()
        connection.on_ready = self._subscribe
        connection.client.on_subscribe = self._on_subscribe
        connection.client.on_message = self._on_message
        connection.client.on_publish = self._on_publish

    def _limit_unacknowledged(self) -> None:
        """Tells the broker how many requests we take at a time, so that others of the group get the rest."""
        options = self.options
        given = [name for command, name, _ in options.properties if command == "connect"]
        if options.protocol_level == 5 and "receive-maximum" not in given:
            self.connection.receive_at_most(min(options.jobs, 65535))

    def run(self) -> None:
        connection = self.connection
        connection.open()
        while not self.ending or self._taken:
            if self.ending and self.runner.is_idle and not self._answers:
                break
            if connection.step(_WAIT_S, self.runner.fileno()):
                for request, answer in self.runner.finished():
                    self._publish(request, answer)
            if connection.closed:
                self._recover()
        connection.finish()

    def _recover(self) -> None:
        if not self.connection.was_connected:
            from midge.cli.connection import EXIT_CONNECTION_LOST, Failure

            raise Failure(EXIT_CONNECTION_LOST, "Error: The connection was lost.")
        self.connection.complain("Error: The connection was lost. Trying again.")
        # What wasn't acknowledged there is sent again, by its broker's next message with DUP.
        self._taken.clear()
        self.connection.reconnect()

    def _subscribe(self) -> None:
        prefix = f"$share/{self.options.group}/" if self.options.group else ""
        filters = []
        for topic in self.options.topics:
            filters.append(f"{prefix}{topic}")
            if not topic.endswith("#") and not topic.startswith(QUEUE_PREFIX):  # those have them already
                filters.append(f"{prefix}{topic}/{_REQUEST}/+")
        self.connection.client.subscribe([(each, self.options.qos) for each in filters])

    def _on_subscribe(
        self,
        _client: "Client",
        _userdata: object,
        _mid: int,
        reasons: "list[ReasonCode]",
        _properties: "Properties | None",
    ) -> None:
        from midge.cli.connection import EXIT_ERROR, Failure

        if any(reason.is_failure for reason in reasons):
            refused = next(reason for reason in reasons if reason.is_failure)
            self.connection.fail(Failure(EXIT_ERROR, f"Error: the broker refuses the subscription: {refused}."))
            return
        print(f"answering on {', '.join(self.options.topics)}", file=sys.stderr, flush=True)

    def _on_message(self, _client: "Client", _userdata: object, message: "MQTTMessage") -> None:
        from midge.cli.serve_command import Request

        properties = message.properties
        taken = _Taken(message.mid, message.qos)
        self._taken.append(taken)
        address = address_of(
            message.topic,
            getattr(properties, "ResponseTopic", None),
            getattr(properties, "CorrelationData", None),
        )
        if address is None or message.retain:
            self.connection.debug(f"no request: {message.topic}")
            self._finish(taken)
            return
        request = Request(
            address.asked,
            bytes(message.payload),
            getattr(properties, "ContentType", None),
            getattr(properties, "UserProperty", []),
            getattr(properties, "MessageExpiryInterval", None),
            (taken, address),
        )
        if self.runner.waiting >= self.options.waiting_max + self.options.jobs:
            self._publish(request, self.runner.busy())
        else:
            self.runner.submit(request)

    def _publish(self, request: object, answer: "Answer") -> None:
        taken: _Taken
        address: Address
        taken, address = request.context  # type: ignore[attr-defined]
        topic, payload = address.topic, answer.payload
        if answer.error is not None and address.error_topic != address.topic:
            topic = address.error_topic
            payload = b": ".join(part for part in (answer.error.encode(), answer.payload) if part)
        properties = self._properties_of(answer, address) if self.options.protocol_level == 5 else None
        qos = taken.qos
        info = self.connection.client.publish(topic, payload, qos, self.options.retain, properties)
        self.served += 1
        self.connection.debug(f"answered {request.topic}: {answer.error or 'well'}")  # type: ignore[attr-defined]
        if qos == 0:
            self._finish(taken)
        else:
            self._answers[info.mid] = taken

    def _properties_of(self, answer: "Answer", address: Address) -> "Properties":
        from midge.cli.packet_properties import make_properties, new_properties

        properties = make_properties(self.options, "publish") or new_properties("publish")
        if address.correlation is not None:
            properties.CorrelationData = address.correlation
        if self.options.content_type is not None:
            properties.ContentType = self.options.content_type
        if answer.error is not None:
            properties.UserProperty = (ERROR_PROPERTY, answer.error)
        return properties

    def _on_publish(
        self,
        _client: "Client",
        _userdata: object,
        mid: int,
        reason: "ReasonCode",
        _properties: "Properties | None",
    ) -> None:
        if reason.is_failure:
            self.connection.complain(f"Warning: the broker refuses an answer: {reason}.")
        taken = self._answers.pop(mid, None)
        if taken is not None:
            self._finish(taken)

    def _finish(self, taken: _Taken) -> None:
        taken.is_done = True
        while self._taken and self._taken[0].is_done:
            first = self._taken.popleft()
            self.connection.client.ack(first.mid, first.qos)
