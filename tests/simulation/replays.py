"""Histories of replay: a seed chooses what is published, who reads from where, when batches are committed and settled,
and when all of it crashes; then calm, and the reckoning.

What must hold, whatever happens:
- what was acknowledged at QoS 1 or 2 is in the log, and the log is in the order of its numbers;
- no reader is ever sent what the log doesn't hold in the end, since a crash has undone it;
- a connection with a session of its own gets its part of the log in order, without a gap, each message once;
- a session that lasts gets all of its part, first in order; at QoS 2 each message once.

`python tests/simulation/replays.py 17` runs one history and prints its events; `... 0 10000` runs many.
"""

from __future__ import annotations

import copy
import random
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from midge.core.broker import Broker
from midge.core.changes import Batch
from midge.core.history import HistoryRule
from midge.core.limits import Limits
from midge.core.restore import restore
from midge.protocol import packets as p
from midge.protocol.decoder import Decoder
from midge.protocol.encoder import encode
from midge.protocol.topics import matches
from midge.store.memory import MemoryStore

RULES = [HistoryRule("s/#", 1e9, 10**9, 10**9), HistoryRule("+/x", 1e9, 10**9, 10**9)]
TOPICS = ("s/a", "s/b", "o/x", "o/nobody keeps it")
FILTERS = ("#", "s/#", "s/a", "+/x")


class Client:
    """One connection of 3.1.1, to the core of the moment."""

    def __init__(self, world: World, client_id: str, is_clean: bool) -> None:
        self.world = world
        self.is_open = True
        self.connection = world.broker.open("test", self, world.now)
        self._decoder = Decoder("client", 4)
        self.packets: list[Any] = []
        self.send(p.Connect(client_id, is_clean, 0, 4))

    def send(self, *packets: p.Packet) -> None:
        for packet in packets:
            self.connection.receive_data(encode(packet, 4), self.world.now)

    def flush(self) -> None:
        if self.connection.is_paused or not self.is_open:
            return
        for packet in self._decoder.receive_data(b"".join(self.connection.data_to_send())):
            self.packets += packet.publishes(4) if isinstance(packet, p.PublishRun) else [packet]
        assert self._decoder.error is None
        if self.connection.is_closing and self.connection.is_drained:
            raise AssertionError(f"closed: {self.connection.close_reason}")

    def take(self) -> list[Any]:
        taken, self.packets = self.packets, []
        return taken

    def hold_reading(self, hold: bool) -> None:
        pass

    def lose(self) -> None:
        self.is_open = False
        self.connection.lost(self.world.now)


