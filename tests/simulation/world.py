"""The world around the core: time, links that break, a store that crashes, and who is told of it.
Knows what a server process does in which order (midge/server.py), and does it at moments of the seed's choosing.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

from midge.core import incoming
from midge.core.broker import Broker
from midge.core.changes import Batch
from midge.core.connection import Connection
from midge.core.limits import Limits
from midge.core.restore import restore
from midge.protocol import packets as p
from midge.protocol.decoder import Decoder
from midge.protocol.encoder import encode
from midge.store.memory import MemoryStore
from simulation import audit
from simulation.model import NEVER, Filter, Model, Operation, Sent


class Violation(AssertionError):
    """The broker broke an invariant."""


def require(holds: object, about: str) -> None:
    if not holds:
        raise Violation(about)


class Link:
    """One connection of a client: two pipes, and at their end the core's connection, whose owner this is."""

    def __init__(self, world: World, client: Any) -> None:
        self.world = world
        self.client = client
        self.name: str = client.name
        self.version: int = client.version
        self.broker_starts = world.crashes  # which of the brokers it goes to
        self.up: deque[tuple[bytes, Any, Any]] = (
            deque()
        )  # bytes; the packet that they complete, or None; its tag
        self.down: deque[Any] = deque()  # packets
        self.is_open_here = True  # the client's end
        self.is_open_there = True  # the broker's end; cleared when the core has been told
        self.is_closing_there = False  # the broker has closed it, the core is not told yet
        self.is_held = False  # not read from
        self.has_will = False  # set by CONNECT, cleared by DISCONNECT
        self.session_present: bool | None = None
        self.session = 0  # which of the client's sessions this connection got
        self.operation: Operation | None = None  # of CONNECT
        self.unanswered: deque[tuple[type, int, Operation]] = deque()
        self.waiting: deque[tuple[p.Publish, int]] = deque()  # with their numbers: until there is room in a queue
        self.expected_qos0: dict[int, None] = {}
        self.connection = world.broker.open(client.name, self, world.now)
        self._decoder = Decoder("client", 5 if self.version == 5 else 4)

    # -- what the core asks of an owner --

    def flush(self) -> None:
        if not self.is_open_there or self.is_closing_there:
            return
        connection = self.connection
        if not connection.is_paused:
            data = b"".join(connection.data_to_send())
            if data:
                self._left(data)
        elif connection.is_closing:
            self.is_closing_there = True
        if connection.is_closing and connection.is_drained:
            self.is_closing_there = True

    def hold_reading(self, hold: bool) -> None:
        self.is_held = hold

    def _left(self, data: bytes) -> None:
        """*data* has left the broker: acknowledgements in it are promises from now on."""
        packets = self._decoder.receive_data(data)
        require(self._decoder.error is None, f"{self.name} is sent a bad packet: {self._decoder.error}")
        for packet in packets:
            kind = type(packet)
            if kind is p.Connack:
                assert self.operation is not None
                self.operation.is_promised = True
            elif kind in _ANSWERS:
                require(self.unanswered, f"{self.name} is sent {packet}, and asked nothing")
                at = 0
                if self.world.answers_overtake:
                    at = next((at for at, each in enumerate(self.unanswered) if each[0] is kind), 0)
                wanted, packet_id, operation = self.unanswered[at]
                del self.unanswered[at]
                require(
                    kind is wanted and packet.packet_id == packet_id,
                    f"{self.name} is sent {packet} before {wanted.__name__} {packet_id}",
                )
                operation.is_promised = True
        self.down.extend(packets)

    # -- the client's end --

    def send(self, packet: p.Packet, tag: Any = None) -> None:
        if not self.is_open_here:
            return
        data = encode(packet, 5 if self.version == 5 else 4)
        rng = self.world.rng
        if len(data) > 1 and rng.random() < 0.05:  # TCP cuts where it likes
            cut = rng.randrange(1, len(data))
            self.up.append((data[:cut], None, None))
            data = data[cut:]
        self.up.append((data, packet, tag))

    def close_here(self) -> None:
        """The client's end is gone; what is under way to the broker may still arrive, up to some point."""
        self.is_open_here = False
        self.down.clear()
        self.expected_qos0.clear()
        if self.operation is None:  # a CONNECT that came after the client's next one would take that over
            self.up.clear()
        for _ in range(self.world.rng.randrange(len(self.up) + 1)):
            self.up.pop()

    @property
    def is_at_end(self) -> bool:
        """The client has read all that there is, and sees the end."""
        return self.is_open_here and not self.down and (self.is_closing_there or not self.is_open_there)


def _answer(packet: p.Publish) -> type:
    return p.Puback if packet.qos == 1 else p.Pubrec


_ANSWERS = {p.Puback, p.Pubrec, p.Pubcomp, p.Suback, p.Unsuback}


