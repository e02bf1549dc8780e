"""What the broker can tell of itself in numbers: each with its name under `$SYS/broker/` and for Prometheus.
Knows where each number is kept, not who asks for it.

A new number is one line of METRICS.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from midge.core.broker import Broker
from midge.core.durable_queue import DurableQueue
from midge.core.limits import COUNTED_LIMITS

Number = int | float


class Sample:
    """The broker at one moment. What takes a walk over all sessions is counted once for all that ask."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.counters = broker.counters
        self.connected = sum(1 for connection in broker.connections if connection.session is not None)
        self.waiting = self.waiting_bytes = 0
        for session in broker.sessions.values():
            self.waiting += len(session.queue) + len(session.in_flight)
            self.waiting_bytes += session.queue.bytes
        self.in_queues = sum(queue.count for queue in broker.queues.by_name.values())
        bytes_in_queues = sum(queue.bytes for queue in broker.queues.by_name.values())
        self.stored = self.waiting + self.in_queues + broker.retained.count
        self.stored_bytes = self.waiting_bytes + bytes_in_queues + broker.retained.bytes
        self.memory, self.memory_maximum = memory()


class Metric(NamedTuple):
    """*topic*: below `$SYS/broker/`, "" if not there (Mosquitto's name where it has one); *name*: Prometheus',
    without `midge_`, with unit and `_total` as its conventions ask, "" if not there; *label*: a part of the
    number that *name* stands for."""

    topic: str
    name: str
    help: str
    read: Callable[[Sample], Number]
    label: tuple[str, str] | None = None

    @property
    def is_counter(self) -> bool:
        return self.name.endswith("_total")


_SESSIONS = "Sessions, by whether their client is connected."
_REFUSED = "Messages that were not taken, by the reason."
_DROPPED = "Messages that were not delivered, by the reason."

METRICS = [
    # -- Mosquitto's, and in its words (mosquitto(8)) --
    Metric("clients/connected", "sessions", _SESSIONS, lambda s: s.connected, ("state", "connected")),
    Metric(
        "clients/disconnected",
        "sessions",
        _SESSIONS,
        lambda s: len(s.broker.sessions) - s.connected,
        ("state", "disconnected"),
    ),
    Metric("clients/active", "", "", lambda s: s.connected),
    Metric("clients/inactive", "", "", lambda s: len(s.broker.sessions) - s.connected),
    Metric("clients/total", "", "", lambda s: len(s.broker.sessions)),
    Metric("clients/maximum", "", "", lambda s: s.counters.sessions_maximum),
    Metric(
        "clients/expired",
        "sessions_expired_total",
        "Sessions whose client did not come back in time.",
        lambda s: s.counters.sessions_expired,
    ),
    Metric("bytes/received", "received_bytes_total", "Bytes from clients.", lambda s: s.counters.bytes_received),
    Metric("bytes/sent", "sent_bytes_total", "Bytes to clients.", lambda s: s.counters.bytes_sent),
    Metric(
        "messages/received",
        "received_packets_total",
        "MQTT packets of any kind from clients.",
        lambda s: s.counters.messages_received,
    ),
    Metric(
        "messages/sent",
        "sent_packets_total",
        "MQTT packets of any kind to clients.",
        lambda s: s.counters.messages_sent,
    ),
    Metric(
        "publish/messages/received",
        "received_messages_total",
        "PUBLISH packets from clients.",
        lambda s: s.counters.publish_received,
    ),
    Metric(
        "publish/messages/sent",
        "sent_messages_total",
        "PUBLISH packets to clients.",
        lambda s: s.counters.publish_sent,
    ),
    Metric(
        "publish/bytes/received",
        "received_payload_bytes_total",
        "Bytes of payload in PUBLISH packets from clients.",
        lambda s: s.counters.publish_bytes_received,
    ),
    Metric(
        "publish/bytes/sent",
        "sent_payload_bytes_total",
        "Bytes of payload in PUBLISH packets to clients.",
        lambda s: s.counters.publish_bytes_sent,
    ),
    Metric("publish/messages/dropped", "", "", lambda s: s.counters.dropped),
    Metric("messages/stored", "", "", lambda s: s.stored),
    Metric("store/messages/count", "", "", lambda s: s.stored),
    Metric("store/messages/bytes", "", "", lambda s: s.stored_bytes),
    Metric(
        "subscriptions/count",
        "subscriptions",
        "Subscriptions, by whether they have a share name.",
        lambda s: s.broker.routing.count - s.broker.routing.shared_count,
        ("shared", "no"),
    ),
    Metric(
        "shared_subscriptions/count",
        "subscriptions",
        "Subscriptions, by whether they have a share name.",
        lambda s: s.broker.routing.shared_count,
        ("shared", "yes"),
    ),
    Metric(
        "retained messages/count",
        "retained_messages",
        "Topics that have a retained message.",
        lambda s: s.broker.retained.count,
    ),
    Metric("heap/current", "", "", lambda s: s.memory),
    Metric("heap/maximum", "", "", lambda s: s.memory_maximum),
    # -- ours --
    Metric(
        "retained messages/bytes",
        "retained_bytes",
        "Bytes of retained messages, topics and payloads.",
        lambda s: s.broker.retained.bytes,
    ),
    Metric(
        "queued messages/count",
        "queued_messages",
        "Messages of QoS 1 and 2 that wait for a session or for its acknowledgement.",
        lambda s: s.waiting,
    ),
    Metric(
        "queued messages/bytes",
        "queued_bytes",
        "Bytes of messages that wait for a session, topics and payloads.",
        lambda s: s.waiting_bytes,
    ),
    Metric(
        "connections/open",
        "connections",
        "Open connections, also those before CONNECT.",
        lambda s: len(s.broker.connections),
    ),
    Metric(
        "connections/accepted",
        "accepted_connections_total",
        "Clients that were let in.",
        lambda s: s.counters.connections,
    ),
    Metric(
        "connections/refused",
        "refused_connections_total",
        "CONNECT packets that were refused.",
        lambda s: s.counters.refused,
    ),
    Metric(
        "connections/protocol errors",
        "protocol_errors_total",
        "Connections closed for a malformed or illegal packet.",
        lambda s: s.counters.protocol_errors,
    ),
    Metric(
        "publish/messages/dropped/queue full",
        "dropped_messages_total",
        _DROPPED,
        lambda s: s.counters.dropped_queue_full,
        ("reason", "queue_full"),
    ),
    Metric(
        "publish/messages/dropped/slow reader",
        "dropped_messages_total",
        _DROPPED,
        lambda s: s.counters.dropped_output_full,
        ("reason", "slow_reader"),
    ),
    Metric(
        "publish/messages/dropped/expired",
        "dropped_messages_total",
        _DROPPED,
        lambda s: s.counters.dropped_expired,
        ("reason", "expired"),
    ),
    Metric(
        "publish/messages/refused/queue full",
        "refused_messages_total",
        _REFUSED,
        lambda s: s.counters.refused_queue_full,
        ("reason", "queue_full"),
    ),
    Metric(
        "publish/messages/refused/store failing",
        "refused_messages_total",
        _REFUSED,
        lambda s: s.counters.refused_store_failing,
        ("reason", "store_failing"),
    ),
    Metric(
        "history/messages/missed",
        "history_missed_messages_total",
        "Messages of QoS 0 that should have been kept for replay while the store couldn't be written.",
        lambda s: s.counters.missed_by_history,
    ),
    Metric(
        "history/messages/count",
        "history_messages",
        "Messages that are kept for replay.",
        lambda s: s.broker.replay.history.count + len(s.broker.replay.history.tail),
    ),
    Metric(
        "history/messages/bytes",
        "history_bytes",
        "Bytes of messages that are kept for replay, topics and payloads; without the latest.",
        lambda s: s.broker.replay.history.bytes,
    ),
    Metric(
        "history/last",
        "history_last",
        "Number of the last message that was kept for replay.",
        lambda s: s.broker.replay.history.last,
    ),
    Metric(
        "replay/readers",
        "replay_readers",
        "Subscriptions to $replay, also of clients that are away.",
        lambda s: s.broker.replay.count,
    ),
    Metric(
        "replay/messages/sent",
        "replayed_messages_total",
        "Messages sent to subscriptions to $replay.",
        lambda s: s.broker.replay.sent,
    ),
    Metric(
        "clients/waiting",
        "publishers_waiting",
        'Clients whose messages wait for room in a queue (queue_full = "wait").',
        lambda s: s.broker.pressure.publishers_waiting,
    ),
]


