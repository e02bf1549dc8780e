"""Which topic there is which topic here.
Knows the `topics` of one bridge, nothing of connections.
"""

from __future__ import annotations

from dataclasses import dataclass

from midge.config import BridgeTopic
from midge.protocol.topics import matches


@dataclass(frozen=True, slots=True)
class _Rule:
    """`from_prefix` + filter on the side that a message comes from; `to_prefix` where it goes."""

    topic_filter: str
    from_prefix: str
    to_prefix: str
    qos: int

    def map(self, topic: str) -> str | None:
        if not matches(self.from_prefix + self.topic_filter, topic):
            return None
        return self.to_prefix + topic[len(self.from_prefix) :]


class Rules:
    """The rules of one direction. The first that matches maps a message, as in Mosquitto."""

    def __init__(self, rules: list[_Rule]) -> None:
        self._rules = rules

    @classmethod
    def inward(cls, topics: list[BridgeTopic]) -> Rules:
        """From the remote broker to here."""
        return cls(
            [_Rule(t.filter, t.remote_prefix, t.local_prefix, t.qos) for t in topics if t.direction != "out"]
        )

    @classmethod
    def outward(cls, topics: list[BridgeTopic]) -> Rules:
        """From here to the remote broker."""
        return cls(
            [_Rule(t.filter, t.local_prefix, t.remote_prefix, t.qos) for t in topics if t.direction != "in"]
        )

    def map(self, topic: str) -> str | None:
        """The topic name on the other side; None if no rule takes it there."""
        for rule in self._rules:
            mapped = rule.map(topic)
            if mapped is not None:
                return mapped
        return None

    def subscriptions(self) -> dict[str, int]:
        """Topic filters to subscribe to on the side that messages come from, with their QoS."""
        wanted: dict[str, int] = {}
        for rule in self._rules:
            topic_filter = rule.from_prefix + rule.topic_filter
            wanted[topic_filter] = max(rule.qos, wanted.get(topic_filter, 0))
        return wanted

    @property
    def has_qos2(self) -> bool:
        return any(rule.qos == 2 for rule in self._rules)