class World:
    """One broker after another on the same store. All that happens is chosen by *rng*."""

    answers_overtake = False  # those to other kinds of packets: a PUBACK may wait for room in a queue

    def __init__(self, rng: random.Random, limits: dict[str, Any]) -> None:
        self.rng = rng
        self.now = 1_000_000.0
        self.limits = limits
        self.store = MemoryStore()
        self.model = Model(self._expect_qos0)
        self.model.messages = {}
        self.links: list[Link] = []
        self.attached: dict[str, Link] = {}  # by client: the link that has its session
        self.expires_at: dict[int, float] = {}
        self.dropped = 0  # by policy, counted by the brokers that have ended
        self.may_exceed = True  # see audit.sizes
        self.crashes = 0
        self.is_turn_due = False
        self._start()

    @property
    def has_pressure(self) -> bool:
        return self.limits.get("queue_full", "drop-oldest") != "drop-oldest"

    def _start(self) -> None:
        self.broker = Broker(Limits(**self.limits), None, is_durable=True)
        restore(self.broker, self.store.load(), self.store.reader, self.now)
        self.waiting: list[Link] = []
        self.batch: Batch | None = None  # being written
        self._view: Any = None  # of the memory, when the batch was taken
        self.is_batch_kept = False
        audit.sizes(self.broker, self.may_exceed)
        self._end_turn()

    @property
    def messages(self) -> dict[int, Sent]:
        return self.model.messages

    def expired(self) -> set[int]:
        """Numbers of the messages whose Message Expiry Interval has passed."""
        return {number for number, when in self.expires_at.items() if when <= self.now}

    def total_dropped(self) -> int:
        return self.dropped + self.broker.counters.dropped_queue_full

    # -- what may happen --

    def open(self, client: Any) -> Link:
        link = Link(self, client)
        self.links.append(link)
        return link

    def arrive(self, link: Link) -> None:
        """Some of what the client sent arrives in one chunk."""
        count = self.rng.randint(1, len(link.up))
        taken = [link.up.popleft() for _ in range(count)]
        # Where queues refuse, one by one: whether they do can't be told from the packet alone.
        for chunk in [[each] for each in taken] if self.has_pressure else [taken]:
            was_closing = link.connection.is_closing
            pressure, counters = self.broker.pressure, self.broker.counters
            refused, waiting = counters.refused_queue_full, pressure.waiting(link.connection)
            link.connection.receive_data(b"".join(data for data, _, _ in chunk), self.now)
            for _, packet, tag in () if was_closing else chunk:
                if packet is None:
                    continue
                if counters.refused_queue_full > refused:
                    self.refused(link, packet)
                elif pressure.waiting(link.connection) > waiting:
                    link.waiting.append((packet, tag))
                else:
                    self._handled(link, packet, tag)
        self.is_turn_due = True
        require(not self.broker.counters.protocol_errors, f"{link.name}: {link.connection.close_reason}")

    def end_turn(self) -> None:
        self.is_turn_due = False
        self._end_turn()

    def _end_turn(self) -> None:
        for connection in self.broker.end_turn():
            link = connection.owner
            link.flush()
            if not connection.is_drained:
                self.waiting.append(link)
        if self.has_pressure:
            audit.sizes(self.broker, self.may_exceed)
        self._write_soon()

    def _write_soon(self) -> None:
        """As midge/writing.py, whose patience is here a matter of luck."""
        changes = self.broker.changes
        assert changes is not None
        if self.batch is not None:
            return
        if self.broker.release_what_is_gone():
            self._release()
        if self.rng.random() < (0.7 if changes.is_rested_on else 0.3):
            self.take_batch()

    def take_batch(self) -> None:
        if self.batch is None:
            self.batch = self.broker.take_batch()
            if self.batch is not None:
                self.model.batch_taken()
                self._view = audit.memory_view(self.broker)

    def write_batch(self) -> None:
        """The batch being written is on the disk now; nobody has been told."""
        assert self.batch is not None
        self._settled = self.store.write(self.batch)
        self.model.batch_kept()
        self.is_batch_kept = True
        audit.compare(self._view, audit.store_view(self.store), "the store after a batch", "memory")

    def tell_batch(self) -> None:
        """The event loop hears that the batch is kept."""
        assert self.batch is not None
        self.broker.committed(self.batch.number)
        if self.rng.random() < 0.1:
            self.broker.committed(self.batch.number)
        if self.rng.random() < 0.7:  # the tables are written later than the journal
            self.broker.settled(self._settled)
        self.batch, self.is_batch_kept = None, False
        self._release()
        self._write_soon()

    def _release(self) -> None:
        """Output that rested on a batch may leave."""
        waiting, self.waiting = self.waiting, []
        self.rng.shuffle(waiting)
        for link in waiting:
            link.flush()
            if not link.connection.is_drained:
                self.waiting.append(link)

    def lose(self, link: Link) -> None:
        """The broker notices that the connection has ended."""
        link.is_open_there = False
        link.up.clear()
        link.unanswered.clear()
        link.waiting.clear()
        link.expected_qos0.clear()
        link.connection.lost(self.now)
        if self.attached.get(link.name) is link:
            del self.attached[link.name]
            self.model.detach(link.name, link.has_will, self.now)
        self.is_turn_due = True

    def pause(self, link: Link) -> None:
        link.connection.is_paused = True

    def resume(self, link: Link) -> None:
        link.connection.is_paused = False
        link.flush()

    def run_timers(self) -> None:
        self.broker.run_timers(self.now)
        self.model.run_timers(self.now)
        self.end_turn()

    def crash(self) -> None:
        """kill -9, then a start on what the store has."""
        if self.batch is not None and not self.is_batch_kept and self.rng.random() < 0.5:
            self.write_batch()
        self.crashes += 1
        self.dropped += self.broker.counters.dropped_queue_full
        for link in self.links:
            link.is_open_there = False
            link.expected_qos0.clear()
            link.unanswered.clear()
            link.waiting.clear()
            link.up.clear()
            for _ in range(self.rng.randrange(len(link.down) + 1)):
                link.down.pop()  # the system sends what it has, as far as the network lets it
        self.attached.clear()
        self.model.crash(self.now)
        self._start()
        audit.restored(self.broker, self.model.state, self.expired())
        self.run_timers()

    def forget_closed_links(self) -> None:
        self.links = [link for link in self.links if link.is_open_here or link.is_open_there]

    # -- what the model is told --

    def _expect_qos0(self, name: str, number: int) -> None:
        link = self.attached.get(name)
        if link is not None and link.is_open_here:
            connection = link.connection
            if not (connection.is_closing or connection.is_paused):
                link.expected_qos0[number] = None

    def _handled(self, link: Link, packet: Any, tag: Any) -> None:
        model = self.model
        kind = type(packet)
        if kind is p.Connect:
            self._connected(link, packet, tag)
            return
        operation = model.begin()
        name = link.name
        if kind is p.Publish:
            self._published(link, packet, self.messages[tag], operation)
        elif kind is p.Puback or kind is p.Pubcomp:
            if tag is not None:
                model.acknowledged(name, tag)
        elif kind is p.Pubrel:
            model.release(name, packet.packet_id)
            link.unanswered.append((p.Pubcomp, packet.packet_id, operation))
        elif kind is p.Subscribe:
            identifiers = (packet.properties or {}).get("subscription_identifier", [0])
            for wanted in packet.subscriptions:
                entry = Filter(
                    wanted.filter, wanted.qos, wanted.no_local, wanted.retain_as_published, identifiers[0]
                )
                is_done = audit.has_all_retained(self.broker, link.connection)
                model.subscribe(name, entry, wanted.retain_handling, self.now, owes_retained=is_done)
            link.unanswered.append((p.Suback, packet.packet_id, operation))
        elif kind is p.Unsubscribe:
            for topic_filter in packet.filters:
                model.unsubscribe(name, topic_filter)
            link.unanswered.append((p.Unsuback, packet.packet_id, operation))
        elif kind is p.Disconnect:
            model.disconnect(name, (packet.properties or {}).get("session_expiry_interval"))
            if packet.reason_code != 4:
                link.has_will = False

    def _connected(self, link: Link, packet: p.Connect, will: tuple[Sent, int] | None) -> None:
        name = link.name
        older = self.attached.get(name)
        if older is not None:
            self.model.detach(name, older.has_will, self.now)
        if link.version == 5:
            expiry_s = packet.properties.get("session_expiry_interval", 0)
        else:
            expiry_s = 0 if packet.clean_start else NEVER
        link.session_present = self.model.connect(name, packet.clean_start, expiry_s, will, self.now)
        link.session = self.model.state.sessions[name].incarnation
        link.operation = self.model.unkept[-1]
        link.has_will = will is not None
        self.attached[name] = link

    def refused(self, link: Link, packet: p.Publish) -> None:
        """A queue is full: nobody gets it. 5.0 is told so, 3.1.1 disconnected."""
        if link.version == 5:
            link.unanswered.append((_answer(packet), packet.packet_id, self.model.begin()))
        else:
            require(link.connection.is_closing, f"{link.name} was refused, and goes on")

    def taken(self, link: Link, packet: p.Publish, number: int) -> None:
        """It has waited, and there is room."""
        self._published(link, packet, self.messages[number], self.model.begin())

    def _published(self, link: Link, packet: p.Publish, message: Sent, operation: Operation) -> None:
        is_new = True
        if packet.qos == 2:
            is_new = self.model.receive(link.name, packet.packet_id)
        if packet.qos:
            link.unanswered.append((_answer(packet), packet.packet_id, operation))
        if is_new:
            if message.expiry_s is not None:
                # Of the first copy: one that is taken again (QoS 1) may find nobody who is owed it.
                self.expires_at.setdefault(message.number, self.now + message.expiry_s)
            self.model.publish(message, self.now)


def _hook(name: str, tell: Callable[[Link, p.Publish, int], None]) -> None:
    """Have the model told of a message that has waited (see `midge.core.pressure`): *name* decides on it."""
    original = getattr(incoming, name)

    def decide(connection: Connection, packet: p.Publish, *rest: Any) -> None:
        original(connection, packet, *rest)
        link = connection.owner
        if isinstance(link, Link) and link.waiting:
            tell(link, *link.waiting.popleft())

    setattr(incoming, name, decide)


_hook("take_publish", lambda link, packet, number: link.world.taken(link, packet, number))
_hook("refuse_publish", lambda link, packet, number: link.world.refused(link, packet))
