"""Who gets a message: a trie of topic filters behind a cache of topic names.
Knows sessions only as keys; what is done with a match is the broker's business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from midge.core.limits import Limits
from midge.core.routes import Routes
from midge.protocol.errors import ProtocolError
from midge.protocol.reasons import ReasonCode
from midge.protocol.topics import matches, split_shared

if TYPE_CHECKING:
    from midge.core.session import Session

class Subscription:
    """A session's subscription to one topic filter (MQTT 5.0 §3.8.3.1); `identifier` 0: none."""

    __slots__ = ("_target", "identifier", "no_local", "qos", "retain_as_published", "session", "topic_filter")

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
        self._target: Target | None = None

    @property
    def target(self) -> Target:
        """What its session gets where no other of its filters matches: the same for all topic names."""
        target = self._target
        if target is None:
            target = self._target = Target([self])
        return target

    @property
    def is_bridges(self) -> bool:
        """Whether another broker must have made it: these two options together are a bridge's alone."""
        return self.no_local and self.retain_as_published


class Target:
    """What one session gets of a topic name: one copy, however many of its filters match.

    The copy has the highest QoS of the matching subscriptions [MQTT-3.3.4-2] and all their
    identifiers [MQTT-3.3.4-3]. `own` is what the session gets of what it published itself:
    this target, a smaller one, or None (no local, [MQTT-3.8.3-3]).
    """

    __slots__ = ("_is_all_own", "_own", "_sole_route", "identifiers", "qos", "retain_as_published", "session")

    def __init__(self, subscriptions: list[Subscription]) -> None:
        self.session = subscriptions[0].session
        self.qos = max(s.qos for s in subscriptions)
        self.retain_as_published = any(s.retain_as_published for s in subscriptions)
        self.identifiers = tuple(s.identifier for s in subscriptions if s.identifier)
        not_local = [s for s in subscriptions if not s.no_local]
        self._sole_route: Route | None = None
        self._is_all_own = len(not_local) == len(subscriptions)
        self._own = None if self._is_all_own or not not_local else Target(not_local)

    @property
    def own(self) -> Target | None:
        return self if self._is_all_own else self._own

    def sole_route(self) -> Route:
        """The route of a topic name that nobody else gets: one for all of them."""
        route = self._sole_route
        if route is None or bool(route.bridges) is not self.session.is_bridge:
            route = self._sole_route = Route([self], [])
        return route


class SharedGroup:
    """The subscriptions of one shared subscription (MQTT 5.0 §4.8.2): each message goes to one of them."""

    __slots__ = ("members", "topic_filter")

    def __init__(self, topic_filter: str) -> None:
        self.topic_filter = topic_filter  # with $share and the share name
        self.members: dict[Session, Subscription] = {}  # in turn: whoever was chosen goes to the end

    def choose(self, topic: str, is_kept: bool) -> Target | None:
        """The member that gets the next message: in turn, those with room in their window first.

        *is_kept*: QoS 1 or 2, which an absent member's session can keep if nobody is there.
        """
        target = self.best(topic, is_kept)
        if target is not None:
            self.members[target.session] = self.members.pop(target.session)
        return target

    def best(self, topic: str, is_kept: bool) -> Target | None:
        """Whom `choose` would choose."""
        best: Session | None = None
        best_rank = 5 if is_kept else 2
        for session in self.members:
            if session.permissions is not None and not session.permissions.may_read(topic):
                continue
            connection = session.connection
            if connection is not None and not session.queue.count and len(session.in_flight) < connection.window:
                best = session
                break
            rank = 1 if connection is not None else 2
            if is_kept and session.queue.count >= session.limits.max_queued_messages:
                rank += 2  # its queue is full
            if rank < best_rank:
                best, best_rank = session, rank
        return None if best is None else self.members[best].target


class Route:
    """Who gets a topic name. Shared by all messages on it: read only."""

    __slots__ = ("bridges", "groups", "history", "is_special", "targets")

    def __init__(self, targets: list[Target], groups: list[SharedGroup], history: str = "") -> None:
        self.targets = targets
        self.groups = groups
        self.bridges = [target.session for target in targets if target.session.is_bridge]
        self.history = history  # the name of the one that keeps such messages; "": none does
        self.is_special = bool(self.bridges or history)  # each message on it is looked at by itself


