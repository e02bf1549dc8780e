"""The retained message of each topic name, found by topic filter: in memory, and on disk only beyond a budget.
Knows neither sessions nor tables; the store reads back what isn't in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from midge.core.changes import Reader
from midge.core.message import Message

# bytes of memory that one retained message takes beside its topic name and payload: the message, its node
# and their dictionaries (measured with a million topics of four levels, CPython 3.11).
_MESSAGE_BYTES = 900
# Messages that are let go of at a time, beside twice as many as have come since the last time: so it keeps up, and
# the loop doesn't stall (3 us each).
_EVICTED_MIN = 500


class _Node:
    __slots__ = ("children", "message")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.message: Message | None = None


class Retained:
    """A trie of topic names, so that a filter costs its matches and not a walk over all topics.

    Once it has outgrown *limit* (bytes), the trie holds only what isn't settled in the store yet and what came
    last, and the rest is asked of *reader*.
    """

    def __init__(self, limit: int = 0, reader: Reader | None = None) -> None:
        self._root = _Node()
        self._limit = limit
        self._reader = reader  # None: there is no store, so everything is here
        self.count = 0  # messages
        self.bytes = 0  # of topic names and payloads
        self.memory_bytes = 0  # that the trie takes
        self._came = 0  # messages set since `relieve`
        self.is_complete = True  # everything is in the trie
        # Kept only with a reader: topic names by the batch that set their message, of all in the trie that
        # the store has or will have, the oldest first; and of those that were removed, until that is settled.
        self._changed: dict[str, int] = {}
        self._removed: dict[str, int] = {}

    def restore(self, count: int, size: int) -> None:
        """At the start: what the store holds. It is read into memory if it fits."""
        self.count, self.bytes = count, size
        reader = self._reader
        if reader is None or size + count * _MESSAGE_BYTES > self._limit:
            self.is_complete = not count
            return
        after: bytes | None = None
        while True:
            rows, after = reader.retained("#", after)
            for row in rows:
                self._add(Message.restored(row))
                self._changed[row[1]] = -1
            if after is None:
                break
        if len(self._changed) < count:  # "#" leaves out names that start with $
            self.is_complete = False

    def find(self, topic: str) -> Message | None:
        """The message of *topic*."""
        node = self._node(topic)
        if node is not None and node.message is not None:
            return node.message
        if self.is_complete or self._reader is None or topic in self._removed:
            return None
        row = self._reader.retained_message(topic)
        return None if row is None else Message.restored(row)

    def set(self, message: Message, batch: int = 0) -> Message | None:
        """Keep *message* for its topic name; the message that it replaces. *batch* is the one that it goes
        into the store with, 0: none."""
        replaced = self.find(message.topic)
        if replaced is None:
            self.count += 1
        else:
            self.bytes -= replaced.size()
        self.bytes += message.size()
        self._add(message)
        if batch and self._reader is not None:
            self._came += 1
            self._removed.pop(message.topic, None)
            self._changed.pop(message.topic, None)
            self._changed[message.topic] = batch
        return replaced

    def remove(self, topic: str, batch: int = 0) -> Message | None:
        """Forget the message of *topic* [MQTT-3.3.1-6]; the message that was there."""
        removed = self.find(topic)
        if removed is None:
            return None
        self._drop(topic)
        if batch and self._reader is not None:
            self._changed.pop(topic, None)
            self._removed.pop(topic, None)
            self._removed[topic] = batch
        self.count -= 1
        self.bytes -= removed.size()
        return removed

    def matching(self, topic_filter: str) -> Iterator[list[Message]]:
        """The messages whose topic names match *topic_filter* (a valid one), in portions of some hundreds.

        What is changed while portions are still to come is left out of them: whoever subscribed before the
        change was sent it when it happened."""
        is_complete = self.is_complete
        found = self._in_memory(topic_filter)
        for at in range(0, len(found), 500):
            yield [message for message in found[at : at + 500] if at == 0 or self._is_current(message)]
        if is_complete or self._reader is None:
            return
        done = {message.topic for message in found}
        after: bytes | None = None
        while True:
            rows, after = self._reader.retained(topic_filter, after)
            yield [
                Message.restored(row)
                for row in rows
                if not (row[1] in done or row[1] in self._changed or row[1] in self._removed)
            ]
            if after is None:
                return

    def _is_current(self, message: Message) -> bool:
        node = self._node(message.topic)
        if node is not None and node.message is not None:
            return node.message is message
        current = self.find(message.topic)
        return current is not None and current.payload == message.payload

    # -- memory and disk --

    def relieve(self, settled: int) -> None:
        """If the trie has outgrown its budget: let go of what batches up to *settled* have brought into the
        store, the oldest first."""
        removed = self._removed
        for topic in list(islice(removed, _EVICTED_MIN)):
            if removed[topic] > settled:
                break
            del removed[topic]
        if self._reader is None or self.memory_bytes <= self._limit:
            return
        self.is_complete = False
        changed = self._changed
        count, self._came = 2 * self._came + _EVICTED_MIN, 0
        for topic in list(islice(changed, count)):
            if changed[topic] > settled or self.memory_bytes <= self._limit:
                return
            del changed[topic]
            self._drop(topic)

    # -- the trie --

    def _node(self, topic: str) -> _Node | None:
        node: _Node | None = self._root
        for level in topic.split("/"):
            if node is None:
                return None
            node = node.children.get(level)
        return node

    def _add(self, message: Message) -> None:
        node = self._root
        for level in message.topic.split("/"):
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = _Node()
            node = child
        if node.message is not None:
            self.memory_bytes -= node.message.size() + _MESSAGE_BYTES
        node.message = message
        self.memory_bytes += message.size() + _MESSAGE_BYTES

    def _drop(self, topic: str) -> None:
        """Take it out of the trie, with the nodes that nothing else needs."""
        node = self._root
        path: list[tuple[_Node, str]] = []
        for level in topic.split("/"):
            child = node.children.get(level)
            if child is None:
                return
            path.append((node, level))
            node = child
        dropped, node.message = node.message, None
        if dropped is None:
            return
        for parent, level in reversed(path):
            child = parent.children[level]
            if child.children or child.message is not None:
                break
            del parent.children[level]
        self.memory_bytes -= dropped.size() + _MESSAGE_BYTES

    def _in_memory(self, topic_filter: str) -> list[Message]:
        levels = topic_filter.split("/")
        nodes = [self._root]
        for depth, level in enumerate(levels):
            if level == "#":
                return [message for node in nodes for message in _below(node, hide_dollar=depth == 0)]
            if level == "+":
                nodes = [
                    child
                    for node in nodes
                    for name, child in node.children.items()
                    if depth or not name.startswith("$")  # [MQTT-4.7.2-1]
                ]
            else:
                nodes = [child for node in nodes if (child := node.children.get(level)) is not None]
        return [node.message for node in nodes if node.message is not None]


def _below(node: _Node, hide_dollar: bool) -> Iterator[Message]:
    """The messages of *node* and all below it."""
    stack = [node]
    while stack:
        at = stack.pop()
        if at.message is not None:
            yield at.message
        for name, child in at.children.items():
            if not (hide_dollar and at is node and name.startswith("$")):
                stack.append(child)
