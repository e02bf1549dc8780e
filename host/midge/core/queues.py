"""Which durable queues there are, who consumes them, and what feeds them: `$queue/NAME`.
Knows names and settings; how a queue deals with its messages is `durable_queue`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from midge.core.changes import SessionRow
from midge.core.durable_queue import PREFIX, DurableQueue, QueueSettings
from midge.core.message import Message
from midge.core.routing import SharedGroup, Subscription
from midge.core.session import NEVER_EXPIRES, Lent, Session
from midge.core.timers import Timers
from midge.protocol.reasons import ReasonCode
from midge.protocol.topics import split_shared

if TYPE_CHECKING:
    from midge.core.broker import Broker

# What stands for a client identifier in the store. No client has one with a null character [MQTT-1.5.4-2].
_STORED = "\0queue/"


class Queues:
    """All durable queues of one broker. Those that nobody configured come with their first message or consumer, as
    many as `limits.max_queues`; past it one that is empty makes room, if there is one."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.timers: Timers = broker.timers
        self.by_name: dict[str, DurableQueue] = {}
        self.full: set[DurableQueue] = set()
        # In place of those that there can't be: it takes nothing. Made when it is needed.
        self._none: DurableQueue | None = None
        broker.routing.queue_of = self.of_topic

    def of_topic(self, topic: str) -> SharedGroup:
        """The queue of *topic* ($queue/NAME), made if it isn't there."""
        queue = self._find_or_make(topic[len(PREFIX) :])
        return self._no_queue(topic) if queue is None else queue

    def _find_or_make(self, name: str) -> DurableQueue | None:
        queue = self.by_name.get(name)
        if queue is not None:
            return queue
        if not name or not self._may_make_one():
            self._broker.counters.meet("max_queues")
            return None
        return self._make(name)

    def _may_make_one(self) -> bool:
        unconfigured = [queue for queue in self.by_name.values() if not queue.is_configured]
        if len(unconfigured) < self._broker.limits.max_queues:
            return True
        for queue in unconfigured:
            if queue.is_idle:
                self._remove(queue)
                return True
        return False

    def _make(self, name: str, key: int = 0) -> DurableQueue:
        store = self._broker.unlisted_session(_STORED + name, key)
        store.expiry_s, store.ended_at = NEVER_EXPIRES, 0.0
        queue = self.by_name[name] = DurableQueue(self, name, store)
        if key:
            store.changes = self._broker.changes
            store.queue.lasts = True
        elif self._broker.changes is not None:
            store.keep_in(self._broker.changes)
        return queue

    def _remove(self, queue: DurableQueue) -> None:
        del self.by_name[queue.name]
        queue.store.keep_in(None)
        self._broker.routing.forget(queue.topic_filter)

    def _no_queue(self, topic: str) -> DurableQueue:
        if self._none is None:
            self._none = DurableQueue(self, "", self._broker.unlisted_session(_STORED))
            self._none.settings = QueueSettings("", max_messages=0, full="reject")
            self._none.is_full = True
        # It may have one the next time.
        self.timers.at(0.0, lambda now: self._broker.routing.forget(topic))
        return self._none

    def fullness_changed(self, queue: DurableQueue) -> None:
        if queue.is_full:
            self.full.add(queue)
        else:
            self.full.discard(queue)
        self._broker.pressure.update()

    def publish_dead_letter(self, letter: Message, now: float) -> bool:
        """False, and nothing done, if a queue that it would go to has no room."""
        broker = self._broker
        if letter.topic.count("/") >= broker.limits.max_topic_levels:
            return False
        for group in broker.routing.route(letter.topic).groups:
            if isinstance(group, DurableQueue) and not group.has_room():
                return False
        broker.publish(letter, None, now)
        return True

    # -- settings --

    def configure(self, all_settings: Iterable[QueueSettings], now: float) -> None:
        """Take over what the configuration says, at the start and when it has changed."""
        broker, routing = self._broker, self._broker.routing
        for queue in self.by_name.values():
            for topic_filter in queue.settings.filters:
                routing.unbind(topic_filter, queue.name)
        wanted = {settings.name: settings for settings in all_settings}
        for name in [*self.by_name, *wanted]:
            existing = self.by_name.get(name)
            queue = self._make(name) if existing is None else existing
            queue.is_configured = name in wanted
            queue.set_settings(wanted.get(name) or QueueSettings(name), now)
            for topic_filter in queue.settings.filters:
                routing.bind(topic_filter, queue.name, queue)
        for name in wanted:
            routing.forget(PREFIX + name)
        broker.pressure.update()

    # -- consumers --

    def check(self, topic_filter: str, qos: int) -> ReasonCode | None:
        """The reason not to grant a subscription to *topic_filter* as a queue's; None: it is granted, or is none."""
        share_name, plain_filter = split_shared(topic_filter)
        if not plain_filter.startswith(PREFIX):
            return None
        name = plain_filter[len(PREFIX) :]
        if share_name is not None or not name or "+" in name or "#" in name:
            return ReasonCode.TOPIC_FILTER_INVALID  # one queue at a time, and no other group around it
        if qos == 0:
            # Nobody would acknowledge what it is sent. A higher QoS than asked for must not be granted (MQTT 5.0
            # §3.8.4: "the maximum QoS").
            return ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR
        return None if self._find_or_make(name) is not None else ReasonCode.QUOTA_EXCEEDED

    def join(self, subscription: Subscription) -> bool:
        """True if it is a new one. `arrived` is the caller's, once SUBACK is written."""
        queue = self._find_or_make(subscription.topic_filter[len(PREFIX) :])
        if queue is None:
            return False  # it was checked before, but in a SUBSCRIBE with others
        is_new = subscription.session not in queue.consumers
        queue.join(subscription)
        return is_new

    def leave(self, session: Session, topic_filter: str) -> bool:
        consumer = session.consuming.get(topic_filter)
        if consumer is None or not consumer.is_subscribed:
            return False
        consumer.queue.leave(session)
        return True

    def arrived(self, session: Session, now: float) -> None:
        """The client of *session* is there, or has subscribed."""
        for consumer in list(session.consuming.values()):
            consumer.queue.serve_also(consumer, now)

    def gone(self, session: Session, now: float, why: str = "left") -> None:
        """The client of *session* is not there any more: what it holds goes to others at once."""
        for lent in session.take_back():
            lent.consumer.queue.withdrawn(lent, f"its consumer {session.client_id!a} {why}", now)
        for consumer in list(session.consuming.values()):
            if not consumer.is_subscribed and not consumer.held:
                del session.consuming[consumer.subscription.topic_filter]
            consumer.queue.serve(now)

    def sits_on_it(self, lent: Lent, now: float) -> bool:
        """The client of *lent* has not acknowledged it in time: its connection is closed, and what it holds goes to
        others. It can't just be taken back: for the client it stays in the window, and a late acknowledgement would
        be another message's. False: that we don't read from it just now is not its fault."""
        session = lent.consumer.session
        connection = session.connection
        if connection is None or connection.holds:
            return False
        why = f"acknowledged nothing of {lent.consumer.queue.topic_filter} for {now - lent.since:.0f} s"
        connection.close(ReasonCode.ADMINISTRATIVE_ACTION, why)
        self.gone(session, now, why)
        return True

    def session_ended(self, session: Session) -> None:
        for consumer in session.consuming.values():
            if consumer.is_subscribed:
                consumer.queue.leave(session)
        session.consuming.clear()

    def serve_all(self, now: float) -> None:
        for queue in list(self.by_name.values()):
            for consumer in list(queue.consumers.values()):
                queue.serve_also(consumer, now)

    # -- at the start --

    def restored(self, row: SessionRow) -> DurableQueue | None:
        """The queue that *row* of the store stands for; None: it is a client's session."""
        if not row.client_id.startswith(_STORED):
            return None
        return self._make(row.client_id[len(_STORED) :], row.key)