def _limit(name: str) -> Metric:
    """How often the limit *name* was met; both the topic and the label have the key of the configuration."""
    return Metric(
        f"limits/{name}",
        "limit_met_total",
        "How often a limit was met, by its key in the configuration.",
        lambda sample: sample.counters.limits_met[name],
        ("limit", name),
    )


METRICS += [_limit(name) for name in COUNTED_LIMITS]


# Of each durable queue: topic below queues/NAME/, Prometheus' name, help, where the number is.
_QUEUE_METRICS: list[tuple[str, str, str, Callable[[DurableQueue], Number]]] = [
    (
        "messages/count",
        "queue_messages",
        "Messages on a durable queue, waiting or with a consumer that has not acknowledged them.",
        lambda queue: queue.count,
    ),
    ("messages/bytes", "queue_bytes", "Their topics and payloads.", lambda queue: queue.bytes),
    (
        "messages/waiting",
        "queue_waiting_messages",
        "Messages on a durable queue that no consumer has.",
        lambda queue: queue.waiting,
    ),
    (
        "consumers",
        "queue_consumers",
        "Connected consumers of a durable queue.",
        lambda queue: queue.connected_consumers,
    ),
    (
        "redelivered",
        "queue_redelivered_total",
        "Deliveries from a durable queue that were not a message's first.",
        lambda queue: queue.redelivered,
    ),
    (
        "dead lettered",
        "queue_dead_lettered_total",
        "Messages that a durable queue gave up and published as dead letters.",
        lambda queue: queue.dead_lettered,
    ),
    (
        "dropped",
        "queue_dropped_total",
        "Messages that a durable queue had no room for, or gave up without a dead letter.",
        lambda queue: queue.dropped,
    ),
]


def read_all(broker: Broker) -> Iterator[tuple[Metric, Number]]:
    sample = Sample(broker)
    for metric in METRICS:
        yield metric, metric.read(sample)
    for queue in broker.queues.by_name.values():
        for topic, name, about, read in _QUEUE_METRICS:
            metric = Metric(f"queues/{queue.name}/{topic}", name, about, _never, ("queue", queue.name))
            yield metric, read(queue)


def _never(sample: Sample) -> Number:
    raise AssertionError("a queue's number was read with its metric")


def memory() -> tuple[int, int]:
    """bytes of this process that are in memory, now and at most; 0 where the system doesn't tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0, 0
    # kB on Linux, bytes on macOS (getrusage(2)).
    maximum = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    try:
        with open("/proc/self/statm", "rb") as file:
            current = int(file.read().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux
        return 0, maximum
    return current, max(current, maximum)
