"""Which messages are kept as retained ones, within the limits: in the store, or for as long as the broker runs.
Knows neither routes nor subscribers; how they are found by topic filter is `retained`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from midge.core.durable_queue import PREFIX
from midge.core.message import Message
from midge.core.retained import Retained

if TYPE_CHECKING:
    from midge.core.broker import Broker

# Topic names under $SYS are the broker's own to publish (MQTT 5.0 §4.7.2: clients SHOULD NOT).
OWN_TOPICS = "$SYS/"


class Retaining:
    """The retained messages of one broker; those that last are `Broker.retained`."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._own = Retained()  # below OWN_TOPICS: never stored, and gone with the broker

    def has_room(self, message: Message) -> bool:
        """Whether the limits allow *message* to be kept as its topic's retained message."""
        broker = self._broker
        retained, limits = broker.retained, broker.limits
        size = message.size()
        if broker.pressure.is_store_failing and broker.changes is not None and broker.changes.is_large:
            return False
        if retained.count < limits.max_retained_messages and retained.bytes + size <= limits.max_retained_bytes:
            return True
        if not message.payload:
            return True  # it removes one
        replaced = retained.find(message.topic)
        if replaced is None and retained.count >= limits.max_retained_messages:
            broker.counters.meet("max_retained_messages")
            return False
        grows_by = size if replaced is None else size - replaced.size()
        if grows_by > 0 and retained.bytes + grows_by > limits.max_retained_bytes:
            broker.counters.meet("max_retained_bytes")
            return False
        return True

    def keep(self, message: Message) -> None:
        """In place of its topic's retained message; without a payload: none from now on [MQTT-3.3.1-6]."""
        if message.topic.startswith(PREFIX):
            return  # the queue keeps it, until one consumer has it
        if message.topic.startswith(OWN_TOPICS):
            if message.payload:
                self._own.set(message)
            else:
                self._own.remove(message.topic)
            return
        if not message.payload:
            self.forget(message.topic)
            return
        changes = self._broker.changes
        self._broker.retained.set(message, 0 if changes is None else changes.number)
        if changes is not None:
            changes.retained(message)

    def below(self, topic_filter: str) -> Iterator[list[Message]]:
        """The retained messages that match, in portions; the broker's own only if they are asked for by name."""
        retained = self._own if topic_filter.startswith(OWN_TOPICS) else self._broker.retained
        return retained.matching(topic_filter)

    def forget(self, topic: str) -> None:
        changes = self._broker.changes
        removed = self._broker.retained.remove(topic, 0 if changes is None else changes.number)
        if removed is not None and changes is not None:
            changes.retained_removed(topic)
