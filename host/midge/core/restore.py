"""What a broker takes over from a store at its start.
Knows rows and what they become; queues and retained messages stay where they are until they are wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from midge.core.changes import Changes, Reader, Snapshot
from midge.core.durable_queue import DurableQueue
from midge.core.replay_from import PREFIX as REPLAY
from midge.core.retained import Retained
from midge.core.routing import Subscription
from midge.core.session import NEVER_EXPIRES, Session

if TYPE_CHECKING:
    from midge.core.broker import Broker


def restore(broker: Broker, snapshot: Snapshot, reader: Reader, now: float) -> None:
    """Take over what a store kept. Call once, on a new broker that is durable."""
    broker.changes = changes = Changes(snapshot.next_message_key)
    broker.backlog.reader = reader
    broker.retained = Retained(broker.limits.max_message_memory // 2, reader)
    broker.retained.restore(snapshot.retained_count, snapshot.retained_bytes)
    history = broker.replay.history
    history.restore(snapshot.last_kept, reader)
    history.count, history.bytes = snapshot.kept_count, snapshot.kept_bytes
    by_key: dict[int, Session] = {}
    queues: dict[int, DurableQueue] = {}
    for row in snapshot.sessions:
        durable_queue = broker.queues.restored(row)
        if durable_queue is not None:
            queues[row.key], by_key[row.key] = durable_queue, durable_queue.store
            continue
        session = by_key[row.key] = broker.new_session(row.client_id, row.key)
        session.expiry_s = row.expiry_s
        session.changes = changes
        session.queue.lasts = True
        session.ended_at = row.ended_at
        if row.ended_at is None:  # its connection ended with us; the next restart must not count anew
            session.ended_at = now
            changes.session(session)
    for sub in snapshot.subscriptions:
        session = by_key[sub.session_key]
        subscription = Subscription(session, *sub[1:])
        session.subscriptions[subscription.topic_filter] = subscription
        session.is_bridge = session.is_bridge or subscription.is_bridges
        if subscription.topic_filter.startswith(REPLAY):
            after = snapshot.positions.get((sub.session_key, sub.topic_filter), snapshot.last_kept)
            broker.replay.restore(subscription, after, now)
        else:
            broker.route(subscription, now)
    for session_key, rows in snapshot.in_flight.items():
        if session_key in queues:
            queues[session_key].restore_lent(rows)
        else:
            by_key[session_key].restore_in_flight(rows)
    for session_key, queue in snapshot.queues.items():
        session = by_key[session_key]
        session.queue.restore(queue.count, queue.bytes, session.last_position)
        session.last_position = queue.last_position
    for session_key, packet_id in snapshot.received:
        by_key[session_key].restore_received(packet_id)
    for durable_queue in queues.values():
        durable_queue.count_restored()
    broker.counters.sessions_maximum = len(broker.sessions)
    for session in broker.sessions.values():
        assert session.ended_at is not None
        if session.expiry_s != NEVER_EXPIRES:
            broker.expire_session(session, max(now, session.ended_at + session.expiry_s))
    for will in snapshot.wills:
        broker.wills.restore(will, by_key.get(will.session_key), now)
