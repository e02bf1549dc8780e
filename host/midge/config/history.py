"""The keys of `[[history]]`.
Knows what is to be kept and how long, not how.
"""

from __future__ import annotations

from pydantic import field_validator

from midge.config.section import Section, checked, key
from midge.core.history import HistoryRule
from midge.core.replay_from import AGES, parse_age
from midge.protocol.topics import check_topic_filter


class History(Section):
    """Messages that are kept for replay: who subscribes to $replay/FROM/FILTER is sent them. The first whose filter
    matches keeps a message. See replay.md."""

    filter: str = key(..., "Which topics.", example="sensors/#", allowed="a topic filter that doesn't begin with $")
    age: str = key("30d", "How long at least.", allowed=AGES)
    max_messages: int = key(
        10_000_000, "So many at most; then the oldest go, some of them together.", unit="messages", ge=1
    )
    max_bytes: int = key(1_000_000_000, "Their topics and payloads, the same.", unit="bytes", ge=1)

    @field_validator("filter")
    @classmethod
    def _is_a_filter(cls, value: str) -> str:
        checked(check_topic_filter, value)
        if value[0] == "$":
            raise ValueError(f"{value!r} begins with $: such topics are a broker's own")
        return value

    @field_validator("age")
    @classmethod
    def _is_an_age(cls, value: str) -> str:
        if not parse_age(value):
            raise ValueError(f"{value!r} is no age: {AGES}")
        return value

    def rule(self) -> HistoryRule:
        """For the core."""
        return HistoryRule(self.filter, parse_age(self.age) or 0.0, self.max_messages, self.max_bytes)
