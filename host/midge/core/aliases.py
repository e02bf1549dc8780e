"""Topic aliases of one connection, each direction by itself (MQTT 5.0 §3.3.2.3.4).
Knows no bytes; made anew for each connection, since neither side carries aliases over [MQTT-3.3.2-7].
"""

from __future__ import annotations

from midge.protocol.errors import ProtocolError
from midge.protocol.packets import Publish
from midge.protocol.reasons import ReasonCode

# bytes that an alias costs in a PUBLISH without topic name: the property's identifier and its two bytes.
_COST = 3


class ReceivedAliases:
    """What the client has defined for what it sends; *maximum* is what CONNACK allowed."""

    __slots__ = ("_maximum", "_topics")

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._topics: dict[int, str] = {}

    def resolve(self, packet: Publish) -> str:
        """The topic name, by way of a topic alias where there is one."""
        if packet.properties is None:
            return packet.topic
        alias = packet.properties.get("topic_alias")
        if alias is None:
            return packet.topic
        if alias > self._maximum:
            raise ProtocolError(
                ReasonCode.TOPIC_ALIAS_INVALID, f"topic alias {alias} is above the maximum [MQTT-3.3.2-9]"
            )
        if packet.topic:
            self._topics[alias] = packet.topic
            return packet.topic
        topic = self._topics.get(alias)
        if topic is None:
            raise ProtocolError(ReasonCode.PROTOCOL_ERROR, f"topic alias {alias} was never set")
        return topic


class SentAliases:
    """What we defined for what the client is sent: the first topics get one, later ones go without."""

    __slots__ = ("_aliases", "_maximum")

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum  # never above what CONNECT allows [MQTT-3.1.2-26]
        self._aliases: dict[str, int] = {}

    def find(self, topic: str) -> tuple[int, bool]:
        """(alias, whether the client knows it already); (0, False): *topic* goes without."""
        alias = self._aliases.get(topic, 0)
        if alias:
            return alias, True
        if len(self._aliases) < self._maximum and len(topic) > _COST:
            return len(self._aliases) + 1, False
        return 0, False

    def sent(self, topic: str, alias: int) -> None:
        """The PUBLISH that tells the client of *alias* is on its way."""
        self._aliases[topic] = alias
