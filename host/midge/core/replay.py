"""`$replay/FROM/FILTER`: a session is sent what was kept, in order and as it has room, then what is kept from then on.
Knows how far each session has read; what is kept, and where, is `history`'s.

One number says how far a session has read: everything up to it was handed to the session, nothing beyond it. So the
seam between what was kept and what is published now is no seam: both are read by the same number, and the last of
what is kept is what was published last. In a session that lasts the number goes into the store with the deliveries
that led to it, so that a restart finds both or neither.

What a reader is sent rests on the commit that keeps it: nobody is told of a message whose number a crash would give
to another one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from midge.core.changes import ReadError
from midge.core.history import History, HistoryRule, Kept, restored_kept
from midge.core.replay_from import ReplayError, Start, parse_replay
from midge.protocol.reasons import ReasonCode
from midge.protocol.topics import matches, overlap

if TYPE_CHECKING:
    from midge.core.broker import Broker
    from midge.core.changes import KeptRow
    from midge.core.connection import Connection
    from midge.core.message import Message
    from midge.core.routing import Subscription, Target
    from midge.core.session import Session

# Messages that all readers together are sent in one turn, and that one of them is: a history of a million must
# neither stall the others nor fill the memory. A page of the store counts as _PAGE_WORK, so many bytes as another one.
_TURN_WORK = 500
_READER_WORK = 250
_PAGE_WORK = 50
_WORK_BYTES = 2000
# s until the next portion; and until we look again whether those who had no room have some.
_TURN_S = 0.001
_POLL_S = 0.05
# Pieces of output that wait for a commit before a reader is sent more.
_UNREAD_MAX = 1000
# Topic names of which is remembered who reads them, and whether one reader does.
_TOPICS_MAX = 10_000


class Reading:
    """How far one session has read. `after`: up to this number it was handed everything that it is to have.
    `is_idle`: there is nothing beyond it for this session; set when it has come to the end, cleared by what is
    kept next and when its client goes."""

    __slots__ = (
        "_permissions",
        "_replay",
        "_topics",
        "after",
        "at",
        "is_idle",
        "page",
        "page_end",
        "session",
        "stored",
        "target",
        "topic_filter",
        "wanted",
    )

    def __init__(self, replay: Replay, subscription: Subscription, wanted: str, after: int) -> None:
        self._replay = replay
        self.session: Session = subscription.session
        self.topic_filter = subscription.topic_filter  # as it was subscribed to
        self.wanted = wanted  # of it, the FILTER
        self.target: Target = subscription.target
        self.after = after
        self.stored = after  # what the store has of `after`, or will have
        self.is_idle = False
        self.page: list[KeptRow] = []  # read from the store, up to number `page_end`
        self.page_end = 0
        self.at = 0  # of the page's next
        self._topics: dict[str, bool] = {}  # whether it is sent them, with these permissions:
        self._permissions: object = None

    def wake(self, now: float) -> None:
        """Its client may have room for more."""
        if not self.is_idle:
            self._replay.wake(self, now)

    def wants(self, topic: str) -> bool:
        permissions = self.session.permissions
        if permissions is not self._permissions or len(self._topics) >= _TOPICS_MAX:
            self._topics.clear()
            self._permissions = permissions
        found = self._topics.get(topic)
        if found is None:
            found = matches(self.wanted, topic) and (permissions is None or permissions.may_read(topic))
            self._topics[topic] = found
        return found

    def drop_page(self) -> None:
        self.page, self.page_end, self.at = [], 0, 0


class Replay:
    """All readers of one broker, and what they read."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.history = History()
        # Told (connection, topic filter, why) of each replay that is refused.
        self.on_refused: Callable[[Connection, str, str], None] | None = None
        self.sent = 0  # messages, to all readers
        self.due: dict[Reading, None] = {}  # to be looked at when the turn ends
        self._readings: dict[Reading, None] = {}
        self._later: dict[Reading, None] = {}  # to be looked at when `_timer` is due
        self._is_timed = False
        self._is_moving = False  # of those in `_later`, some could be sent more at once
        self._now = 0.0  # of the last that happened, s since the epoch
        self._readers_of: dict[str, list[Reading]] = {}  # by topic name

    @property
    def count(self) -> int:
        """Readers, also those whose clients are away."""
        return len(self._readings)

    def set_rules(self, rules: list[HistoryRule]) -> None:
        """What is to be kept from now on."""
        self.history.rules = rules
        self._broker.routing.set_histories([rule.topic_filter for rule in rules])

    def keep(self, message: Message, name: str, now: float) -> None:
        """*message* is published, and the rule *name* keeps it."""
        broker = self._broker
        changes = broker.changes
        if changes is None:
            return
        if broker.pressure.is_store_failing and changes.is_large:
            broker.counters.missed_by_history += 1  # QoS 0; what is acknowledged was refused before
            return
        sequence = self.history.keep(message, name, now, changes)
        readers = self._readers_of.get(message.topic)
        if readers is None:
            readers = self._find_readers(message.topic)
        for reading in readers:
            if reading.is_idle:
                reading.is_idle = False
                reading.after = sequence - 1
                self.wake(reading, now)

    def _find_readers(self, topic: str) -> list[Reading]:
        if len(self._readers_of) >= _TOPICS_MAX:
            self._readers_of.clear()
        readers = self._readers_of[topic] = [each for each in self._readings if matches(each.wanted, topic)]
        return readers

    # -- subscriptions --

    def refusal(self, connection: Connection, topic_filter: str, no_local: bool, now: float) -> ReasonCode | None:
        """The reason not to grant it; None: there is such a replay."""
        try:
            self._start(connection, topic_filter, no_local, now)
        except ReplayError as error:
            if self.on_refused is not None:
                self.on_refused(connection, topic_filter, str(error))
            if topic_filter.startswith("$share/"):
                return ReasonCode.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED
            return ReasonCode.TOPIC_FILTER_INVALID
        return None

    def _start(self, connection: Connection, topic_filter: str, no_local: bool, now: float) -> Start:
        if topic_filter.startswith("$share/"):
            raise ReplayError("a replay can't be shared: a [[queue]] gives each message to one of several")
        if no_local or connection.is_bridge:
            raise ReplayError("what is kept doesn't say who sent it, as a bridge, or no local, would have to know")
        start = parse_replay(topic_filter, now)
        rules = self.history.rules
        if not any(overlap(rule.topic_filter, start.topic_filter) for rule in rules):
            raise ReplayError(f"no [[history]] of the configuration keeps any of {start.topic_filter}")
        return start

    def subscribe(self, subscription: Subscription, now: float) -> bool:
        """Begin to read; False: the session had done so by the same filter, and goes on where it was."""
        session = subscription.session
        readings = session.readings
        reading = None if readings is None else readings.get(subscription.topic_filter)
        if reading is not None:
            reading.target = subscription.target
            reading.wake(now)
            return False
        start = parse_replay(subscription.topic_filter, now)
        history = self.history
        if start.since is not None:
            after = history.before(start.topic_filter, start.since)
        elif start.after <= history.last:
            after = start.after
        else:
            after = 0  # no number of ours: whoever has it knows another store's messages, and none of this one's
        self._add(Reading(self, subscription, start.topic_filter, after), now)
        if session.changes is not None:
            session.changes.position(session, subscription.topic_filter, after)
        return True

    def restore(self, subscription: Subscription, after: int, now: float) -> None:
        """At the start: a session that lasts had read up to number *after*."""
        start = parse_replay(subscription.topic_filter, now)
        self._add(Reading(self, subscription, start.topic_filter, min(after, self.history.last)), now)

    def _add(self, reading: Reading, now: float) -> None:
        session = reading.session
        if session.readings is None:
            session.readings = {}
        session.readings[reading.topic_filter] = reading
        self._readings[reading] = None
        self._readers_of.clear()
        self.wake(reading, now)

    def unsubscribe(self, session: Session, topic_filter: str) -> None:
        if session.readings is not None:
            reading = session.readings.pop(topic_filter, None)
            if reading is not None:
                self._forget(reading)
                if session.changes is not None:
                    session.changes.position(session, topic_filter, None)

    def session_ended(self, session: Session) -> None:
        readings, session.readings = session.readings, None
        for reading in (readings or {}).values():
            self._forget(reading)

    def _forget(self, reading: Reading) -> None:
        for readings in (self._readings, self.due, self._later):
            readings.pop(reading, None)
        self._readers_of.clear()

    def client_left(self, session: Session) -> None:
        """What is read for it has to wait until it comes back."""
        for reading in (session.readings or {}).values():
            if reading.is_idle:
                reading.is_idle = False
                reading.after = self.history.last
            reading.drop_page()
            self._store_position(reading)

    # -- reading --

    def wake(self, reading: Reading, now: float) -> None:
        self._now = now
        self._later.pop(reading, None)
        self.due[reading] = None

    def turn_ends(self) -> None:
        """Send those who have something to come, and room for it, the next of it."""
        due, self.due = self.due, {}
        left = _TURN_WORK
        now = self._now
        for reading in due:
            if left <= 0:
                self._later[reading] = None
                self._is_moving = True
                continue
            connection = reading.session.connection
            if connection is None or connection.is_closing:
                continue
            try:
                left -= self._read(reading, connection, now)
            except ReadError as error:
                connection.close(ReasonCode.UNSPECIFIED_ERROR, str(error))
            self._store_position(reading)
        if self._later and not self._is_timed:
            self._is_timed = True
            self._broker.timers.at(now + (_TURN_S if self._is_moving else _POLL_S), self._go_on)
        self._is_moving = False

    def _go_on(self, now: float) -> None:
        self._is_timed = False
        self._now = now
        later, self._later = self._later, {}
        self.due.update(later)

    def _store_position(self, reading: Reading) -> None:
        changes = reading.session.changes
        if changes is not None and reading.after != reading.stored:
            reading.stored = reading.after
            changes.position(reading.session, reading.topic_filter, reading.after)

    def _read(self, reading: Reading, connection: Connection, now: float) -> int:
        """How much work it was."""
        work = 0
        while work < _READER_WORK:
            if not self._has_room(reading, connection):
                return work
            if reading.at < len(reading.page):
                kept = restored_kept(reading.page[reading.at])
                reading.at += 1
            else:
                found = self._next(reading)
                if found is None:
                    if not reading.is_idle:  # a page was read
                        work += _PAGE_WORK
                        continue
                    self._has_read_all(reading, connection, now)
                    return work
                kept = found
            if not self._send(reading, connection, kept, now):
                return work
            reading.after = kept.sequence
            work += 1 + len(kept.message.payload) // _WORK_BYTES
        self._later[reading] = None
        self._is_moving = True
        return work

    def _next(self, reading: Reading) -> Kept | None:
        """The next of the tail; None: a page was read instead, or (then it is idle) there is none."""
        history = self.history
        if reading.page_end > reading.after:
            reading.after = reading.page_end  # the page is done; what isn't in it isn't wanted
        reading.drop_page()
        at = reading.after + 1 - history.tail_first
        if at < 0:
            reading.page, reading.page_end = history.page(reading.wanted, reading.after)
            return None
        if at < len(history.tail):
            return history.tail[at]
        reading.is_idle = True
        return None

    def _has_room(self, reading: Reading, connection: Connection) -> bool:
        """If not, it will be looked at again: when its client acknowledges or reads something, or in a moment."""
        if connection.is_paused or (connection.held and connection.unread > _UNREAD_MAX):
            self._later[reading] = None
            return False
        return not reading.target.qos or reading.session.has_room(reading.target.qos)

    def _send(self, reading: Reading, connection: Connection, kept: Kept, now: float) -> bool:
        """False: not yet. What isn't wanted any more is passed over."""
        message, broker = kept.message, self._broker
        if not reading.wants(message.topic) or message.is_expired(now):
            return True
        if kept.batch > broker.committed_batch:
            if broker.changes is not None and broker.changes.is_stuck:
                return False  # `fill_window` comes by when the store can be written again
            connection.rest_on_commit()
        if connection.version == 5:
            message = kept.numbered()
        self.sent += 1
        target = reading.target
        broker.deliver(message, target, message.retain and target.retain_as_published, now)
        return True

    def _has_read_all(self, reading: Reading, connection: Connection, now: float) -> None:
        if connection.is_ping_waiting:
            reading.session.fill_window(now)
