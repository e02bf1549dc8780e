"""Shapes of traffic: who publishes to whom, how fast and how it is told apart whether all came.
Knows the clients of this package, nothing of the broker but its address.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from midge.load.clients import (
    BEHIND_MAX,
    SMALL_BYTES,
    Address,
    Client,
    Faults,
    Publisher,
    every_topic,
    serve,
    topic_name,
)

WINDOW = 20  # messages at QoS 1 and 2 that a publisher has under way; midge's and Mosquitto's own window too

# What a subscriber is sent by first byte: PUBLISH of that QoS, and PUBREL.
KINDS: dict[int, tuple[int, ...]] = {0: (0x30,), 1: (0x32,), 2: (0x34, 0x62)}

# Latencies are taken of the last message of each write; more samples than this say no more.
_SAMPLES_MAX = 200_000

_numbers = iter(range(1, 1 << 60))


@dataclass
class Outcome:
    """One run. `count` is of messages delivered, `seconds` until the last of them came."""

    count: int = 0
    seconds: float = 0.0
    sent: int = 0
    faults: Faults = field(default_factory=Faults)
    latencies_us: list[float] = field(default_factory=list)
    cpu_s: float = 0.0  # of this process meanwhile


class Flow:
    """One publisher and those who subscribe to its topic."""

    def __init__(self, publisher: Publisher, subscribers: list[Client]) -> None:
        self.publisher = publisher
        self.subscribers = subscribers
        self.slowest = 0  # messages that every subscriber has; set by `count`
        self._written: deque[tuple[int, float]] = deque()  # how many had been sent at which time

    def count(self) -> int:
        topic = self.publisher.topic
        self.slowest = min([subscriber.delivered_of(topic) for subscriber in self.subscribers])
        return self.slowest

    def publish(self) -> None:
        before = self.publisher.sent
        self.publisher.publish(self.slowest)
        if self.publisher.sent > before:
            self._written.append((self.publisher.sent, time.perf_counter()))

    def take_latencies(self, now: float, latencies_us: list[float]) -> None:
        """From publishing to when the slowest subscriber has it, of messages that every one has now."""
        written = self._written
        while written and written[0][0] <= self.slowest:
            latencies_us.append((now - written.popleft()[1]) * 1e6)

    @property
    def is_done(self) -> bool:
        publisher = self.publisher
        return self.slowest >= publisher.sent and (not publisher.qos or publisher.acknowledged >= publisher.sent)


@dataclass(frozen=True)
class Shape:
    """*pairs* topics with a publisher and a subscriber each; or one with *subscribers*; or *publishers* to one."""

    qos: int
    pairs: int = 1
    subscribers: int = 1
    publishers: int = 0
    window: int = WINDOW
    size: int = 0  # bytes; 0: small ones, compared in whole chunks
    is_clean: bool = True

    def flows(self, address: Address) -> list[Flow]:
        number = next(_numbers)
        root = topic_name(0).split("/")[0]
        if self.publishers:
            everything = Client(address, f"{root}-subscriber-{number}", clean=self.is_clean)
            everything.subscribe(self.qos, every_topic())
            publishers = [self._publisher(address, one, self.size or SMALL_BYTES) for one in range(self.publishers)]
            return [Flow(publisher, [everything]) for publisher in publishers]
        kinds = () if self.size else KINDS[self.qos]
        flows = []
        for topic in range(self.pairs):
            subscribers = [
                Client(address, f"{root}-subscriber-{number}-{topic}-{one}", kinds, self.is_clean, topic)
                for one in range(self.subscribers)
            ]
            for subscriber in subscribers:
                subscriber.subscribe(self.qos)
            flows.append(Flow(self._publisher(address, topic, self.size), subscribers))
        return flows

    def _publisher(self, address: Address, topic: int, size: int) -> Publisher:
        return Publisher(address, self.qos, self.window, topic, size, BEHIND_MAX // (self.publishers or 1))


def run(
    address: Address, seconds: float, shape: Shape, tell: Callable[[float], None] = lambda _passed_s: None
) -> Outcome:
    """Each publisher is as fast as its window allows, for *seconds*; then what is under way may arrive."""
    flows = shape.flows(address)
    subscribers = list({id(one): one for each in flows for one in each.subscribers}.values())
    outcome = Outcome()
    cpu_s = time.process_time()
    start = last = time.perf_counter()
    seen = 0

    def go_on() -> bool:
        nonlocal last, seen
        delivered = sum([one.count() for one in flows])
        now = time.perf_counter()
        if delivered > seen:
            seen, last = delivered, now
            if len(outcome.latencies_us) < _SAMPLES_MAX:
                for one in flows:
                    one.take_latencies(now, outcome.latencies_us)
        tell(now - start)
        if now - start >= seconds:
            return all(one.is_done for one in flows)
        for one in flows:
            one.publish()
        return False

    serve([*(one.publisher for one in flows), *subscribers], go_on)
    outcome.seconds = last - start
    outcome.cpu_s = time.process_time() - cpu_s
    for one in flows:
        one.publisher.close()
        outcome.sent += one.publisher.sent
        for subscriber in one.subscribers:
            outcome.faults.lost += one.publisher.sent - subscriber.delivered_of(one.publisher.topic)
    for subscriber in subscribers:
        outcome.count += subscriber.delivered
        outcome.faults.add(subscriber.faults)
        subscriber.end_session() if not shape.is_clean else subscriber.close()
    return outcome


def ping_pong(address: Address, seconds: float, qos: int) -> Outcome:
    """One message at a time: from `send` to its arrival at the subscriber."""
    root = topic_name(0).split("/")[0]
    sub = Client(address, f"{root}-subscriber-{next(_numbers)}", KINDS[qos])
    sub.subscribe(qos)
    publisher = Publisher(address, qos, 1)
    outcome = Outcome()
    cpu_s = time.process_time()
    begin = time.perf_counter()
    while (start := time.perf_counter()) < begin + seconds:
        publisher.publish(publisher.sent)
        while qos == 2 and publisher.received[0x50] < publisher.sent:
            publisher.receive()  # and answers PUBREC: before that the message may not go on
        while sub.delivered < publisher.sent:
            sub.receive()
        outcome.latencies_us.append((time.perf_counter() - start) * 1e6)
        while qos and publisher.acknowledged < publisher.sent:
            publisher.receive()
        while qos == 2 and sub.received[0x62] < publisher.sent:
            sub.receive()
    outcome.count = outcome.sent = sub.delivered
    outcome.seconds = time.perf_counter() - begin
    outcome.cpu_s = time.process_time() - cpu_s
    outcome.faults.add(sub.faults)
    publisher.close()
    sub.close()
    return outcome
