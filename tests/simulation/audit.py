"""Looks into the core's memory and the store's tables: they must tell the same story, and leak nothing.
The only part of the simulation that knows the core's insides.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from midge.core.broker import Broker
from simulation.model import State

View = dict[str, dict[Any, Any]]


def memory_view(broker: Broker) -> View:
    """What the store should hold, going by the memory."""
    view: View = {name: {} for name in ("sessions", "subscriptions", "queue", "received", "retained")}
    stored: set[int] = set()
    for session in broker.sessions.values():
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
        for delivery in (*session.in_flight.values(), *session.queue):
            view["queue"][key, delivery.position] = (
                delivery.message.key, delivery.qos, delivery.retain, delivery.identifiers,
                delivery.packet_id, delivery.is_released,
            )  # fmt: skip
            stored.add(delivery.message.key)
        for packet_id in session.received:
            view["received"][key, packet_id] = (key, packet_id)
    for message in broker.retained.matching("#"):
        view["retained"][message.topic] = message.key
        stored.add(message.key)
    view["messages"] = dict.fromkeys(stored)
    return view


def store_view(tables: View) -> View:
    """What the store holds, in the same form."""
    return {
        "sessions": {key: tuple(row[1:]) for key, row in tables["sessions"].items()},
        "subscriptions": {key: tuple(row[2:6]) for key, row in tables["subscriptions"].items()},
        "queue": {key: tuple(row[2:8]) for key, row in tables["queue"].items()},
        "received": dict(tables["received"]),
        "retained": {topic: row[1] for topic, row in tables["retained"].items()},
        "messages": dict.fromkeys(tables["messages"]),
    }


def compare(wanted: View, found: View, where: str, than: str) -> None:
    for name, rows in wanted.items():
        if rows == found[name]:
            continue
        missing = {key: row for key, row in rows.items() if found[name].get(key, found) != row}
        surplus = {key: row for key, row in found[name].items() if rows.get(key, rows) != row}
        raise AssertionError(f"{where}: {name}: {than} has {missing}, it has {surplus}")


def references(broker: Broker) -> None:
    """Each message counts those who hold it; each queue its bytes."""
    counted: Counter[int] = Counter()
    messages: dict[int, Any] = {}
    for session in broker.sessions.values():
        size = sum(delivery.message.size() for delivery in session.queue)
        _check(
            session.queued_bytes == size,
            f"{session.client_id}: queued_bytes {session.queued_bytes}, not {size}",
        )
        limits = session.limits
        _check(
            len(session.queue) <= limits.max_queued_messages and size <= limits.max_queued_bytes,
            f"{session.client_id}: a queue of {len(session.queue)} messages and {size} bytes",
        )
        if session.changes is None:
            continue
        for delivery in (*session.in_flight.values(), *session.queue):
            counted[id(delivery.message)] += 1
            messages[id(delivery.message)] = delivery.message
    for message in broker.retained.matching("#"):
        counted[id(message)] += 1
        messages[id(message)] = message
    for identity, count in counted.items():
        message = messages[identity]
        _check(
            message.references == count and message.key,
            f"{message.topic} {message.payload!r}: {message.references} references, {count} hold it, key {message.key}",
        )


def restored(broker: Broker, state: State) -> None:
    """After a restart: sessions, subscriptions and retained messages are what was promised."""
    view = {
        "sessions": {s.client_id: (s.expiry_s, s.ended_at) for s in broker.sessions.values()},
        "subscriptions": {
            (session.client_id, s.topic_filter): (s.qos, s.no_local, s.retain_as_published, s.identifier)
            for session in broker.sessions.values()
            for s in session.subscriptions.values()
        },
        "received": {(s.client_id, number): True for s in broker.sessions.values() for number in s.received},
        "retained": {message.topic: int(message.payload) for message in broker.retained.matching("#")},
    }
    wanted = {
        "sessions": {name: (s.expiry_s, s.ended_at) for name, s in state.sessions.items()},
        "subscriptions": {
            (name, s.topic_filter): tuple(s[1:])
            for name, session in state.sessions.items()
            for s in session.subscriptions.values()
        },
        "received": {(name, number): True for name, s in state.sessions.items() for number in s.received},
        "retained": {topic: number for topic, (number, _) in state.retained.items()},
    }
    compare(wanted, view, "after a restart", "what was promised")


def idle(broker: Broker) -> None:
    """Everybody has everything: no session holds a message or an identifier any more."""
    for session in broker.sessions.values():
        _check(
            not (session.in_flight or session.queue or session.received),
            f"{session.client_id} still has {len(session.in_flight)} in flight, {len(session.queue)} queued, "
            f"{session.received} received",
        )


def empty(broker: Broker, tables: View) -> None:
    """All sessions have ended: nothing but retained messages is left, in memory and store."""
    _check(not broker.sessions, f"sessions are left: {list(broker.sessions)}")
    _check(not broker.connections, f"connections are left: {[str(c) for c in broker.connections]}")
    _check(not broker.routing.count, f"{broker.routing.count} subscriptions are left")
    _check(not broker.routing.route("a/b").targets, "a route is left")
    _check(broker.next_deadline() is None, f"a deadline is left, {broker.next_deadline()}")
    for name in ("sessions", "subscriptions", "queue", "received"):
        _check(not tables[name], f"the store's {name} still has {tables[name]}")
    kept = {row[1] for row in tables["retained"].values()}
    _check(
        set(tables["messages"]) == kept,
        f"messages {set(tables['messages'])} in the store, {kept} are retained",
    )


def _check(holds: object, about: str) -> None:
    if not holds:
        raise AssertionError(about)
