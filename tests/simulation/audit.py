"""Looks into the core's memory and the store: they must tell the same story, and leak nothing.
The only part of the simulation that knows their insides.
"""

from __future__ import annotations

from typing import Any

from midge.core.broker import Broker
from midge.core.connection import Connection
from midge.core.durable_queue import DurableQueue
from midge.core.message import Message
from midge.core.session import Delivery, Lent
from midge.store.memory import MemoryStore
from simulation.model import State

View = dict[str, dict[Any, Any]]

# bytes that `midge.core.backlog` counts for a delivery beside topic name and payload
_DELIVERY_BYTES = 500


def memory_view(broker: Broker) -> View:
    """What the store should hold, going by the memory; what is on disk only is a count for each session."""
    names = ("sessions", "subscriptions", "queue", "on disk", "received", "retained", "wills")
    view: View = {name: {} for name in names}
    stores = [queue.store for queue in broker.queues.by_name.values()]
    for session in (*broker.sessions.values(), *stores):
        if session.changes is None:
            continue
        key = session.key
        view["sessions"][key] = (session.client_id, session.expiry_s, session.ended_at)
        for s in session.subscriptions.values():
            view["subscriptions"][key, s.topic_filter] = (
                s.qos,
                s.no_local,
                s.retain_as_published,
                s.identifier,
            )
        for delivery in (*session.in_flight.values(), *session.queue.in_memory()):
            if isinstance(delivery, Lent) and not delivery.is_released:
                if delivery.qos == 2:
                    view["received"][key, 0x1_0000 | delivery.packet_id] = True
                continue  # a durable queue has it
            view["queue"][key, delivery.position] = _row(delivery)
        if session.queue.stored:
            view["on disk"][key] = session.queue.stored
        for packet_id in (*session.received, *(0x1_0000 | packet_id for packet_id in session.avoided)):
            view["received"][key, packet_id] = True
    for queue in broker.queues.by_name.values():
        for entry in queue_entries(broker, queue):
            view["queue"][queue.store.key, entry.position] = _row(entry)
    view["retained"] = {message.topic: message.payload for message in retained(broker)}
    view["wills"] = dict.fromkeys(broker.wills._kept)
    return view


def _row(delivery: Delivery) -> tuple[Any, ...]:
    return (
        delivery.message.topic,
        delivery.message.payload,
        delivery.qos,
        delivery.retain,
        delivery.identifiers,
        delivery.shared,
        delivery.packet_id,
        delivery.is_released,
    )


def queue_entries(broker: Broker, queue: DurableQueue) -> list[Delivery]:
    """What a durable queue has lent, or got back."""
    lent = [
        delivery.entry
        for session in broker.sessions.values()
        for delivery in session.in_flight.values()
        if isinstance(delivery, Lent) and not delivery.is_released and delivery.consumer.queue is queue
    ]
    return [*lent, *(entry for _, entry in queue.returned)]


def queues(broker: Broker) -> None:
    """Each message is in one place, nobody waits for nothing, and the sizes are right."""
    for queue in broker.queues.by_name.values():
        entries = queue_entries(broker, queue)
        _check(
            queue.count == len(entries) + queue.store.queue.count,
            f"{queue.name}: a count of {queue.count}, {len(entries)} with consumers or back, {queue.waiting} waiting",
        )
        size = sum(entry.message.size() for entry in entries) + queue.store.queue.bytes
        _check(queue.bytes == size, f"{queue.name}: {queue.bytes} bytes, not {size}")
        idle = [consumer.session.client_id for consumer in queue.consumers.values() if consumer.room() > 0]
        _check(not (queue.waiting and idle), f"{queue.name}: {queue.waiting} wait, and {idle} have room")
        for consumer in queue.consumers.values():
            held = [d for d in consumer.session.in_flight.values() if isinstance(d, Lent) and d.consumer is consumer]
            _check(consumer.held == len(held), f"{consumer.session.client_id}: holds {len(held)}, not {consumer.held}")


def retained(broker: Broker) -> list[Message]:
    return [message for portion in broker.retaining.below("#") for message in portion]


def has_all_retained(broker: Broker, connection: Connection) -> bool:
    """Nothing retained is still to come to a subscriber, as it is while it reads too slowly."""
    return connection not in broker.catch_up._cursors


def store_view(store: MemoryStore) -> View:
    """What the store holds, in the same form; `compare` turns the rest of the queues into counts."""
    kept = store._kept
    return {
        "sessions": {key: tuple(row[1:]) for key, row in kept.sessions.items()},
        "subscriptions": {key: tuple(row[2:]) for key, row in kept.subscriptions.items() if row is not None},
        "queue": {
            (key, position): (row[0][1], row[0][2], *row[1:])
            for key, rows in kept.queue.items()
            for position, row in rows.items()
        },
        "on disk": {},
        "received": {key: True for key, is_there in kept.received.items() if is_there},
        "retained": {topic: row[2] for topic, row in kept.retained.items() if row is not None},
        "wills": {key: None for key, row in kept.wills.items() if row is not None},
    }


