"""Which topic there is which topic here.
Knows the `topics` of one bridge, nothing of connections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from midge.config import BridgeTopic
from midge.protocol.topics import matches
from midge.protocol.wire import encode_string

# Topic names whose mapping is remembered, each direction; more topics only cost time.
_MAPPED_MAX = 10_000


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
        # "sensors/#" matches "sensors" too, which has no name there once "sensors/" is taken away.
        return self.to_prefix + topic[len(self.from_prefix) :] or None


class Name(NamedTuple):
    """A topic name on the other side."""

    topic: str
    field: bytes  # as PUBLISH has it, with its length before it
    is_same: bool  # as on this side


class Rules:
    """The rules of one direction. The first that matches maps a message, as in Mosquitto."""

    def __init__(self, rules: list[_Rule]) -> None:
        self._rules = rules
        self._mapped: dict[str, str | None] = {}
        self._names: dict[bytes, Name | None] = {}

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
        try:
            return self._mapped[topic]
        except KeyError:
            pass
        mapped = next((found for rule in self._rules if (found := rule.map(topic)) is not None), None)
        if len(self._mapped) >= _MAPPED_MAX:
            self._mapped.clear()
        self._mapped[topic] = mapped
        return mapped

    def name(self, encoded: bytes) -> Name | None:
        """As `map`, of a topic name as it is in a packet."""
        try:
            return self._names[encoded]
        except KeyError:
            pass
        topic = encoded.decode()
        mapped = self.map(topic)
        name = None if mapped is None else Name(mapped, encode_string(mapped), mapped == topic)
        if len(self._names) >= _MAPPED_MAX:
            self._names.clear()
        self._names[encoded] = name
        return name

    def covers(self, topic: str) -> bool:
        """Whether *topic*, of the side that messages come from, is subscribed to there."""
        return self.map(topic) is not None

    def subscriptions(self) -> dict[str, int]:
        """Topic filters to subscribe to on the side that messages come from, with their QoS."""
        wanted: dict[str, int] = {}
        for rule in self._rules:
            topic_filter = rule.from_prefix + rule.topic_filter
            wanted[topic_filter] = max(rule.qos, wanted.get(topic_filter, 0))
        return wanted

    @property
    def growth(self) -> int:
        """bytes by which a topic name can be longer on the other side."""
        return max(
            (len(rule.to_prefix.encode()) - len(rule.from_prefix.encode()) for rule in self._rules), default=0
        )

    @property
    def has_qos2(self) -> bool:
        return any(rule.qos == 2 for rule in self._rules)
