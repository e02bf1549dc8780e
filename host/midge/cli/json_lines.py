"""`midge pub --json`: a line of JSON to the message it describes, as `midge sub --json` prints them.
Knows nothing of connections.
"""

import base64
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from midge.cli.connection import Failure
from midge.cli.options import Options, UsageError, is_topic_name
from midge.cli.packet_properties import OF_PUBLISH, new_properties, properties_of

if TYPE_CHECKING:
    from paho.mqtt.properties import Properties


class Draft(NamedTuple):
    """A message to publish."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: "Properties | None"


# The broker's to set, not a publisher's, and what only says when a message came [MQTT-3.3.4-6].
_NOT_SENT = ("subscription-identifier", "topic-alias")


class Drafts:
    """Reads lines; what a line leaves open, the command line says."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._lines = 0

    def read(self, line: bytes) -> Draft:
        """`Failure` names the line that can't be used."""
        self._lines += 1
        try:
            return self._read(json.loads(line))
        except (ValueError, TypeError, UsageError) as error:
            raise Failure(1, f"Error: line {self._lines} of stdin: {error}") from None

    def _read(self, given: Any) -> Draft:
        if not isinstance(given, dict):
            raise TypeError('not a JSON object: {"topic": ..., "payload": ...}')
        options = self._options
        topic = given.get("topic", options.topics[0] if options.topics else None)
        if not isinstance(topic, str) or not is_topic_name(topic):
            raise ValueError(f"no topic to publish to: {json.dumps(topic)}")
        qos, retain = given.get("qos", options.qos), given.get("retain", options.retain)
        if qos not in (0, 1, 2):
            raise ValueError(f"qos {json.dumps(qos)} isn't 0, 1 or 2")
        properties = self._properties(given) if options.protocol_level == 5 else None
        return Draft(topic, _payload(given), int(qos), bool(retain), properties)

    def _properties(self, given: dict[str, Any]) -> "Properties | None":
        chosen: list[tuple[str, tuple[str, ...]]] = []
        for name in OF_PUBLISH:
            if name == "user-properties":
                chosen += [("user-property", (str(key), str(text))) for key, text in given.get(name, [])]
            elif name in given and name not in _NOT_SENT:
                chosen.append((name, (str(given[name]),)))
        properties = properties_of("publish", chosen)
        if "correlation-data_base64" in given:
            properties = properties or new_properties("publish")
            properties.CorrelationData = base64.b64decode(given["correlation-data_base64"])
        return properties


def _payload(given: dict[str, Any]) -> bytes:
    """Text as it stands; anything else as JSON; or bytes in base64."""
    if "payload_base64" in given:
        return base64.b64decode(given["payload_base64"], validate=True)
    payload = given.get("payload", "")
    return payload.encode() if isinstance(payload, str) else json.dumps(payload).encode()