_NOBODY = Route([], [])


class _Node:
    """What filters have in common up to one level. Those that wildcards lead to have attributes of their own: each
    message on a new topic name looks for them on every level, and mostly there are none."""

    __slots__ = ("children", "groups", "multi", "single", "subscriptions")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.single: _Node | None = None  # behind "+"
        self.multi: _Node | None = None  # behind "#"
        self.subscriptions: dict[Session, Subscription] = {}
        self.groups: dict[str, SharedGroup] = {}  # by share name

    @property
    def is_empty(self) -> bool:
        return not (self.children or self.single or self.multi or self.subscriptions or self.groups)

    def child(self, level: str) -> _Node | None:
        """Of a topic filter's next level."""
        if level == "+":
            return self.single
        return self.multi if level == "#" else self.children.get(level)

    def make_child(self, level: str) -> _Node:
        child = _Node()
        if level == "+":
            self.single = child
        elif level == "#":
            self.multi = child
        else:
            self.children[level] = child
        return child

    def drop_child(self, level: str) -> None:
        if level == "+":
            self.single = None
        elif level == "#":
            self.multi = None
        else:
            del self.children[level]


class Routing:
    """All subscriptions of all sessions."""

    def __init__(self, max_levels: int = Limits().max_topic_levels) -> None:
        self._root = _Node()
        self._max_levels = max_levels  # of topic names that are routed
        self._histories: list[str] = []  # topic filters of what is kept for replay
        self._routes = Routes()
        self.known = self._routes.by_topic  # routes by topic name, to be read only; others `route` works out
        self.count = 0  # subscriptions
        self.shared_count = 0  # of them, those with a share name
        self.queue_of: Callable[[str], SharedGroup] | None = None  # the durable queue of $queue/NAME; set by `Queues`

    def add(self, subscription: Subscription) -> bool:
        """Add, or replace the session's subscription to the same filter; True if it is a new one."""
        share_name, topic_filter = split_shared(subscription.topic_filter)
        node = self._root
        for level in topic_filter.split("/"):
            node = node.child(level) or node.make_child(level)
        if share_name is None:
            members = node.subscriptions
        else:
            group = node.groups.get(share_name)
            if group is None:
                group = node.groups[share_name] = SharedGroup(subscription.topic_filter)
            members = group.members
        is_new = subscription.session not in members
        members[subscription.session] = subscription
        self.count += is_new
        self.shared_count += is_new and share_name is not None
        self._routes.forget(topic_filter)
        return is_new

    def remove(self, session: Session, topic_filter: str) -> bool:
        """Remove the session's subscription to *topic_filter*; False if there is none."""
        share_name, plain_filter = split_shared(topic_filter)
        node = self._root
        path: list[tuple[_Node, str]] = []
        for level in plain_filter.split("/"):
            child = node.child(level)
            if child is None:
                return False
            path.append((node, level))
            node = child
        if not _remove_member(node, session, share_name):
            return False
        _prune(path)
        self.count -= 1
        self.shared_count -= share_name is not None
        self._routes.forget(plain_filter)
        return True

    def bind(self, topic_filter: str, name: str, queue: SharedGroup) -> None:
        """What matches *topic_filter* feeds the durable queue *name*."""
        node = self._root
        for level in topic_filter.split("/"):
            node = node.child(level) or node.make_child(level)
        node.groups["/" + name] = queue  # no share name has a slash
        self._routes.forget(topic_filter)

    def unbind(self, topic_filter: str, name: str) -> None:
        node = self._root
        path: list[tuple[_Node, str]] = []
        for level in topic_filter.split("/"):
            path.append((node, level))
            child = node.child(level)
            if child is None:
                return
            node = child
        node.groups.pop("/" + name, None)
        _prune(path)
        self._routes.forget(topic_filter)

    def group(self, topic_filter: str) -> SharedGroup | None:
        """The shared subscription to *topic_filter* ($share/...), if anybody has it."""
        share_name, plain_filter = split_shared(topic_filter)
        node: _Node | None = self._root
        for level in plain_filter.split("/"):
            if node is None:
                return None
            node = node.child(level)
        return None if node is None or share_name is None else node.groups.get(share_name)

    def route(self, topic: str) -> Route:
        """Who gets a message on *topic* (a valid topic name). ProtocolError: it has too many levels."""
        route = self.known.get(topic)
        if route is None:
            route = self._route(topic)
            self._routes.add(topic, route)
        return route

    def set_max_levels(self, max_levels: int) -> None:
        self._max_levels = max_levels
        self._routes.clear()

    def set_histories(self, topic_filters: list[str]) -> None:
        """Messages that match are kept, by the first that matches."""
        self._histories = topic_filters
        self._routes.clear()

    def forget(self, topic: str) -> None:
        """Who gets *topic* is to be worked out anew."""
        self._routes.forget(topic)

    def forget_routes(self, session: Session) -> None:
        """What *session* may read, or who it is, has changed: work out anew who gets what it subscribes to."""
        for topic_filter in session.subscriptions:
            self._routes.forget(split_shared(topic_filter)[1])

    def _route(self, topic: str) -> Route:
        if topic.count("/") >= self._max_levels and not topic.startswith("$SYS/"):  # those are the broker's own
            raise ProtocolError(
                ReasonCode.TOPIC_NAME_INVALID, f"a topic name of more than max_topic_levels ({self._max_levels})"
            )
        if self.queue_of is not None and topic.startswith("$queue/"):
            return Route([], [self.queue_of(topic)])  # no filter of a subscription matches these
        nodes = [node for node in self._matches(topic) if node.subscriptions or node.groups]
        groups = [group for node in nodes for group in node.groups.values()]
        if len(groups) > 1:
            groups = list(dict.fromkeys(groups))  # several filters may feed one durable queue
        if len(nodes) == 1:
            targets = [
                subscription.target
                for session, subscription in nodes[0].subscriptions.items()
                if session.permissions is None or session.permissions.may_read(topic)
            ]
        else:
            by_session: dict[Session, list[Subscription]] = {}
            for node in nodes:
                for session, subscription in node.subscriptions.items():
                    if session.permissions is None or session.permissions.may_read(topic):
                        by_session.setdefault(session, []).append(subscription)
            targets = [found[0].target if len(found) == 1 else Target(found) for found in by_session.values()]
        history = ""
        if self._histories:
            history = next((each for each in self._histories if matches(each, topic)), "")
        if groups or len(targets) > 1 or history:
            return Route(targets, groups, history)
        return targets[0].sole_route() if targets else _NOBODY

    def _matches(self, topic: str) -> list[_Node]:
        """The nodes of the filters that match."""
        found: list[_Node] = []
        nodes = [self._root]
        # [MQTT-4.7.2-1]: a filter that starts with a wildcard doesn't match a topic that starts with $.
        wildcards = not topic.startswith("$")
        for level in topic.split("/"):
            following: list[_Node] = []
            for node in nodes:
                child = node.children.get(level)
                if child is not None:
                    following.append(child)
                if wildcards:
                    child = node.single
                    if child is not None:
                        following.append(child)
                    child = node.multi
                    if child is not None:
                        found.append(child)
            nodes = following
            wildcards = True
        for node in nodes:
            found.append(node)
            child = node.multi  # "sport/#" also matches "sport" (MQTT 5.0 §4.7.1.2)
            if child is not None:
                found.append(child)
        return found


def _prune(path: list[tuple[_Node, str]]) -> None:
    """Of the nodes on *path* those are removed that nothing depends on."""
    for parent, level in reversed(path):
        child = parent.child(level)
        if child is not None and not child.is_empty:
            break
        parent.drop_child(level)


def _remove_member(node: _Node, session: Session, share_name: str | None) -> bool:
    if share_name is None:
        return node.subscriptions.pop(session, None) is not None
    group = node.groups.get(share_name)
    if group is None or group.members.pop(session, None) is None:
        return False
    if not group.members:
        del node.groups[share_name]
    return True