def compare(wanted: View, found: View, where: str, than: str) -> None:
    if "on disk" in wanted:
        for key, position in list(found["queue"]):
            if (key, position) not in wanted["queue"]:
                found["on disk"][key] = found["on disk"].get(key, 0) + 1
                del found["queue"][key, position]
    for name, rows in wanted.items():
        if rows == found[name]:
            continue
        missing = {key: row for key, row in rows.items() if found[name].get(key, found) != row}
        surplus = {key: row for key, row in found[name].items() if rows.get(key, rows) != row}
        raise AssertionError(f"{where}: {name}: {than} has {missing}, it has {surplus}")


def sizes(broker: Broker, may_exceed: bool) -> None:
    """Queues are within their bounds and know their sizes. *may_exceed*: where publishers are refused or wait, wills
    and what members of shared subscriptions leave go beyond, up to twice as much and 100."""
    in_memory = 0
    for session in broker.sessions.values():
        queue = session.queue
        held = queue.in_memory()
        size = sum(delivery.message.size() for delivery in held)
        _check(queue.count == len(held) + queue.stored, f"{session.client_id}: a count of {queue.count}")
        _check(
            queue.bytes == size if not queue.stored else queue.bytes >= size,
            f"{session.client_id}: {queue.bytes} bytes queued, {size} of them in memory",
        )
        limits = session.limits
        most = limits.max_queued_messages
        if may_exceed and limits.queue_full != "drop-oldest":
            most = 2 * most + 100
        _check(
            queue.count <= most and queue.bytes <= limits.max_queued_bytes,
            f"{session.client_id}: a queue of {queue.count} messages and {queue.bytes} bytes",
        )
        if queue.lasts:
            in_memory += size + _DELIVERY_BYTES * len(held)
    for durable in broker.queues.by_name.values():
        held = durable.store.queue.in_memory()
        in_memory += sum(delivery.message.size() for delivery in held) + _DELIVERY_BYTES * len(held)
    _check(broker.backlog.bytes == in_memory, f"all queues: {broker.backlog.bytes} bytes, not {in_memory}")


def restored(broker: Broker, state: State, expired: set[int]) -> None:
    """After a restart: sessions, subscriptions and retained messages are what was promised; those that have
    *expired* may be there still, or not."""
    # A session that was to end with its connection ends as soon as the timers run.
    sessions = [session for session in broker.sessions.values() if session.expiry_s]
    view = {
        "sessions": {s.client_id: (s.expiry_s, s.ended_at) for s in sessions},
        "subscriptions": {
            (session.client_id, s.topic_filter): (s.qos, s.no_local, s.retain_as_published, s.identifier)
            for session in sessions
            for s in session.subscriptions.values()
        },
        "received": {(s.client_id, number): True for s in sessions for number in s.received},
        "retained": {
            message.topic: int(message.payload)
            for message in retained(broker)
            if int(message.payload) not in expired
        },
    }
    wanted = {
        "sessions": {name: (s.expiry_s, s.ended_at) for name, s in state.sessions.items()},
        "subscriptions": {
            (name, s.topic_filter): tuple(s[1:])
            for name, session in state.sessions.items()
            for s in session.subscriptions.values()
        },
        "received": {(name, number): True for name, s in state.sessions.items() for number in s.received},
        "retained": {topic: number for topic, (number, _) in state.retained.items() if number not in expired},
    }
    compare(wanted, view, "after a restart", "what was promised")


def idle(broker: Broker) -> None:
    """Everybody has everything: no session holds a message or an identifier any more."""
    for session in broker.sessions.values():
        _check(
            not (session.in_flight or session.queue.count or session.received),
            f"{session.client_id} still has {len(session.in_flight)} in flight, {session.queue.count} queued, "
            f"{session.received} received",
        )


def empty(broker: Broker, store: MemoryStore) -> None:
    """All sessions have ended: nothing but retained messages is left, in memory and store."""
    _check(not broker.sessions, f"sessions are left: {list(broker.sessions)}")
    _check(not broker.connections, f"connections are left: {[str(c) for c in broker.connections]}")
    _check(not broker.routing.count, f"{broker.routing.count} subscriptions are left")
    _check(not broker.routing.route("a/b").targets, "a route is left")
    _check(not broker.backlog.bytes, f"{broker.backlog.bytes} bytes are left in the queues")
    _check(broker.next_deadline() is None, f"a deadline is left, {broker.next_deadline()}")
    view = store_view(store)
    for name in ("sessions", "subscriptions", "queue", "received", "wills"):
        _check(not view[name], f"the store's {name} still has {view[name]}")


def _check(holds: object, about: str) -> None:
    if not holds:
        raise AssertionError(about)
