"""The reference: what a broker owes to whom, as the specification has it, kept in plain dictionaries.
Knows no bytes and nothing of how the core works; it is told of each packet when the broker handles it.

What happens is a list of operations, each with its effects on the state. A second state holds only what the
store has kept. After a crash the model goes on from that one, and from every operation that was acknowledged:
what was promised must be there, whether the store has it or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

NEVER = 0xFFFF_FFFF


class Sent(NamedTuple):
    """A message that was published; its payload is its number."""

    number: int
    publisher: str
    topic: str
    qos: int
    retain: bool
    expiry_s: int | None = None
    is_will: bool = False


class Filter(NamedTuple):
    """A subscription; `identifier` 0: none."""

    topic_filter: str
    qos: int
    no_local: bool = False
    retain_as_published: bool = False
    identifier: int = 0


class Copy(NamedTuple):
    """How a client may be sent a message; `is_live`: when it was published, not since it was retained."""

    qos: int
    retain: bool
    identifiers: tuple[int, ...]
    is_live: bool


@dataclass
class Session:
    incarnation: int
    expiry_s: int
    ended_at: float | None = None
    subscriptions: dict[str, Filter] = field(default_factory=dict)
    owed: dict[int, None] = field(default_factory=dict)  # numbers at QoS 1 and 2 without its acknowledgement
    received: set[int] = field(default_factory=set)  # QoS 2 identifiers between PUBLISH and PUBREL

    def copy(self) -> Session:
        return replace(
            self, subscriptions=dict(self.subscriptions), owed=dict(self.owed), received=set(self.received)
        )


class PendingWill(NamedTuple):
    """`due` None: its client is connected."""

    will: Sent
    delay_s: int
    due: float | None


class State:
    """All that could have to outlive a crash."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.retained: dict[str, tuple[int, float | None]] = {}  # topic: number, when it expires
        # By share filter: numbers that some member must acknowledge.
        self.shared: dict[str, dict[int, None]] = {}
        self.wills: dict[tuple[str, int], PendingWill] = {}  # by session: name and incarnation

    def copy(self) -> State:
        again = State()
        again.sessions = {name: session.copy() for name, session in self.sessions.items()}
        again.retained = dict(self.retained)
        again.wills = dict(self.wills)
        again.shared = {name: dict(numbers) for name, numbers in self.shared.items()}
        return again

    def apply(self, effect: tuple[Any, ...]) -> None:
        kind, name, *values = effect
        if kind == "retain":
            self.retained[name] = values[0]
        elif kind == "unretain":
            self.retained.pop(name, None)
        elif kind == "owe shared":
            self.shared.setdefault(name, {})[values[0]] = None
        elif kind == "pay shared":
            self.shared.get(name, {}).pop(values[0], None)
        elif kind == "will":
            self.wills[name, values[0]] = values[1]
        elif kind == "no will":
            self.wills.pop((name, values[0]), None)
        elif kind == "end":
            self.sessions.pop(name, None)
        elif kind == "begin":
            self.sessions[name] = Session(*values)
        elif name in self.sessions:
            self._apply_to(self.sessions[name], kind, values)

    def _apply_to(self, session: Session, kind: str, values: list[Any]) -> None:
        if kind == "owe":
            incarnation, number = values
            if incarnation == session.incarnation:
                session.owed[number] = None
        elif kind == "pay":
            session.owed.pop(values[0], None)
        elif kind == "subscribe":
            session.subscriptions[values[0].topic_filter] = values[0]
        elif kind == "unsubscribe":
            session.subscriptions.pop(values[0], None)
        elif kind == "receive":
            session.received.add(values[0])
        elif kind == "release":
            session.received.discard(values[0])
        else:
            assert kind == "set", kind
            session.expiry_s, session.ended_at = values


class Operation:
    """What one packet, or one deadline, did. `is_promised`: an acknowledgement of it has left the broker."""

    __slots__ = ("effects", "is_promised")

    def __init__(self) -> None:
        self.effects: list[tuple[Any, ...]] = []
        self.is_promised = False


