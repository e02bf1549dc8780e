"""Who gets a message: a trie of topic filters behind a cache of topic names.
Knows sessions only as keys; what is done with a match is the broker's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from midge.core.session import Session

# Topic names whose route is remembered. A route is about 500 bytes; a publisher that invents a new
# topic name for each message must not fill the memory with routes that nobody asks for again.
_ROUTES_MAX = 50_000


class Subscription:
    """A session's subscription to one topic filter (MQTT 5.0 §3.8.3.1); `identifier` 0: none."""

    __slots__ = ("identifier", "no_local", "qos", "retain_as_published", "session", "topic_filter")

    def __init__(
        self,
        session: Session,
        topic_filter: str,
        qos: int,
        no_local: bool = False,
        retain_as_published: bool = False,
        identifier: int = 0,
    ) -> None:
        self.session = session
        self.topic_filter = topic_filter
        self.qos = qos
        self.no_local = no_local
        self.retain_as_published = retain_as_published
        self.identifier = identifier


class Target:
    """What one session gets of a topic name: one copy, however many of its filters match.

    The copy has the highest QoS of the matching subscriptions [MQTT-3.3.4-2] and all their
    identifiers [MQTT-3.3.4-3]. `own` is what the session gets of what it published itself:
    this target, a smaller one, or None (no local, [MQTT-3.8.3-3]).
    """

    __slots__ = ("identifiers", "own", "qos", "retain_as_published", "session")

    def __init__(self, subscriptions: list[Subscription]) -> None:
        self.session = subscriptions[0].session
        self.qos = max(s.qos for s in subscriptions)
        self.retain_as_published = any(s.retain_as_published for s in subscriptions)
        self.identifiers = tuple(s.identifier for s in subscriptions if s.identifier)
        not_local = [s for s in subscriptions if not s.no_local]
        self.own: Target | None
        if len(not_local) == len(subscriptions):
            self.own = self
        else:
            self.own = Target(not_local) if not_local else None


class _Node:
    __slots__ = ("children", "subscriptions")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.subscriptions: dict[Session, Subscription] = {}


class Routing:
    """All subscriptions of all sessions."""

    def __init__(self) -> None:
        self._root = _Node()
        self._routes: dict[str, list[Target]] = {}
        self.count = 0  # subscriptions

    def add(self, subscription: Subscription) -> bool:
        """Add, or replace the session's subscription to the same filter; True if it is a new one."""
        node = self._root
        for level in subscription.topic_filter.split("/"):
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = _Node()
            node = child
        is_new = subscription.session not in node.subscriptions
        node.subscriptions[subscription.session] = subscription
        self.count += is_new
        self._routes.clear()
        return is_new

    def remove(self, session: Session, topic_filter: str) -> bool:
        """Remove the session's subscription to *topic_filter*; False if there is none."""
        node = self._root
        path: list[tuple[_Node, str]] = []
        for level in topic_filter.split("/"):
            child = node.children.get(level)
            if child is None:
                return False
            path.append((node, level))
            node = child
        if node.subscriptions.pop(session, None) is None:
            return False
        for parent, level in reversed(path):
            child = parent.children[level]
            if child.children or child.subscriptions:
                break
            del parent.children[level]
        self.count -= 1
        self._routes.clear()
        return True

    def targets(self, topic: str) -> list[Target]:
        """Who gets a message on *topic* (a valid topic name). The list is shared: read only."""
        route = self._routes.get(topic)
        if route is None:
            route = self._targets(topic)
            if len(self._routes) >= _ROUTES_MAX:
                self._routes.clear()
            self._routes[topic] = route
        return route

    def _targets(self, topic: str) -> list[Target]:
        by_session: dict[Session, list[Subscription]] = {}
        for subscription in self._matches(topic):
            by_session.setdefault(subscription.session, []).append(subscription)
        return [Target(subscriptions) for subscriptions in by_session.values()]

    def _matches(self, topic: str) -> list[Subscription]:
        found: list[Subscription] = []
        nodes = [self._root]
        # [MQTT-4.7.2-1]: a filter that starts with a wildcard doesn't match a topic that starts with $.
        wildcards = not topic.startswith("$")
        for level in topic.split("/"):
            following: list[_Node] = []
            for node in nodes:
                children = node.children
                child = children.get(level)
                if child is not None:
                    following.append(child)
                if wildcards:
                    child = children.get("+")
                    if child is not None:
                        following.append(child)
                    child = children.get("#")
                    if child is not None:
                        found.extend(child.subscriptions.values())
            nodes = following
            wildcards = True
        for node in nodes:
            found.extend(node.subscriptions.values())
            child = node.children.get("#")  # "sport/#" also matches "sport" (MQTT 5.0 §4.7.1.2)
            if child is not None:
                found.extend(child.subscriptions.values())
        return found
