"""Will messages: kept from CONNECT on, published when their time has come (MQTT 5.0 §3.1.2.5).
Knows delays and restarts, not how a message is routed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from midge.core.changes import WillRow
from midge.core.message import Message
from midge.protocol.packets import Will

if TYPE_CHECKING:
    from midge.core.broker import Broker
    from midge.core.session import Session


class Wills:
    """The wills of one broker. What is written of them is in the same batch as what they cause, so that a
    will that was published isn't published again after a restart."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._kept: set[int] = set()  # keys of sessions whose will is in the store

    def keep(self, session: Session, will: Will) -> bool:
        """The client has connected with *will* [MQTT-3.1.2-7]; True if that is to last."""
        changes = self._broker.changes
        # Asked now for a will that is published after a restart, when there is nobody left to ask about.
        if changes is None or not self._broker.session_may_publish(session, will.topic):
            return False
        changes.will(session, _message(will), _delay_s(will), None)
        self._kept.add(session.key)
        return True

    def forget(self, session: Session) -> None:
        """It isn't to be published, or has been."""
        if session.key in self._kept:
            self._kept.discard(session.key)
            assert self._broker.changes is not None
            self._broker.changes.will_removed(session)

    def schedule(self, session: Session, will: Will, now: float) -> None:
        """Publish *will* after its delay, or when the session ends if that is sooner [MQTT-3.1.2-8]."""
        delay_s = min(_delay_s(will), session.expiry_s)
        message = _message(will)
        publish = self._publisher(session, message)
        if not delay_s:
            publish(now)
            return
        session.will_timer = self._broker.timers.at(now + delay_s, publish)
        if session.key in self._kept:
            assert self._broker.changes is not None
            self._broker.changes.will(session, message, _delay_s(will), now + delay_s)

    def restore(self, row: WillRow, session: Session | None, now: float) -> None:
        """At the start: a will that was not published before the broker ended, whichever way.

        MQTT 5.0 §3.1.2.5: "In the case of a Server shutdown or failure, the Server MAY defer publication of
        Will Messages until a subsequent restart." The connection was closed without DISCONNECT from the client,
        so it has to be published; its delay, if it had not begun, begins now, and the client has that long to
        come back. The will of a session that doesn't last is published at once: the session has ended.
        """
        message = Message.restored(row.message)
        if session is None:
            session = self._broker.unlisted_session(row.client_id, row.session_key)
        self._kept.add(row.session_key)
        due = now + min(row.delay_s, session.expiry_s) if row.due is None else max(now, row.due)
        if row.due is None and self._broker.changes is not None:
            self._broker.changes.will(session, message, row.delay_s, due)  # the next restart doesn't begin it anew
        session.will_timer = self._broker.timers.at(due, self._publisher(session, message))

    def _publisher(self, session: Session, message: Message) -> Callable[[float], None]:
        def publish(when: float) -> None:
            session.will_timer = None
            self.forget(session)
            if message.expires_at is not None:
                message.expires_at += when
            # Whether it may is asked now, as Mosquitto does it: the rules may have changed since CONNECT.
            is_routed = message.topic.count("/") < self._broker.limits.max_topic_levels
            if message.retain and not self._broker.retaining.has_room(message):
                message.retain = False  # nobody is left to be refused: passed on, not kept
            if is_routed and self._broker.session_may_publish(session, message.topic):
                self._broker.publish(message, session, when)

        return publish


def _message(will: Will) -> Message:
    """`expires_at` counts from its publication [MQTT-3.3.2-5]."""
    return Message.with_properties(will, will.topic, 0.0)


def _delay_s(will: Will) -> int:
    return (will.properties or {}).get("will_delay_interval", 0)
