"""Histories of durable queues: producers and consumers that break, refuse and are late, and a broker that crashes.

Each message that was acknowledged is done; at QoS 2 once. Nobody waits for a message while one waits for somebody.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from midge.core.durable_queue import QueueSettings
from midge.protocol import packets as p
from simulation import audit
from simulation.history import History
from simulation.model import NEVER, Operation, Sent
from simulation.peer import Habits
from simulation.world import Link, World, require

QUEUE = "$queue/jobs"
DEAD = "$queue/jobs.dead"


class _NoModel:
    """What a queue owes, the producers know (`QueuePeer.taken`)."""

    messages: dict[int, Sent]

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class QueueWorld(World):
    """As `World`, with a queue in it."""

    answers_overtake = True

    def __init__(self, rng: random.Random, limits: dict[str, int], settings: QueueSettings) -> None:
        self.settings = settings
        super().__init__(rng, limits)
        self.model = _NoModel()  # type: ignore[assignment]
        self.model.messages = {}

    def _start(self) -> None:
        super()._start()
        self.broker.queues.configure([self.settings], self.now)

    def _end_turn(self) -> None:
        super()._end_turn()
        audit.queues(self.broker)
        audit.sizes(self.broker, self.may_exceed)

    def arrive(self, link: Link) -> None:
        taken = [link.up.popleft() for _ in range(self.rng.randint(1, len(link.up)))]
        was_closing = link.connection.is_closing
        link.connection.receive_data(b"".join(data for data, _, _ in taken), self.now)
        self.is_turn_due = True
        for _, packet, tag in () if was_closing else taken:
            if packet is not None:
                self._handled(link, packet, tag)
        require(not self.broker.counters.protocol_errors, f"{link.name}: {link.connection.close_reason}")

    def _handled(self, link: Link, packet: Any, tag: Any) -> None:
        kind, operation = type(packet), Operation()
        if kind is p.Connect:
            link.operation = operation
            self.attached[link.name] = link
        elif kind is p.Publish and packet.qos:
            link.unanswered.append((p.Puback if packet.qos == 1 else p.Pubrec, packet.packet_id, operation))
        elif kind is p.Pubrel:
            link.unanswered.append((p.Pubcomp, packet.packet_id, operation))
        elif kind is p.Subscribe:
            link.unanswered.append((p.Suback, packet.packet_id, operation))
        elif kind is p.Unsubscribe:
            link.unanswered.append((p.Unsuback, packet.packet_id, operation))

    def crash(self) -> None:
        if self.batch is not None and not self.is_batch_kept and self.rng.random() < 0.5:
            self.write_batch()
        self.crashes += 1
        for link in self.links:
            link.is_open_there = False
            link.unanswered.clear()
            link.up.clear()
            for _ in range(self.rng.randrange(len(link.down) + 1)):
                link.down.pop()
        self.attached.clear()
        self._start()
        self.run_timers()


class QueuePeer:
    """A client: it publishes what it is told, consumes if it `wants` to, and does a job when it is its own, at QoS 2
    with PUBREL. As strict as `Peer`."""

    def __init__(self, history: QueueHistory, name: str, version: int, keeps_session: bool, qos: int) -> None:
        self.history = history
        self.world = history.world
        self.name = name
        self.version = version
        self.keeps_session = keeps_session
        self.qos = qos  # as a consumer
        rng = history.rng
        self.habits = Habits(version=version, acknowledges=rng.choice(["at once", "late", "late"]))
        self.receive_maximum = rng.choice([0, 1, 3]) if version == 5 else 0
        self.refuses = rng.random() < 0.3 and version == 5
        self.wants: dict[str, None] = {}
        self.link: Link | None = None
        self.is_connected = False
        self.under_way: dict[int, tuple[Sent, bool]] = {}
        self.unacknowledged: list[tuple[p.Packet, int | None]] = []
        self.jobs: dict[int, int] = {}  # QoS 2: by identifier, until PUBREL
        self._in_hand: dict[int, None] = {}  # identifiers that it has not acknowledged
        self._last_id = 0

    # -- what it does --

    def connect(self) -> None:
        if self.link is not None:
            self.cut()
        self.link = self.world.open(self)
        self.is_connected = False
        properties: p.Properties = {}
        if self.version == 5 and self.keeps_session:
            properties["session_expiry_interval"] = NEVER
        if self.receive_maximum:
            properties["receive_maximum"] = self.receive_maximum
        self.link.send(
            p.Connect(self.name, not self.keeps_session, 0, self.version, will=None, properties=properties)
        )

    def gone(self) -> None:
        if self.link is not None:
            self.link.is_open_here = False
        self.link, self.is_connected = None, False
        self.unacknowledged.clear()
        self._in_hand.clear()
        if not self.keeps_session:
            self._new_session()

    def cut(self) -> None:
        if self.link is not None:
            self.link.close_here()
            self.gone()

    def _new_session(self) -> None:
        # What it took over and didn't do is lost with it, as the page says.
        self.history.excused.update(self.jobs.values())
        self.jobs.clear()
        # What it has no acknowledgement of it publishes anew, as messages of its new session.
        self.under_way = {packet_id: each for packet_id, each in self.under_way.items() if not each[1]}
        for message, _ in self.under_way.values():
            self.history.published[message.number] += 1

    def consume(self, topic: str, does: bool = True) -> None:
        if does:
            self.wants[topic] = None
        else:
            self.wants.pop(topic, None)
        if self.link is not None and self.is_connected:
            packet: Any = p.Subscribe(self._next_id(), [p.Subscription(topic, self.qos)], None)
            self.link.send(packet if does else p.Unsubscribe(self._next_id(), [topic]))

    def publish(self, message: Sent) -> None:
        assert self.link is not None
        packet_id = self._next_id() if message.qos else 0
        if message.qos:
            self.under_way[packet_id] = (message, False)
            self.history.published[message.number] += 1
        self._send(message, packet_id)

    def _send(self, message: Sent, packet_id: int, dup: bool = False) -> None:
        assert self.link is not None
        packet = p.Publish(message.topic, b"%d" % message.number, message.qos, False, dup, packet_id, None)
        self.link.send(packet, message.number)

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def acknowledge(self, count: int = 1_000_000) -> None:
        while self.unacknowledged and count and self.link is not None:
            packet, number = self.unacknowledged.pop(0)
            if not isinstance(packet, p.Pubrec):
                self._in_hand.pop(packet.packet_id, None)  # type: ignore[union-attr]
            if number is not None:
                self.history.done[number] += 1
            self.link.send(packet)
            count -= 1

    # -- what comes --

    def receive(self, packet: Any) -> None:
        kind = type(packet)
        if kind is p.Connack:
            self._on_connack(packet)
        elif kind is p.Publish:
            self._on_publish(packet)
        elif kind is p.Pubrel:
            self._in_hand[packet.packet_id] = None
            if packet.packet_id in self.jobs:
                self.history.done[self.jobs.pop(packet.packet_id)] += 1
            self._answer(p.Pubcomp(packet.packet_id), None)
        elif kind is p.Puback or kind is p.Pubcomp:
            message, _ = self.under_way.pop(packet.packet_id, (None, False))
            if message is not None and (packet.reason_code < 0x80 or kind is p.Pubcomp):
                self.history.taken.add(message.number)
        elif kind is p.Pubrec:
            message, _ = self.under_way.get(packet.packet_id, (None, False))
            if packet.reason_code >= 0x80:
                self.under_way.pop(packet.packet_id, None)
                return
            if message is not None:
                self.history.taken.add(message.number)
                self.under_way[packet.packet_id] = (message, True)
            assert self.link is not None
            self.link.send(p.Pubrel(packet.packet_id))
        elif kind is p.Suback:
            require(packet.reason_codes == [self.qos], f"{self.name}: {packet}")

    def _on_connack(self, packet: p.Connack) -> None:
        require(packet.reason_code == 0, f"{self.name}: {packet}")
        self.is_connected = True
        assert self.link is not None
        if not packet.session_present:
            self._new_session()
        for topic in self.wants:
            if not packet.session_present or self.history.rng.random() < 0.1:
                self.link.send(p.Subscribe(self._next_id(), [p.Subscription(topic, self.qos)], None))
        for packet_id, (message, is_received) in self.under_way.items():
            if is_received:
                self.link.send(p.Pubrel(packet_id))
            else:
                self._send(message, packet_id, dup=True)
                if message.qos == 1:
                    self.history.published[message.number] += 1

    def _on_publish(self, packet: p.Publish) -> None:
        number = int(packet.payload)
        counts = dict((packet.properties or {}).get("user_property", ()))
        require(
            self.version != 5 or (packet.dup == ("midge-deliveries" in counts)) or "midge-dead-letter-queue" in counts,
            f"{self.name}: {packet}",
        )
        require(packet.packet_id not in self._in_hand, f"{self.name}: identifier {packet.packet_id} is in use")
        self._in_hand[packet.packet_id] = None
        limit = self.receive_maximum or self.world.settings.prefetch
        require(len(self._in_hand) <= limit * 2, f"{self.name}: {len(self._in_hand)} in hand")  # two queues
        if not packet.dup and packet.topic == QUEUE:
            self.history.first_delivered(self.name, number)
        refuses = self.refuses and self.history.rng.random() < 0.3
        if self.qos == 1:
            self._answer(p.Puback(packet.packet_id, 0x80 if refuses else 0), None if refuses else number)
            return
        require(
            self.jobs.get(packet.packet_id, number) == number,
            f"{self.name}: {number} under {packet.packet_id}, by which it knows {self.jobs.get(packet.packet_id)}",
        )
        if refuses and packet.packet_id not in self.jobs:
            self._in_hand.pop(packet.packet_id)
            self._answer(p.Pubrec(packet.packet_id, 0x80), None)
            return
        self.jobs[packet.packet_id] = number
        self._answer(p.Pubrec(packet.packet_id), None)

    def _answer(self, packet: p.Packet, number: int | None) -> None:
        self.unacknowledged.append((packet, number))
        if self.habits.acknowledges == "at once":
            self.acknowledge()


class QueueHistory(History):
    """As `History`, with the events that clients of a queue cause."""

    def __init__(self, seed: int, trace: list[str] | None = None) -> None:
        self.seed = seed
        self.rng = rng = random.Random(f"queue {seed}")
        self.trace = trace
        self.steps = int(rng.choice([40, 80, 150, 300]))
        self.qos_in, self.qos_out = rng.choice([1, 2]), rng.choice([1, 2])
        settings = QueueSettings(
            "jobs",
            filters=("jobs/#",) if rng.random() < 0.3 else (),
            max_messages=rng.choice([3, 1000, 1000]),
            full=rng.choice(["push-back", "wait"]),
            max_deliveries=rng.choice([0, 2, 20]),
            prefetch=rng.choice([1, 1, 3]),
            ack_timeout=(0, 0, 2, 20)[seed % 4],
        )
        limits = {
            "max_inflight_messages": rng.choice([2, 20]),
            "max_message_memory": rng.choice([0, 2000, 64_000_000]),
        }
        self.world: QueueWorld = QueueWorld(rng, limits, settings)
        self.topic = "jobs/1" if settings.filters and rng.random() < 0.5 else QUEUE
        self.published: Counter[int] = Counter()  # how often, as messages of their own
        self.taken: set[int] = set()  # acknowledged to the producer
        self.done: Counter[int] = Counter()
        self.excused: set[int] = set()
        self._first: dict[tuple[str, int, str], int] = {}
        self.messages: dict[int, Sent] = {}
        self.peers: list[Any] = [
            QueuePeer(self, f"c{number}", rng.choice([4, 5]), rng.random() < 0.6, self.qos_out)
            for number in range(rng.randint(2, 5))
        ]
        for peer in self.peers:
            if rng.random() < 0.5:
                peer.wants[QUEUE] = None
        self.next_number = 0
        self.weights = self._choose_weights()

    def run(self) -> None:
        for _ in range(self.steps):
            self._step(self.weights)
        self._calm_queue()
        lost = {number for number in self.taken if not self.done[number]} - self.excused
        require(not lost, f"acknowledged and never done: {sorted(lost)}")
        if self.qos_out == 2:
            again = [number for number, count in self.done.items() if count > self.published[number]]
            require(not again, f"done again: {again}")
            if self.qos_in == 2:
                twice = [number for number in again if self.published[number] == 1]
                require(not twice, f"done twice: {twice}")
        for queue in self.world.broker.queues.by_name.values():
            require(not queue.count, f"{queue.name} still has {queue.count}")
        audit.idle(self.world.broker)
        view = audit.store_view(self.world.store)
        require(not view["queue"], f"the store's queue still has {view['queue']}")

    def first_delivered(self, name: str, number: int) -> None:
        """Messages of one producer come to one consumer in order, those that are delivered for the first time."""
        message = self.messages[number]
        if self.published[number] > 1 or message.qos != 2 or self.world.settings.max_messages < 1000:
            return  # sent again, it may have been taken again, later; or refused, and taken then
        key = (name, self.world.crashes, message.publisher)
        require(self._first.get(key, 0) < number, f"{name}: {number} after {self._first.get(key)}")
        self._first[key] = number

    def _act(self) -> bool:
        rng = self.rng
        peer: QueuePeer = rng.choice(self.peers)
        if peer.link is None or rng.random() < 0.03:
            self._note("connect", peer.name)
            peer.connect()
            return True
        if not peer.is_connected:
            return False
        if rng.random() < 0.7:
            for _ in range(rng.choice([1, 1, 3])):
                self.next_number += 1
                message = Sent(self.next_number, peer.name, self.topic, self.qos_in, False)
                self.messages[self.next_number] = message
                self._note("publish", message)
                peer.publish(message)
        elif rng.random() < 0.8:
            does = rng.random() < 0.7
            self._note("subscribe" if does else "unsubscribe", peer.name)
            peer.consume(QUEUE, does)
        else:
            self._note("disconnect", peer.name)
            assert peer.link is not None
            peer.link.send(p.Disconnect(0, None))
            peer.link.is_open_here = False
            peer.link.down.clear()
            peer.gone()
        return True

    def _calm_queue(self) -> None:
        """Everybody comes back, refuses nothing, and one takes what is left, the dead letters too."""
        self._note("calm")
        for peer in self.peers:
            peer.refuses = False
        self._rest()
        last = QueuePeer(self, "last", 5, True, self.qos_out)
        last.refuses = False
        last.wants = {QUEUE: None, DEAD: None}
        self.peers.append(last)
        for peer in self.peers:
            if not (peer.link is not None and peer.is_connected):
                self._note("connect", peer.name)
                peer.connect()
        self._rest()