class Model:
    """*on_qos0(client_id, number)* is called for each copy at QoS 0 that a connected client should get."""

    def __init__(self, on_qos0: Callable[[str, int], None]) -> None:
        self.on_qos0 = on_qos0
        self.state = State()
        self.kept = State()  # what the store has
        self.unkept: list[Operation] = []  # in no batch yet
        self.in_batch: list[Operation] = []  # in the batch that is being written
        self.allowed: dict[tuple[str, int], set[Copy]] = {}  # (client, number): how it may come
        self.live: dict[str, list[int]] = {}  # by client: what it was to be sent when published, in order
        self.online: set[str] = set()
        self.catching_up: set[str] = (
            set()
        )  # clients that may be sent later what was retained since they subscribed
        self._ever_shared: dict[str, list[int]] = {}  # by share filter: what has come by it
        self._incarnations = 0
        self._operation = Operation()

    # -- operations --

    def begin(self) -> Operation:
        self._operation = operation = Operation()
        self.unkept.append(operation)
        return operation

    def _do(self, *effect: Any) -> None:
        self._operation.effects.append(effect)
        self.state.apply(effect)

    def batch_taken(self) -> None:
        self.in_batch, self.unkept = self.unkept, []

    def batch_kept(self) -> None:
        for operation in self.in_batch:
            for effect in operation.effects:
                self.kept.apply(effect)
        self.in_batch = []

    def crash(self, now: float) -> None:
        """What the next broker has to start with."""
        before, state = self.state, self.kept.copy()
        for operation in self.in_batch + self.unkept:
            if operation.is_promised:
                for effect in operation.effects:
                    if _still_holds(effect, before):
                        state.apply(effect)
        for name, session in list(state.sessions.items()):
            if session.expiry_s == 0:
                del state.sessions[name]  # its end, which another member of a group may hear of
        self.state, self.kept = state, state.copy()
        self.unkept, self.in_batch = [], []
        self._allow_what_is_left()
        self.begin()
        for name, session in state.sessions.items():
            if session.ended_at is None:
                self._do("set", name, session.expiry_s, now)
        self.online.clear()
        for (name, incarnation), (will, delay_s, due) in list(state.wills.items()):
            session = state.sessions.get(name)
            if session is None or session.incarnation != incarnation:
                due = now  # the session has ended
            elif due is None:
                due = now + min(delay_s, session.expiry_s)
            self._do("will", name, incarnation, PendingWill(will, delay_s, max(now, due)))

    # -- sessions --

    def connect(
        self, name: str, clean_start: bool, expiry_s: int, will: tuple[Sent, int] | None, now: float
    ) -> bool:
        """A client is let in, *will* with its delay; session present. CONNACK's operation is the last begun."""
        session = self.state.sessions.get(name)
        if session is not None and clean_start:
            self.begin()
            self._publish_will(name, session.incarnation, now)
        self.begin()
        if session is not None and clean_start:
            self._end(name, now)
        session = self.state.sessions.get(name)
        if session is None:
            self._incarnations += 1
            self._do("begin", name, self._incarnations, expiry_s)
        else:
            self._do("set", name, expiry_s, None)
            self._do("no will", name, session.incarnation)  # [MQTT-3.1.3-9]
        if will is not None:
            incarnation = self.state.sessions[name].incarnation
            self._do("will", name, incarnation, PendingWill(will[0], will[1], None))
        self.online.add(name)
        return session is not None

    def disconnect(self, name: str, expiry_s: int | None) -> None:
        """DISCONNECT; what follows from the end of the connection comes with `detach`."""
        if expiry_s is not None:
            self._do("set", name, expiry_s, None)

    def detach(self, name: str, has_will: bool, now: float) -> None:
        """The connection of *name* has ended; *has_will*: DISCONNECT has not taken it away."""
        self.begin()
        self.online.discard(name)
        session = self.state.sessions[name]
        pending = self.state.wills.get((name, session.incarnation))
        if pending is not None and not has_will:
            self._do("no will", name, session.incarnation)
        elif pending is not None:
            due = now + min(pending.delay_s, session.expiry_s)
            self._do("will", name, session.incarnation, pending._replace(due=due))
            if due == now:
                self._publish_will(name, session.incarnation, now)
        if session.expiry_s == 0:
            self._end(name, now)
        else:
            self._do("set", name, session.expiry_s, now)

    def _end(self, name: str, now: float) -> None:
        self._publish_will(name, self.state.sessions[name].incarnation, now)
        self._do("end", name)
        self._allow_what_is_left()
        for topic_filter in self._ever_shared:
            if not any(topic_filter in session.subscriptions for session in self.state.sessions.values()):
                for number in list(self.state.shared.get(topic_filter, ())):
                    self._do("pay shared", topic_filter, number)  # nobody is left who could get it

    def _allow_what_is_left(self) -> None:
        """What a session had not been sent, or not acknowledged, goes to another member (5.0 §4.8.2)."""
        for topic_filter, numbers in self._ever_shared.items():
            for number in numbers:
                self._allow_shared(topic_filter, self.messages[number])

    def _publish_will(self, name: str, incarnation: int, now: float) -> None:
        pending = self.state.wills.get((name, incarnation))
        if pending is not None and pending.due is not None:
            self._do("no will", name, incarnation)
            self.publish(pending.will, now)

    def run_timers(self, now: float) -> None:
        """Wills whose delay is over, sessions that expire."""
        due: list[tuple[float, int, str, int]] = [
            (pending.due, 0, name, incarnation)
            for (name, incarnation), pending in self.state.wills.items()
            if pending.due is not None and pending.due <= now
        ]
        for name, session in self.state.sessions.items():
            if session.ended_at is None or session.expiry_s == NEVER:
                continue
            if session.ended_at + session.expiry_s <= now:
                due.append((session.ended_at + session.expiry_s, 1, name, session.incarnation))
        for _, is_end, name, incarnation in sorted(due):
            self.begin()
            if is_end:
                self._end(name, now)
            else:
                self._publish_will(name, incarnation, now)

    # -- subscriptions --

    def subscribe(
        self, name: str, wanted: Filter, retain_handling: int, now: float, owes_retained: bool = True
    ) -> None:
        """*owes_retained* False: the client reads too slowly; what is retained comes later, and some of it not at
        all if the client unsubscribes or goes away before."""
        if not owes_retained:
            self.catching_up.add(name)
        session = self.state.sessions[name]
        is_new = wanted.topic_filter not in session.subscriptions
        self._do("subscribe", name, wanted)
        if (
            wanted.topic_filter.startswith("$share/")
            or retain_handling == 2
            or (retain_handling == 1 and not is_new)
        ):
            return
        identifiers = (wanted.identifier,) if wanted.identifier else ()
        for topic, (number, expires_at) in list(self.state.retained.items()):
            if not matches(wanted.topic_filter, topic):
                continue
            if expires_at is not None and expires_at <= now:
                aside = Operation()  # not what SUBACK promises
                aside.effects.append(("unretain", topic))
                self.unkept.append(aside)
                self.state.apply(aside.effects[0])
                continue
            message = self.messages[number]
            copy = Copy(min(wanted.qos, message.qos), True, identifiers, False)
            if owes_retained:
                self._give(name, number, copy)
            else:
                self.allowed.setdefault((name, number), set()).add(copy)

    messages: dict[int, Sent]  # by number; set by whoever makes them

    def unsubscribe(self, name: str, topic_filter: str) -> None:
        self._do("unsubscribe", name, topic_filter)

    # -- messages --

    def publish(self, message: Sent, now: float) -> None:
        """*message* is routed to everyone whose subscriptions match."""
        if message.retain and message.number < 0:
            self._do("unretain", message.topic)  # passed on too, but an empty payload names no message
            return
        if message.retain:
            expires_at = None if message.expiry_s is None else now + message.expiry_s
            self._do("retain", message.topic, (message.number, expires_at))
        for name, session in self.state.sessions.items():
            found = [s for s in session.subscriptions.values() if matches(s.topic_filter, message.topic)]
            every = found
            if name == message.publisher:
                found = [s for s in found if not s.no_local]
            if found:
                retain = message.retain and any(s.retain_as_published for s in found)
                identifiers = tuple(sorted(s.identifier for s in found if s.identifier))
                qos = min(message.qos, max(s.qos for s in found))
                self._give(name, message.number, Copy(qos, retain, identifiers, True))
            if message.retain and name in self.catching_up:
                for s in every:
                    identifiers = (s.identifier,) if s.identifier else ()
                    copy = Copy(min(message.qos, s.qos), True, identifiers, False)
                    self.allowed.setdefault((name, message.number), set()).add(copy)
        self._publish_shared(message)

    def _publish_shared(self, message: Sent) -> None:
        groups = {
            topic_filter: None
            for session in self.state.sessions.values()
            for topic_filter in session.subscriptions
            if topic_filter.startswith("$share/") and matches(topic_filter.split("/", 2)[2], message.topic)
        }
        for topic_filter in groups:
            self._allow_shared(topic_filter, message)
            if message.qos:
                self._do("owe shared", topic_filter, message.number)
                self._ever_shared.setdefault(topic_filter, []).append(message.number)

    def _allow_shared(self, topic_filter: str, message: Sent) -> None:
        """Any member of the group may be the one that gets it."""
        for name, session in self.state.sessions.items():
            member = session.subscriptions.get(topic_filter)
            if member is not None:
                identifiers = (member.identifier,) if member.identifier else ()
                retain = message.retain and member.retain_as_published
                copy = Copy(min(message.qos, member.qos), retain, identifiers, True)
                self.allowed.setdefault((name, message.number), set()).add(copy)

    def _give(self, name: str, number: int, copy: Copy) -> None:
        key = (name, number)
        self.allowed.setdefault(key, set()).add(copy)
        if copy.is_live:
            self.live.setdefault(name, []).append(number)
        if copy.qos:
            self._do("owe", name, self.state.sessions[name].incarnation, number)
        elif name in self.online:
            self.on_qos0(name, number)

    def acknowledged(self, name: str, number: int) -> None:
        """The client has acknowledged the message: PUBACK, or PUBCOMP."""
        self.begin()
        self._do("pay", name, number)
        for topic_filter in self.state.shared:
            self._do("pay shared", topic_filter, number)

    def receive(self, name: str, packet_id: int) -> bool:
        """A PUBLISH at QoS 2; False if it is a duplicate, and not to be routed."""
        if packet_id in self.state.sessions[name].received:
            return False
        self._do("receive", name, packet_id)
        return True

    def release(self, name: str, packet_id: int) -> None:
        self._do("release", name, packet_id)


def _still_holds(effect: tuple[Any, ...], before: State) -> bool:
    """Of an acknowledged operation: what was acknowledged by its receiver before the crash isn't owed any more."""
    kind, name = effect[:2]
    if kind == "owe":
        session = before.sessions.get(name)
        return session is not None and session.incarnation == effect[2] and effect[3] in session.owed
    if kind == "owe shared":
        return effect[2] in before.shared.get(name, ())
    return True


def matches(topic_filter: str, topic: str) -> bool:
    """Level by level, as MQTT 5.0 §4.7 words it; the simulation's topics don't begin with "$"."""
    wanted, levels = topic_filter.split("/"), topic.split("/")
    for at, level in enumerate(wanted):
        if level == "#":
            return True
        if at >= len(levels) or level not in ("+", levels[at]):
            return False
    return len(wanted) == len(levels)


def all_owed(state: State) -> Iterator[tuple[str, int]]:
    for name, session in state.sessions.items():
        for number in session.owed:
            yield name, number
    for topic_filter, numbers in state.shared.items():
        for number in numbers:
            yield topic_filter, number
