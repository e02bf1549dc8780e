"""The keys of `[[queue]]`.
Knows what a durable queue is told, not how it does it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from midge.config.section import Section, checked, key
from midge.core.durable_queue import PREFIX, QueueSettings
from midge.protocol.topics import check_topic_filter, check_topic_name

_DEFAULTS = QueueSettings("")


class Queue(Section):
    """A durable queue, $queue/NAME: each message goes to one consumer, and waits on disk until there is one."""

    name: str = key(..., "Its name: clients publish and subscribe to $queue/NAME.", example="encode")
    filters: list[str] = key([], "Ordinary topics that feed it too.", example=["jobs/encode/#"])
    filter: str = key("", "The same, if it is only one.", example="jobs/encode/#")
    max_messages: int = key(
        _DEFAULTS.max_messages, "Messages that wait in it, or that a consumer has.", unit="messages", ge=1
    )
    max_bytes: int = key(_DEFAULTS.max_bytes, "Their topics and payloads.", unit="bytes", ge=1)
    max_age: int = key(
        _DEFAULTS.max_age, "How long a message waits; then it is given up. 0: for ever.", unit="s", ge=0
    )
    full: Literal["push-back", "wait", "reject", "drop-oldest"] = key(
        _DEFAULTS.full,
        'Messages of QoS 1 and 2 that there is no room for. "push-back": refused for a client of 5.0 (reason 0x97), of '
        'a client of 3.1.1 acknowledged once there is room. "wait": acknowledged once there is room. "reject": refused '
        '(3.1.1: the connection is closed). "drop-oldest": the oldest gives way.',
    )
    dead_letter: str | None = key(
        _DEFAULTS.dead_letter,
        "The topic for messages that are given up; not set: the queue NAME.dead for those that were delivered "
        'max_deliveries times, nowhere for those that are too old or gave way; "": nowhere.',
        example="jobs/failed",
    )
    max_deliveries: int = key(
        _DEFAULTS.max_deliveries,
        "How often a message is delivered, if consumers refuse it or die with it; 0: no limit.",
        ge=0,
        le=65_535,
    )
    prefetch: int = key(
        _DEFAULTS.prefetch,
        "Messages that one consumer is sent and has not acknowledged, if it names no Receive Maximum (5.0).",
        unit="messages",
        ge=1,
        le=65_535,
    )

    ack_timeout: int = key(
        _DEFAULTS.ack_timeout,
        "How long a consumer may take to acknowledge; then it is disconnected, and another gets what it has. 0: for "
        "ever, while it is connected.",
        unit="s",
        ge=0,
    )

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        checked(check_topic_name, value)
        return value

    @field_validator("filters")
    @classmethod
    def _are_filters(cls, value: list[str]) -> list[str]:
        for each in value:
            _check_filter(each)
        return value

    @field_validator("filter")
    @classmethod
    def _is_a_filter(cls, value: str) -> str:
        if value:
            _check_filter(value)
        return value

    @field_validator("dead_letter")
    @classmethod
    def _is_a_topic(cls, value: str | None) -> str | None:
        if value:
            checked(check_topic_name, value)
        return value

    def settings(self) -> QueueSettings:
        """As the core wants them."""
        values = self.model_dump(exclude={"filter", "filters"})
        filters = dict.fromkeys([*self.filters, *([self.filter] if self.filter else [])])
        return QueueSettings(filters=tuple(filters), **values)


def _check_filter(value: str) -> None:
    checked(check_topic_filter, value)
    if value.startswith(("$share/", PREFIX)):
        raise ValueError("ordinary topics feed a queue, not another queue or a shared subscription")
