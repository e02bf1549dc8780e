"""Messages as paho delivers them, printed as the options say: what `midge sub` and `midge rr` have in common.
Knows nothing of connections.
"""

import sys
import time
from typing import TYPE_CHECKING, Any

from midge.cli.message_format import (
    FormatError,
    Message,
    Part,
    as_json,
    compile_format,
    payload_only,
    topic_and_payload,
)
from midge.cli.options import Options

if TYPE_CHECKING:
    from paho.mqtt.client import MQTTMessage


class Printer:
    """Raises `UsageError` when the format can't be read."""

    def __init__(self, options: Options) -> None:
        self._end = b"\n" if options.end_of_line else b""
        self._format = _choose(options)

    def print(self, message: "MQTTMessage") -> None:
        try:
            line = self._format(to_message(message))
        except FormatError as error:
            print(f"Error: {error}", file=sys.stderr)
            line = error.line
        sys.stdout.buffer.write(line + self._end)
        sys.stdout.buffer.flush()


def _choose(options: Options) -> Part:
    if options.json:
        return lambda message: as_json(message, options.pretty)
    if options.format is not None:
        return compile_format(options.format, options.pretty)
    return topic_and_payload if options.verbose else payload_only


def to_message(message: "MQTTMessage") -> Message:
    """With the properties by mosquitto's names, in the order in which they came."""
    from midge.cli.packet_properties import OF_PUBLISH

    by_attribute = {attribute: name for name, attribute in OF_PUBLISH.items()}
    given: dict[str, Any] = vars(message.properties) if message.properties is not None else {}
    properties = {by_attribute[each]: value for each, value in given.items() if each in by_attribute}
    return Message(
        message.topic,
        bytes(message.payload),
        message.qos,
        message.retain,
        message.mid,
        properties,
        time.time_ns(),
    )
