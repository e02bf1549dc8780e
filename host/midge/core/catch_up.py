"""The retained messages of new subscriptions: in portions, as the client takes them.
Knows the order and the room there is; what a delivery is, the broker knows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from midge.core.changes import ReadError
from midge.core.message import Message
from midge.core.routing import Subscription
from midge.protocol.reasons import ReasonCode

if TYPE_CHECKING:
    from midge.core.broker import Broker
    from midge.core.connection import Connection

# Messages, and bytes of payload, that one connection is sent in one turn: a subscription to a million
# retained messages must neither stall the others nor fill the memory.
_TURN_MESSAGES = 500
_TURN_BYTES = 1_000_000
# s until the next portion; and until we look again whether those who had no room have some.
_TURN_S = 0.001
_POLL_S = 0.05


class _Cursor:
    """How far one subscription's retained messages have been sent."""

    __slots__ = ("at", "portion", "portions", "subscription", "target")

    def __init__(self, subscription: Subscription, portions: Iterator[list[Message]]) -> None:
        self.subscription = subscription
        self.target = subscription.target
        self.portions = portions
        self.portion: list[Message] = []
        self.at = 0

    def read_on(self) -> bool:
        """Have the next portion, which may be empty; False: there is none."""
        portion = next(self.portions, None)
        self.portion, self.at = portion or [], 0
        return portion is not None


class CatchUp:
    """All connections that have retained messages to come."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._cursors: dict[Connection, deque[_Cursor]] = {}
        self._is_timed = False  # `_go_on` will be called

    def start(self, subscription: Subscription, now: float) -> None:
        """Send what fits into this turn; the rest comes with time and room."""
        connection = subscription.session.connection
        if connection is None:
            return
        cursor = _Cursor(subscription, self._broker.retaining.below(subscription.topic_filter))
        cursors = self._cursors.get(connection)
        if cursors is not None:
            cursors.append(cursor)
        elif not self._send(connection, cursor, now):
            self._cursors[connection] = deque((cursor,))
            self._set_timer(now + _TURN_S)

    def _go_on(self, now: float) -> None:
        self._is_timed = False
        is_moving = False
        for connection, cursors in list(self._cursors.items()):
            if connection.is_closing:
                del self._cursors[connection]
            elif self._has_room(connection, cursors[0]):
                is_moving = True
                if self._send(connection, cursors[0], now):
                    cursors.popleft()
                    if not cursors:
                        del self._cursors[connection]
        self._set_timer(now + (_TURN_S if is_moving else _POLL_S))

    def _set_timer(self, when: float) -> None:
        if self._cursors and not self._is_timed:
            self._is_timed = True
            self._broker.timers.at(when, self._go_on)

    def _has_room(self, connection: Connection, cursor: _Cursor) -> bool:
        if connection.is_paused:
            return False
        if not cursor.target.qos:
            return True
        session = cursor.target.session
        queue, limits = session.queue, session.limits
        # One below the limit: nothing that was queued before must give way to it.
        return queue.count < max(1, limits.max_queued_messages - 1) and queue.bytes < limits.max_queued_bytes // 2

    def _send(self, connection: Connection, cursor: _Cursor, now: float) -> bool:
        """Send the next of them; True: that was all."""
        try:
            return self._send_portion(connection, cursor, now)
        except ReadError as error:
            connection.close(ReasonCode.UNSPECIFIED_ERROR, str(error))
            return True

    def _send_portion(self, connection: Connection, cursor: _Cursor, now: float) -> bool:
        session = cursor.target.session
        if session.subscriptions.get(cursor.subscription.topic_filter) is not cursor.subscription:
            return True  # unsubscribed meanwhile, or subscribed anew
        if cursor.at >= len(cursor.portion) and not cursor.read_on():
            return True
        count = size = 0
        while count < _TURN_MESSAGES and size < _TURN_BYTES and self._has_room(connection, cursor):
            if cursor.at >= len(cursor.portion):
                return not cursor.read_on()
            message = cursor.portion[cursor.at]
            cursor.at += 1
            if session.permissions is not None and not session.permissions.may_read(message.topic):
                continue
            if message.is_expired(now):
                kept = self._broker.retained.find(message.topic)
                if kept is not None and kept.is_expired(now):  # not what has taken its place meanwhile
                    self._broker.retaining.forget(message.topic)
                continue
            if session.is_bridge:
                self._broker.passage.mark(message, [session])
            count += 1
            size += message.size()
            self._broker.deliver(message, cursor.target, True, now)  # [MQTT-3.3.1-8]
        return False
