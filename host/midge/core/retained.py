"""The retained message of each topic name, found by topic filter.
Knows neither sessions nor the store.
"""

from __future__ import annotations

from collections.abc import Iterator

from midge.core.message import Message


class _Node:
    __slots__ = ("children", "message")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.message: Message | None = None


class Retained:
    """A trie of topic names, so that a filter costs its matches and not a walk over all topics."""

    def __init__(self) -> None:
        self._root = _Node()
        self.count = 0  # messages
        self.bytes = 0  # of topic names and payloads

    def set(self, message: Message) -> Message | None:
        """Keep *message* for its topic name; the message that it replaces."""
        node = self._root
        for level in message.topic.split("/"):
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = _Node()
            node = child
        replaced = node.message
        if replaced is None:
            self.count += 1
        else:
            self.bytes -= replaced.size()
        node.message = message
        self.bytes += message.size()
        return replaced

    def find(self, topic: str) -> Message | None:
        """The message of *topic*."""
        node: _Node | None = self._root
        for level in topic.split("/"):
            if node is None:
                return None
            node = node.children.get(level)
        return None if node is None else node.message

    def remove(self, topic: str) -> Message | None:
        """Forget the message of *topic* [MQTT-3.3.1-6]; the message that was there."""
        node = self._root
        path: list[tuple[_Node, str]] = []
        for level in topic.split("/"):
            child = node.children.get(level)
            if child is None:
                return None
            path.append((node, level))
            node = child
        removed, node.message = node.message, None
        if removed is None:
            return None
        for parent, level in reversed(path):
            child = parent.children[level]
            if child.children or child.message is not None:
                break
            del parent.children[level]
        self.count -= 1
        self.bytes -= removed.size()
        return removed

    def matching(self, topic_filter: str) -> list[Message]:
        """The messages whose topic names match *topic_filter* (a valid one)."""
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
