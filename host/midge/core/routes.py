"""The routes that were worked out, by topic name, and which of them a change of a topic filter touches.
Knows neither what a route says nor who subscribes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from midge.core.routing import Route

# Topic names whose route is remembered. Most share the route of their only subscription, which leaves about 150
# bytes each; a publisher that invents a new topic name for each message must not fill the memory all the same.
_ROUTES_MAX = 100_000

# Levels of remembered topic names that are looked at for one filter with a wildcard. Past it, forgetting all of
# them and working those out again that are asked for is cheaper than the search; it also bounds a turn.
_LOOKED_AT_MAX = 500


class _Level:
    """A level of topic names: what follows it, and the topic name that ends here ("": none)."""

    __slots__ = ("following", "topic")

    def __init__(self) -> None:
        self.following: dict[str, _Level] = {}
        self.topic = ""


class Routes:
    """A dictionary, with the topic names in a tree beside it: a fleet that subscribes while others publish costs each
    subscription the routes that it changes, not all of them."""

    def __init__(self) -> None:
        self.by_topic: dict[str, Route] = {}  # to be read only: that is what each message does
        self._root = _Level()
        self._added: list[str] = []  # topic names that aren't in the tree yet: it is there for `forget` alone
        self._count = 0  # topic names since `clear`, those that were forgotten too: their levels are still there

    def add(self, topic: str, route: Route) -> None:
        if self._count >= _ROUTES_MAX:
            self.clear()
        self._count += 1
        self.by_topic[topic] = route
        self._added.append(topic)

    def clear(self) -> None:
        self.by_topic.clear()
        self._root = _Level()
        self._added.clear()
        self._count = 0

    def _grow(self) -> None:
        for topic in self._added:
            level = self._root
            for name in topic.split("/"):
                following = level.following.get(name)
                if following is None:
                    following = level.following[name] = _Level()
                level = following
            level.topic = topic
        self._added.clear()

    def forget(self, topic_filter: str) -> None:
        """The routes of the topic names that match *topic_filter* (without $share) are no longer true."""
        if "+" not in topic_filter and "#" not in topic_filter:
            self.by_topic.pop(topic_filter, None)  # its levels stay: it will be asked for again, or cleared away
            return
        if not self.by_topic:
            return
        if len(self._added) > _LOOKED_AT_MAX:
            self.clear()
            return
        self._grow()
        left = _LOOKED_AT_MAX
        levels = [self._root]
        for name in topic_filter.split("/"):
            if name == "#":
                self._forget_below(levels, left)
                return
            if name != "+":
                levels = [level.following[name] for level in levels if name in level.following]
                continue
            left -= sum(len(level.following) for level in levels)
            if left < 0:
                self.clear()
                return
            levels = [following for level in levels for following in level.following.values()]
        for level in levels:
            self.by_topic.pop(level.topic, None)

    def _forget_below(self, levels: list[_Level], left: int) -> None:
        """All that begins with *levels*, these included: "sport/#" also matches "sport" (MQTT 5.0 §4.7.1.2)."""
        while levels:
            left -= len(levels)
            if left < 0:
                self.clear()
                return
            for level in levels:
                self.by_topic.pop(level.topic, None)
            levels = [following for level in levels for following in level.following.values()]
