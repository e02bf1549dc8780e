"""The broker's decisions: who is connected, which session is whose, where a message goes, what must last.
Sans-IO: knows no socket, clock, thread or database.

One turn, for whoever owns the I/O:

1. `connection.receive_data(chunk, now)` for each chunk that arrived, `run_timers(now)` when one is due;
2. `end_turn()`, and for each connection that it names write `connection.data_to_send()`, once;
3. if no batch is being written: `release_what_is_gone()`, or `take_batch()` and, when that is kept,
   `committed(batch.number)`; after both, write again what rested on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields

from midge.core import admission
from midge.core.access import Access
from midge.core.addresses import ConnectionCounts
from midge.core.backlog import Backlog
from midge.core.catch_up import CatchUp
from midge.core.changes import Batch, Changes
from midge.core.connection import HELD_BY_STORE, Connection
from midge.core.durable_queue import PREFIX, DurableQueue
from midge.core.limits import Counters, Limits
from midge.core.message import Message
from midge.core.outgoing import send_qos0
from midge.core.owner import Owner
from midge.core.passage import Passage
from midge.core.pressure import Pressure
from midge.core.queues import Queues
from midge.core.replay import Replay
from midge.core.replay_from import PREFIX as REPLAY
from midge.core.replay_from import is_replay, parse_replay
from midge.core.retained import Retained
from midge.core.retaining import OWN_TOPICS, Retaining
from midge.core.routing import Routing, SharedGroup, Subscription, Target
from midge.core.session import NEVER_EXPIRES, Session
from midge.core.session_limits import SessionLimits, SessionRule
from midge.core.timers import Timers
from midge.core.wills import Wills
from midge.protocol import packets as p
from midge.protocol.reasons import ReasonCode

# Names under $SYS that aren't the broker's alone to publish: bridges tell of themselves, as Mosquitto's do.
_BRIDGE_TOPICS = "$SYS/broker/connection/"


class Broker:
    """All state of one broker. `changes` is None when nothing is to last (a store in memory)."""

    def __init__(self, limits: Limits, access: Access | None = None, is_durable: bool = False) -> None:
        self.limits = limits
        self.session_limits = SessionLimits(limits)
        self.access = access
        self.on_admitted: Callable[[Connection], None] | None = None  # told of each client that is let in
        self.counters = Counters()
        self.timers = Timers()
        self.sessions: dict[str, Session] = {}  # by client identifier
        self.connections: set[Connection] = set()  # all that are open, also before CONNECT
        self.by_address = ConnectionCounts()
        self.routing = Routing(limits.max_topic_levels)
        self.retained = Retained()
        self.passage = Passage()  # what has crossed bridges
        self.retaining = Retaining(self)
        self.backlog = Backlog(limits.max_message_memory // 2)
        self.wills = Wills(self)
        self.catch_up = CatchUp(self)
        self.replay = Replay(self)
        self.changes: Changes | None = Changes() if is_durable else None
        self.committed_batch = 0  # number of the last batch that is kept
        self.ready: list[Connection] = []  # connections with output or to be closed, since the last turn
        self.queues = Queues(self)
        self.pressure = Pressure(self)
        self._held_by_store: dict[Connection, None] = {}  # not read from until the store has caught up
        self._next_session_key = 1
        self._is_stopping = False  # set by `shut_down`

    # -- turns --

    def open(
        self,
        address: str,
        owner: Owner,
        now: float,
        access: Access | None = None,
        limits: Limits | None = None,
    ) -> Connection:
        """A new connection from *address*; *owner* does its I/O. *access* is who is asked about this one, and
        *limits* are its bounds, if not the broker's own."""
        connection = Connection(self, address, owner, now, access or self.access, limits)
        self.connections.add(connection)
        timeout_s = connection.limits.connect_timeout
        connection.timer = self.timers.at(now + timeout_s, connection.connect_due)
        admission.count_in(self, connection)
        return connection

    def set_limits(self, limits: Limits, rules: Sequence[SessionRule] = ()) -> None:
        """Take over what has changed, also for connections and sessions that there are. *rules*: for some sessions."""
        for field in fields(limits):
            setattr(self.limits, field.name, getattr(limits, field.name))
        self.session_limits.set_rules(rules)
        for session in self.sessions.values():
            session.limits = self.session_limits.of(session.client_id)
        self.routing.set_max_levels(limits.max_topic_levels)
        self.pressure.update()

    def limit_session(self, rule: SessionRule) -> None:
        """A bridge's session, by its client identifier, has bounds of its own."""
        self.session_limits.set_bridge(rule)
        if (session := self.sessions.get(rule.client_id)) is not None:
            session.limits = self.session_limits.of(rule.client_id)
        self.pressure.update()

    def output_ready(self, connection: Connection) -> None:
        """*connection* has output, or is to be closed, at the end of this turn."""
        self.ready.append(connection)

    def end_turn(self) -> list[Connection]:
        """The connections that have something to send or to end. Output that rests on changes of this
        turn is held back until `committed`."""
        if self.pressure.is_on:
            self.pressure.turn_ends()
        if self.replay.due:
            self.replay.turn_ends()
        ready, self.ready = self.ready, []
        if self.changes is not None:
            for connection in ready:
                if connection.rests or connection.held:
                    connection.end_turn(self.changes)
        return ready

    def hold_by_store(self, connection: Connection) -> None:
        """More is to be written than the disk takes: don't read on from who brings more of it."""
        connection.hold(HELD_BY_STORE, True)
        self._held_by_store[connection] = None

    def take_batch(self) -> Batch | None:
        """What is to be written to the store next, if there is anything. One at a time: while one is
        being written, the turns that end share the next."""
        return None if self.changes is None else self.changes.take()

    def release_what_is_gone(self) -> bool:
        """Call while no batch is being written. Whether all that output rests on has been acknowledged by whom it was
        for, before it was written: then nobody has to wait for a disk."""
        changes = self.changes
        if changes is None or not changes.is_rested_on or changes.is_needed:
            return False
        self.committed(changes.pass_over())
        return True

    def committed(self, number: int) -> None:
        """Batch *number*, and with it all before it, is kept."""
        self.committed_batch = number

    def settled(self, number: int) -> None:
        """What batches up to *number* hold can be read back from the store."""
        held, self._held_by_store = self._held_by_store, {}
        for connection in held:
            connection.hold(HELD_BY_STORE, False)
        self.retained.relieve(number)
        self.backlog.relieve(number)
        self.replay.history.settled(number)

    def next_deadline(self) -> float | None:
        """When `run_timers` is due, s since the epoch."""
        return self.timers.next_deadline()

    def run_timers(self, now: float) -> None:
        self.timers.run(now)

    # -- connections and sessions --

    def take_in(
        self, connection: Connection, packet: p.Connect, client_id: str, answer: p.Properties, now: float
    ) -> None:
        """The client may connect: give the connection its session. *answer* goes into CONNACK."""
        session = self._take_session(connection, client_id, packet.clean_start, now)
        is_present = session is not None
        if session is None:
            session = self.new_session(client_id)
        properties = packet.properties or {}
        admission.greet(connection, session, packet, is_present, answer)
        self.set_permissions(connection, session)
        connection.session = session
        session.connection = connection
        self.set_bridge(session, connection.is_bridge or any(s.is_bridges for s in session.subscriptions.values()))
        session.ended_at = None
        if connection.version == 5:
            session.receive_maximum = properties.get("receive_maximum", 0)
            asked_s = properties.get("session_expiry_interval", 0)
        else:
            session.receive_maximum = 0
            asked_s = 0 if packet.clean_start else NEVER_EXPIRES
        self.set_expiry(session, asked_s)
        if connection.will is not None:
            self.wills.keep(session, connection.will)
        if self.changes is not None:
            # What CONNACK says of the session must be so after a restart too: that it is kept, with the will,
            # or that the one before it has ended, whoever ended it.
            connection.rest_on_commit()
        connection.watch_keep_alive(now)
        self.counters.connections += 1
        if self.on_admitted is not None:
            self.on_admitted(connection)
        if is_present:
            session.resume(now)
            if session.consuming:
                self.queues.arrived(session, now)

    def _take_session(
        self, connection: Connection, client_id: str, clean_start: bool, now: float
    ) -> Session | None:
        """The session of *client_id* that goes on, if there is one; whoever has it now is closed."""
        session = self.sessions.get(client_id)
        if session is None:
            return None
        if session.connection is not None:
            # [MQTT-3.1.4-3]: the client identifier is taken over.
            older = session.connection
            older.close(ReasonCode.SESSION_TAKEN_OVER, f"taken over by {connection.address}")
            self._detach(older, session, now)
        if clean_start and client_id in self.sessions:
            self._end_session(session, now)
        if client_id not in self.sessions:
            return None
        for timer in (session.expiry_timer, session.will_timer):
            if timer is not None:
                timer.cancel()  # [MQTT-3.1.3-9]: a will whose delay still runs isn't published
        session.expiry_timer = session.will_timer = None
        self.wills.forget(session)
        return session

    def set_permissions(self, connection: Connection, session: Session) -> None:
        """Ask anew what the client may do: it has connected, or the rules have changed."""
        permissions = None
        if connection.access is not None and not connection.is_trusted:
            permissions = connection.access.permissions(session.client_id, connection.identity)
        if permissions is None and session.permissions is None:
            return
        session.permissions = permissions
        if permissions is not None:
            session.drop_unreadable(permissions)
        if session.subscriptions:
            self.routing.forget_routes(session)

    def set_bridge(self, session: Session, is_bridge: bool) -> None:
        """Whether *session* is another broker's: set by CONNECT, or by the subscriptions that only a bridge makes."""
        if session.is_bridge is not is_bridge:
            session.is_bridge = is_bridge
            self.routing.forget_routes(session)

    def new_session(self, client_id: str, key: int = 0) -> Session:
        """*key*: the number that a store knows it by, if it does."""
        limits = self.session_limits.of(client_id)
        session = Session(client_id, key or self._next_session_key, limits, self.counters, self.backlog)
        self._next_session_key = max(self._next_session_key, session.key + 1)
        self.sessions[client_id] = session
        self.counters.sessions_maximum = max(self.counters.sessions_maximum, len(self.sessions))
        return session

    def unlisted_session(self, client_id: str, key: int = 0) -> Session:
        """Nobody can come back to it: one that has ended, and in whose name something is still to be published, or
        one that stands for a durable queue."""
        session = Session(client_id, key or self._next_session_key, self.limits, self.counters, self.backlog)
        self._next_session_key = max(self._next_session_key, session.key + 1)
        return session

    def set_expiry(self, session: Session, expiry_s: int) -> None:
        """How long *session* outlives its connection, s; 0: not at all, NEVER_EXPIRES: for ever."""
        session.expiry_s = min(expiry_s, self.limits.max_session_expiry)
        if session.expiry_s == 0 and session.changes is None:
            session.keep_in(None)
        else:
            # One that was kept stays so until it ends with its connection: what waits for it may be only on
            # disk, and what it had by a shared subscription must not be gone before another member has it.
            session.keep_in(self.changes)

    def connection_lost(self, connection: Connection, now: float) -> None:
        """The connection is closed on the socket's side; its session goes on without it, or ends."""
        if connection in self.connections:
            self.connections.remove(connection)
            self.by_address.remove(connection.address)
            self.pressure.forget(connection)
        session = connection.session
        if session is not None and session.connection is connection:
            self._detach(connection, session, now)

    def _detach(self, connection: Connection, session: Session, now: float) -> None:
        session.connection = None
        connection.plain_version = 0
        if session.readings is not None:
            self.replay.client_left(session)
        session.ended_at = now
        if session.consuming:
            self.queues.gone(session, now)
        will, connection.will = connection.will, None
        if will is not None:
            self.wills.schedule(session, will, now)
        elif not self._is_stopping:
            self.wills.forget(session)
        if session.expiry_s == 0:
            self._end_session(session, now)
            return
        if session.changes is not None:
            session.changes.session(session)
        if session.expiry_s != NEVER_EXPIRES:
            self.expire_session(session, now + session.expiry_s)

    def expire_session(self, session: Session, when: float) -> None:
        session.expiry_timer = self.timers.at(when, lambda now: self._expire_session(session, now))

    def _expire_session(self, session: Session, now: float) -> None:
        self.counters.sessions_expired += 1
        self._end_session(session, now)

    def _end_session(self, session: Session, now: float) -> None:
        """The session and all that it holds are gone; a will that waited for it is published now."""
        will_timer, session.will_timer = session.will_timer, None
        if will_timer is not None and will_timer.action is not None:
            publish = will_timer.action
            will_timer.cancel()  # else it would be published a second time when the delay is over
            publish(now)
        if session.subscriptions or session.consuming:
            self._end_subscriptions(session, now)
        if session.readings is not None:
            self.replay.session_ended(session)
        session.keep_in(None)
        session.queue.clear()
        session.subscriptions.clear()
        if session.expiry_timer is not None:
            session.expiry_timer.cancel()
        self.sessions.pop(session.client_id, None)

    def _end_subscriptions(self, session: Session, now: float) -> None:
        for topic_filter in session.subscriptions:
            self.routing.remove(session, topic_filter)
        self.queues.session_ended(session)
        for delivery in session.take_shared():
            group = self.routing.group(delivery.shared)
            if group is not None and not delivery.message.is_expired(now):
                self.publish_shared(delivery.message, [group], now)

    # -- publish --

    def may_publish(self, connection: Connection, topic: str) -> bool:
        session = connection.session
        return session is not None and self.session_may_publish(session, topic)

    def session_may_publish(self, session: Session, topic: str) -> bool:
        if topic[0] == "$" and topic.startswith((OWN_TOPICS, REPLAY)):
            return session.is_bridge and topic.startswith(_BRIDGE_TOPICS)
        permissions = session.permissions
        return permissions is None or permissions.may_publish(topic)

    def publish(self, message: Message, publisher: Session | None, now: float) -> int:
        """Route *message*; the number of sessions that get it. *publisher* None: the broker itself."""
        route = self.routing.route(message.topic)  # first: it refuses topic names with too many levels
        if publisher is not None and publisher.is_bridge:
            kept = self.retained.find(message.topic) if message.retain else None
            if not self.passage.admits(message, publisher, route.bridges, kept, now):
                return 1  # taken before, so that the acknowledgement is an ordinary one
        if route.bridges:
            self.passage.mark(message, route.bridges)
        if message.retain:
            self.retaining.keep(message)
        if route.history:
            self.replay.keep(message, route.history, now)
        matched = 0
        for target in route.targets:
            if target.session is publisher:
                own = target.own
                if own is None:
                    continue
                target = own
            matched += 1
            # [MQTT-3.3.1-12], [MQTT-3.3.1-13]
            self.deliver(message, target, message.retain and target.retain_as_published, now)
        if route.groups:
            matched += self.publish_shared(message, route.groups, now)
        return matched

    def publish_shared(self, message: Message, groups: list[SharedGroup], now: float) -> int:
        """One member of each group gets *message* [MQTT-4.8.2-3]."""
        matched = 0
        for group in groups:
            if isinstance(group, DurableQueue):
                matched += group.put(message, now)
                continue
            target = group.choose(message.topic, is_kept=message.qos > 0)
            if target is not None:
                matched += 1
                retain = message.retain and target.retain_as_published
                self.deliver(message, target, retain, now, group.topic_filter)
        return matched

    def deliver(
        self, message: Message, target: Target, retain: bool, now: float, shared: str = ""
    ) -> None:
        """*shared*: the topic filter of the shared subscription that it comes by."""
        session = target.session
        qos = message.qos if message.qos < target.qos else target.qos
        if not qos and retain and session.is_bridge and target.qos:
            # Not [MQTT-3.8.4-8], knowingly: the state that another broker shows must not stay behind
            # because the link was down, or went down, when it changed (mosquitto#1040).
            qos = 1
        if qos:
            session.deliver(message, qos, retain, target.identifiers, now, shared)
        elif session.connection is not None:
            send_qos0(session.connection, message, retain, target.identifiers, now)

    # -- subscriptions --

    def check_subscription(
        self, connection: Connection, topic_filter: str, qos: int, no_local: bool = False, now: float = 0.0
    ) -> ReasonCode | None:
        """The reason not to grant it; None: it may be granted."""
        session = connection.session
        assert session is not None
        permissions = session.permissions
        wanted = topic_filter
        if topic_filter[0] == "$" and is_replay(topic_filter):
            refusal = self.replay.refusal(connection, topic_filter, no_local, now)
            if refusal is not None:
                return refusal
            wanted = parse_replay(topic_filter, now).topic_filter
        if permissions is not None and not permissions.may_subscribe(wanted):
            return ReasonCode.NOT_AUTHORIZED
        if self.pressure.is_store_failing and session.changes is not None:
            return ReasonCode.QUOTA_EXCEEDED  # a restart would have forgotten it
        if wanted.count("/") >= self.limits.max_topic_levels:
            self.counters.meet("max_topic_levels")
            return ReasonCode.TOPIC_FILTER_INVALID
        if len(session.subscriptions) >= connection.limits.max_subscriptions and not (
            topic_filter in session.subscriptions or connection.is_trusted
        ):
            self.counters.meet("max_subscriptions")
            return ReasonCode.QUOTA_EXCEEDED
        return self.queues.check(topic_filter, qos)

    def subscribe(self, subscription: Subscription, now: float) -> bool:
        """Add, or replace the one to the same filter [MQTT-3.8.4-3]; True if it is a new one."""
        session = subscription.session
        session.subscriptions[subscription.topic_filter] = subscription
        if session.changes is not None:
            session.changes.subscription(subscription)
        return self.route(subscription, now)

    def route(self, subscription: Subscription, now: float) -> bool:
        """From now on it gets messages; True if it is a new one."""
        if subscription.topic_filter.startswith(REPLAY):
            return self.replay.subscribe(subscription, now)
        if subscription.topic_filter.startswith(PREFIX):
            return self.queues.join(subscription)
        return self.routing.add(subscription)

    def unsubscribe(self, session: Session, topic_filter: str) -> bool:
        if session.subscriptions.pop(topic_filter, None) is None:
            return False
        if session.changes is not None:
            session.changes.subscription_removed(session, topic_filter)
        if topic_filter.startswith(REPLAY):
            self.replay.unsubscribe(session, topic_filter)
            return True
        if topic_filter.startswith(PREFIX):
            return self.queues.leave(session, topic_filter)
        return self.routing.remove(session, topic_filter)

    def send_retained(self, subscription: Subscription, now: float) -> None:
        """The retained messages of a new subscription, with the retain flag set [MQTT-3.3.1-8]."""
        if subscription.topic_filter.startswith(("$share/", REPLAY, PREFIX)):
            return  # MQTT 5.0 §4.8.2: no retained messages for shared subscriptions; and none for queues
        self.catch_up.start(subscription, now)

    # -- end --

    def shut_down(self, connections: Iterable[Connection] | None = None) -> None:
        """Tell every client that the server goes (5.0: reason 0x8B), and end the connections. Wills that a
        store keeps are left to the next start (see `Wills.restore`)."""
        self._is_stopping = connections is None
        for connection in list(connections if connections is not None else self.connections):
            connection.close(ReasonCode.SERVER_SHUTTING_DOWN, "the broker is shutting down")
            connection.will = None