class Publisher:
    """Numbers, each once; what isn't acknowledged when the broker crashes is forgotten."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.client: Client | None = None
        self.under_way: dict[int, int] = {}  # packet identifier: number
        self.acknowledged: list[int] = []
        self._last_id = 0

    def publish(self, number: int, topic: str, qos: int) -> None:
        assert self.client is not None
        self._last_id = self._last_id % 1000 + 1
        if qos:
            self.under_way[self._last_id] = number
        self.client.send(p.Publish(topic, b"%d" % number, qos, packet_id=self._last_id if qos else 0))

    def listen(self) -> None:
        for packet in () if self.client is None else self.client.take():
            if isinstance(packet, p.Puback | p.Pubrec):
                self.acknowledged.append(self.under_way.pop(packet.packet_id))
            if isinstance(packet, p.Pubrec):
                assert self.client is not None
                self.client.send(p.Pubrel(packet.packet_id))


class Reader:
    """Subscribes at each connection, and acknowledges when it likes."""

    def __init__(self, name: str, lasts: bool, start: int, wanted: str, qos: int) -> None:
        self.name = name
        self.lasts = lasts
        self.start = start  # FROM is after/START; 0: all
        self.wanted = wanted
        self.qos = qos
        self.client: Client | None = None
        self.numbers: list[tuple[int, int]] = []  # (number, QoS) of this session; QoS 2: once per packet identifier
        self.runs: list[list[int]] = []  # of former sessions
        self._received: set[int] = set()
        self._unanswered: list[p.Packet] = []

    def connect(self, world: World) -> None:
        self._unanswered.clear()
        self.client = Client(world, self.name, not self.lasts)
        if not self.lasts and self.numbers:
            self.runs.append([number for number, _ in self.numbers])
            self.numbers = []
        if not self.lasts:
            self._received.clear()
        start = f"after/{self.start}" if self.start else "all"
        topic_filter = f"$replay/{start}/{self.wanted}"
        self.client.send(p.Subscribe(1, [p.Subscription(topic_filter, self.qos)]))

    def listen(self) -> None:
        for packet in () if self.client is None else self.client.take():
            if isinstance(packet, p.Suback):
                assert packet.reason_codes == [self.qos]
            elif isinstance(packet, p.Pubrel):
                self._received.discard(packet.packet_id)
                self._unanswered.append(p.Pubcomp(packet.packet_id))
            elif isinstance(packet, p.Publish):
                if packet.qos < 2 or packet.packet_id not in self._received:
                    self.numbers.append((int(packet.payload), packet.qos))
                if packet.qos == 2:
                    self._received.add(packet.packet_id)
                    self._unanswered.append(p.Pubrec(packet.packet_id))
                elif packet.qos:
                    self._unanswered.append(p.Puback(packet.packet_id))

    def answer(self, count: int) -> bool:
        answers, self._unanswered = self._unanswered[:count], self._unanswered[count:]
        if self.client is not None:
            self.client.send(*answers)
        return bool(answers)


class World:
    def __init__(self, seed: int, trace: list[str] | None = None) -> None:
        self.rng = rng = random.Random(seed)
        self.trace = trace
        self.now = 1_000_000.0
        self.store = MemoryStore()
        self.window = rng.choice([1, 3, 20])
        self.writing: Batch | None = None
        self.number = 0  # of the last message
        self.sent: dict[int, tuple[str, int]] = {}  # topic and QoS, by number
        self.publishers = [Publisher(f"p{n}") for n in range(rng.randint(1, 2))]
        self.readers = [
            Reader(f"r{n}", rng.random() < 0.6, rng.choice([0, 0, 2]), rng.choice(FILTERS), rng.randint(0, 2))
            for n in range(rng.randint(1, 4))
        ]
        self.begin()

    def note(self, *what: object) -> None:
        if self.trace is not None:
            self.trace.append(" ".join(map(str, what)))

    def begin(self) -> None:
        self.broker = Broker(Limits(max_inflight_messages=self.window), None, True)
        self.broker.replay.set_rules(RULES)
        restore(self.broker, self.store.load(), self.store.reader, self.now)
        self.writing = None
        self.settled = self.committed = 0
        for each in (*self.publishers, *self.readers):
            each.client = None
        for publisher in self.publishers:
            publisher.under_way.clear()

    def turn(self) -> None:
        for connection in self.broker.end_turn():
            connection.owner.flush()
        for each in (*self.publishers, *self.readers):
            each.listen()

    # -- what may happen --

    def publish(self) -> None:
        publisher = self.rng.choice(self.publishers)
        if publisher.client is None:
            publisher.client = Client(self, publisher.name, True)
        for _ in range(self.rng.choice([1, 1, 3, 30])):
            self.number += 1
            topic, qos = self.rng.choice(TOPICS), self.rng.randint(0, 2)
            self.sent[self.number] = (topic, qos)
            self.note("publish", self.number, topic, qos)
            publisher.publish(self.number, topic, qos)

    def connect(self) -> None:
        reader = self.rng.choice(self.readers)
        if reader.client is None:
            self.note("connect", reader.name, reader.wanted, reader.qos)
            reader.connect(self)

    def lose(self) -> None:
        reader = self.rng.choice(self.readers)
        if reader.client is not None:
            self.note("lose", reader.name)
            reader.client.lose()
            reader.client = None

    def answer(self) -> None:
        self.rng.choice(self.readers).answer(self.rng.choice([1, 5, 100]))

    def pause(self) -> None:
        reader = self.rng.choice(self.readers)
        if reader.client is not None:
            connection = reader.client.connection
            connection.is_paused = not connection.is_paused
            reader.client.flush()
            if not connection.is_paused and connection.session is not None:
                connection.session.wake_readings(self.now)

    def take(self) -> None:
        if self.writing is None:
            self.writing = self.broker.take_batch()

    def commit(self) -> None:
        if self.writing is not None:
            batch, self.writing = self.writing, None
            self.store.write(batch)
            self.committed = batch.number
            self.broker.committed(batch.number)
            for connection in list(self.broker.connections):
                connection.owner.flush()

    def settle(self) -> None:
        if self.committed > self.settled:
            self.settled = self.rng.randint(self.settled + 1, self.committed)
            self.broker.settled(self.settled)

    def time(self) -> None:
        self.now += 0.06
        self.broker.run_timers(self.now)

    def crash(self) -> None:
        if self.writing is not None and self.rng.random() < 0.5:
            self.store.write(self.writing)  # it was written, and nobody was told
        self.note("crash")
        self.store = copy.deepcopy(self.store)
        self.begin()

    # -- a history --

    def run(self) -> None:
        steps = [self.publish, self.connect, self.lose, self.answer, self.pause, self.take, self.commit, self.settle]
        steps += [self.time, self.crash, self.turn]
        weights = [6, 4, 1, 10, 1, 8, 8, 3, 3, self.rng.choice([0, 0.3]), 20]
        for _ in range(self.rng.choice([50, 200, 500])):
            self.rng.choices(steps, weights)[0]()
        self.calm()
        self.reckon()

    def calm(self) -> None:
        for reader in self.readers:
            if reader.client is None:
                reader.connect(self)
            elif reader.client.connection.is_paused:
                reader.client.connection.is_paused = False
                reader.client.flush()
        quiet = rounds = 0
        while quiet < 3:
            quiet += 1
            rounds += 1
            assert rounds < 10_000, "it never comes to rest"
            for step in (self.time, self.turn, self.take, self.commit, self.settle, self.turn):
                step()
            answers = [reader.answer(1000) for reader in self.readers]
            if any(answers) or any(session.is_reading for session in self.broker.sessions.values()):
                quiet = 0

    def reckon(self) -> None:
        kept = self.store._kept.kept
        rows = sorted(row for rows in kept.values() for row in rows)
        assert [row[0] for row in rows] == list(range(1, len(rows) + 1)), "the numbers have gaps"
        log = [(sequence, int(message[2])) for sequence, _, message in rows]
        in_log = {number for _, number in log}
        assert len(in_log) == len(log), "kept twice"
        for number in in_log:
            assert any(matches(rule.topic_filter, self.sent[number][0]) for rule in RULES), "kept by no rule"
        for publisher in self.publishers:
            for number in publisher.acknowledged:
                assert number in in_log or self.sent[number][0] == TOPICS[3], f"acknowledged, not kept: {number}"
        for reader in self.readers:
            wanted = [n for s, n in log if s > reader.start and matches(reader.wanted, self.sent[n][0])]
            self.check(reader, wanted, in_log)

    def check(self, reader: Reader, wanted: list[int], in_log: set[int]) -> None:
        numbers = [number for number, _ in reader.numbers]
        about = f"{reader.name}, {reader.wanted} at QoS {reader.qos}"
        assert set(numbers) <= in_log, f"{about}: was sent what is not kept: {set(numbers) - in_log}"
        if not reader.lasts:
            assert numbers == wanted or reader.start, f"{about}: {numbers}, not {wanted}"
            for run in reader.runs:
                assert run == wanted[: len(run)] or reader.start, f"{about}: {run} is no beginning of {wanted}"
            return
        first_seen = list(dict.fromkeys(numbers))
        places = {number: place for place, number in enumerate(wanted)}
        assert set(first_seen) <= set(places) or reader.start, f"{about}: unwanted {set(first_seen) - set(places)}"
        order = [places[number] for number in first_seen if number in places]
        assert order == sorted(order), f"{about}: out of order {first_seen}"
        for number in wanted:
            if reader.qos and self.sent[number][1]:
                assert number in first_seen, f"{about}: {number} never came"
        for number in set(numbers):
            if reader.qos == 2 and self.sent[number][1] == 2:
                assert numbers.count(number) == 1, f"{about}: {number} came twice"


def main() -> int:
    first, count = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    for seed in range(first, first + count):
        trace: list[str] = []
        try:
            World(seed, trace).run()
        except Exception:
            print("\n".join(trace if count == 1 else []), f"seed {seed}", sep="\n")
            raise
        if count == 1:
            print("\n".join(trace))
    print(f"{count} histories from seed {first}: all invariants hold")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
