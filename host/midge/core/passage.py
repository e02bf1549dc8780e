"""Which messages have crossed bridges: each is taken once however many ways lead here, and no loop goes on for ever.
Knows marks and counts, not who is linked to whom.

A message that leaves over a bridge gets a mark, a user property of MQTT 5.0: an identifier that no other message
has, and the brokers that it has been to. A broker that has had the message, or is among those, takes it no more.
3.1.1 has no place for a mark. There a loop shows by the same message coming round again and again: so fast that
nothing else does, or, after more patience, by a message of our own that is sent after it and comes round, too.
Whoever sends us back what we sent (other people's brokers without `no local`) is the bridge's to recognise.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from midge.core.message import Message
from midge.core.outgoing import send_qos0
from midge.protocol.wire import encode_string, encode_variable_integer, read_variable_integer

if TYPE_CHECKING:
    from midge.core.session import Session

# The user property; its value is "IDENTIFIER BROKER BROKER ...".
MARK = "midge-passage"
_MARK_NAME = b"\x26" + encode_string(MARK)
# bytes by which a PUBLISH without properties grows at most by the mark that we give it, which has a value of up to 42.
MARK_BYTES_MAX = 80
# The user property by which CONNECT says in 5.0 that it is a bridge's; 3.1.1 has the protocol level's high bit.
BRIDGE = "midge-bridge"
# What the client identifiers of our own bridges start with; nobody from outside takes over their sessions.
OWN_BRIDGES: Final = "bridge/"

# Marks that are remembered, about 250 bytes each: at least so many, at most twice. The two ways round a ring differ by
# what is under way on one of them: a window, or a queue that waits for a link (max_queued_messages is 1000).
_MARKS_MIN = 25_000
# Brokers that a message may pass: more are a configuration gone wrong (Mosquitto has no such limit).
_BROKERS_MAX = 32

# Without marks: the same topic and payload that comes from one bridge and leaves by another, so many times within
# so many seconds, may go round in circles. A loop on one machine makes hundreds of rounds a second, one through a
# cloud ten. Where the bridge that it comes by carries the topic only one way it takes more to suspect it: a sensor
# that repeats itself on its way through us is likelier than a ring of one-way links.
_ROUNDS_MAX = 20
_ROUNDS_MAX_ONE_WAY = 200
_ROUNDS_S = 4.0
# Topics with payloads that are remembered, some 250 bytes each; those that came last.
_ROUNDS_KEPT = 10_000
# A slow loop looks like a sensor that repeats itself, and what a sensor says is not to be lost. So after so many
# arrivals, none later than so many seconds (s) after the one before, and again after twice as many, a probe follows
# what leaves: an empty message on a topic below its topic, once at QoS 0. If that comes back, it is a loop. Where it is
# known that a bridge is part of one, other messages are suspected sooner.
_SLOW_ROUNDS = 25
_SLOW_ROUNDS_KNOWN = 3
_SLOW_S = 600.0
_PROBE = "/midge-loop-"
_PROBES_MAX = 100
# Then what comes is dropped, which ends a loop: of each copy that goes round there is one. If so many more have come
# in more than so many seconds, somebody really repeats it, and it passes until it has been quiet for _EXEMPT_S.
_COPIES_MAX = 40
_COPIES_S = 0.4
_EXEMPT_S = 60.0
# s until a loop that goes on is named again.
_TELL_AGAIN_S = 60.0


class _Rounds:
    """Of one topic and payload. Times in s since the epoch."""

    __slots__ = ("count", "dropped", "is_exempt", "is_proven", "last", "probe_at", "seen", "since")

    def __init__(self, since: float) -> None:
        self.count = 0  # arrivals since `since`
        self.since = since
        self.dropped = 0  # since it was suspected; 0: it isn't
        self.is_exempt = False  # it was suspected, and is no loop
        self.last = since  # arrival
        self.seen = 0  # arrivals without a pause of _SLOW_S
        self.probe_at = _SLOW_ROUNDS  # arrivals at which the next probe leaves
        self.is_proven = False  # a probe has come round


class Passage:
    """What one broker remembers of the messages that crossed its bridges."""

    def __init__(self) -> None:
        self.name = secrets.token_hex(6)  # this broker's, in marks; new at each start
        self.on_loop: Callable[[str, str], None] | None = None  # told (topic, client identifier of the bridge)
        self.dropped = 0  # messages that had been here before
        self._last = 0  # number of the last mark given
        # (identifier, topic). Two halves, of which the older is forgotten at once: taking the oldest out of a
        # dictionary one by one costs a search through all that were taken before (6 us of a message's 9).
        self._marks: set[tuple[str, str]] = set()
        self._older_marks: set[tuple[str, str]] = set()
        self._rounds: OrderedDict[int, _Rounds] = OrderedDict()  # whichever came last at the end
        self._probes: dict[str, int] = {}  # end of a probe's topic: the message (key of `_rounds`) that it followed
        self._proven: dict[str, float] = {}  # by client identifier: when a probe came round by it, s since the epoch
        self._told: dict[str, float] = {}  # by client identifier: when its loop was named, s since the epoch

    def mark(self, message: Message, bridges: list[Session]) -> None:
        """*message* leaves over *bridges*. Call before it is stored or encoded for anyone."""
        if self.has_room_for_mark(bridges) and _find(message) is None:
            _set(message, self._new_mark(message.topic))

    def has_room_for_mark(self, bridges: list[Session]) -> bool:
        """Whether one of *bridges* is not of 3.1.1, or may not be when it is back."""
        for session in bridges:  # noqa: SIM110 - each message asks, and any() costs three times as much
            if session.connection is None or session.connection.version == 5:
                return True
        return False

    def marked(self, topic: str, wire: bytes, version: int) -> list[bytes]:
        """The packets in *wire*, PUBLISHes of *version* on *topic* at QoS 0 without properties, not retained: each in
        5.0, with a mark of its own."""
        topic_size = 2 + len(topic.encode())
        found = []
        at = 0
        while at < len(wire):
            length, body = read_variable_integer(wire, at + 1, len(wire))
            at = body + length
            payload_at = body + topic_size
            mark = _encoded(self._new_mark(topic))
            payload = wire[payload_at + (version == 5) : at]
            head = b"\x30" + encode_variable_integer(topic_size + len(mark) + len(payload))
            found.append(b"".join((head, wire[body:payload_at], mark, payload)))
        return found

    def _new_mark(self, topic: str) -> str:
        self._last += 1
        identifier = f"{self.name}-{self._last:x}"
        self._remember((identifier, topic))
        return f"{identifier} {self.name}"

    def admits(
        self,
        message: Message,
        publisher: Session,
        bridges: list[Session],
        kept: Message | None,
        now: float,
    ) -> bool:
        """Whether *message*, that came over a bridge, is new here; *bridges* are those that it would leave by,
        *kept* is what is retained under its topic name."""
        if _PROBE in message.topic and self._is_probe(message, publisher, now):
            return False
        value = _find(message)
        if value is None:
            if self._goes_round(message, publisher, bridges, now):
                self.dropped += 1
                return False
            return True
        identifier, *brokers = value.split(" ")
        key = (identifier, message.topic)
        has_come = key in self._marks or key in self._older_marks
        if has_come or self.name in brokers or len(brokers) >= _BROKERS_MAX:
            self.dropped += 1
            return False
        self._remember(key)
        if kept is not None and (_find(kept) or "").startswith(identifier + " "):
            self.dropped += 1  # of an earlier start of ours: the other side tells what is retained once more
            return False
        _set(message, f"{value} {self.name}")
        return True

    def _remember(self, key: tuple[str, str]) -> None:
        if len(self._marks) >= _MARKS_MIN:
            self._older_marks, self._marks = self._marks, set()
        self._marks.add(key)

    def _goes_round(self, message: Message, publisher: Session, bridges: list[Session], now: float) -> bool:
        if all(session is publisher for session in bridges):
            return False  # it goes no further
        key = hash((message.topic, message.payload))
        rounds = self._rounds.pop(key, None)
        if rounds is None or now - rounds.last > _SLOW_S:
            rounds = _Rounds(now)
            if now - self._proven.get(publisher.client_id, -_SLOW_S) < _SLOW_S:
                rounds.probe_at = _SLOW_ROUNDS_KNOWN
        elif now - rounds.last > (_EXEMPT_S if rounds.is_exempt else _ROUNDS_S) and not rounds.is_proven:
            rounds.count = rounds.dropped = 0
            rounds.is_exempt = False
            rounds.since = now
        self._rounds[key] = rounds  # the last one
        if len(self._rounds) > _ROUNDS_KEPT:
            self._rounds.popitem(last=False)
        rounds.last = now
        rounds.seen += 1
        if rounds.is_exempt:
            return False
        if not rounds.dropped:
            if now - rounds.since > _ROUNDS_S:
                rounds.count, rounds.since = 0, now
            rounds.count += 1
            if rounds.count <= (_ROUNDS_MAX if publisher in bridges else _ROUNDS_MAX_ONE_WAY):
                if rounds.seen >= rounds.probe_at:
                    rounds.probe_at = 2 * rounds.seen
                    self._send_probe(key, message.topic, publisher, bridges, now)
                return False
            rounds.since = now
            self._tell(message.topic, publisher.client_id, now)
        rounds.dropped += 1
        if rounds.dropped % _COPIES_MAX == 0:
            rounds.is_exempt = now - rounds.since > _COPIES_S
            rounds.since = now
        return True

    def _send_probe(self, key: int, topic: str, publisher: Session, bridges: list[Session], now: float) -> None:
        """After the message that is suspected, to all whom it leaves for."""
        self._last += 1
        name = f"{_PROBE}{self.name}-{self._last:x}"
        if len(self._probes) >= _PROBES_MAX:
            del self._probes[next(iter(self._probes))]
        self._probes[name] = key
        probe = Message(topic + name, b"", 0)
        for session in bridges:
            if session is not publisher and session.connection is not None:
                send_qos0(session.connection, probe, False, (), now)

    def _is_probe(self, message: Message, publisher: Session, now: float) -> bool:
        """Whether *message* is a probe of ours: then what it followed goes round in a loop."""
        topic, _, rest = message.topic.rpartition(_PROBE)
        key = self._probes.pop(_PROBE + rest, None)
        if key is None:
            return False
        rounds = self._rounds.get(key)
        if rounds is not None and not rounds.dropped:
            rounds.is_proven = True
            rounds.dropped = 1
            rounds.since = now
        self._proven[publisher.client_id] = now
        self._tell(topic, publisher.client_id, now)
        return True

    def _tell(self, topic: str, client_id: str, now: float) -> None:
        if self.on_loop is not None and now - self._told.get(client_id, 0.0) > _TELL_AGAIN_S:
            self._told[client_id] = now
            self.on_loop(topic, client_id)


def _find(message: Message) -> str | None:
    """The value of the message's mark."""
    if message.properties is None:
        return None
    for name, value in message.properties.get("user_property", ()):
        if name == MARK:
            return value
    return None


def _set(message: Message, value: str) -> None:
    properties = message.properties or {}
    others = [pair for pair in properties.get("user_property", ()) if pair[0] != MARK]
    message.set_properties({**properties, "user_property": [*others, (MARK, value)]})


def _encoded(value: str) -> bytes:
    """What `encode_properties` makes of a mark alone, in two thirds of the time."""
    field = _MARK_NAME + encode_string(value)
    return encode_variable_integer(len(field)) + field
