"""Deliberate bugs in the core, each one line of carelessness: what the simulation must find.
A mutant replaces attributes; `undo` puts them back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from midge.core import pressure
from midge.core.broker import Broker
from midge.core.changes import Changes
from midge.core.connection import Connection
from midge.core.session import Delivery, Session

Patch = Callable[[Any, str, Any], None]  # pytest's monkeypatch.setattr


def acknowledge_before_commit(patch: Patch) -> None:
    patch(Connection, "end_turn", lambda self, changes: None)
    patch(Connection, "data_to_send", lambda self: _take_all(self))


def _take_all(connection: Connection) -> list[bytes]:
    data, connection.out = connection.out, []
    return data


def send_in_the_midst_of_a_turn(patch: Patch) -> None:
    """What `data_to_send` did before the simulation was there."""

    def data_to_send(self: Connection) -> list[bytes]:
        self.rests = False
        return original(self)

    original = Connection.data_to_send
    patch(Connection, "data_to_send", data_to_send)


def forget_dup(patch: Patch) -> None:
    from midge.core import session

    original = session.send_publish
    patch(session, "send_publish", lambda connection, delivery, now, dup: original(connection, delivery, now, False))


def drop_in_flight_on_reconnect(patch: Patch) -> None:
    def resume(self: Session, now: float) -> None:
        for packet_id in list(self.in_flight):
            self._remove_in_flight(packet_id)
        self.fill_window(now)

    patch(Session, "resume", resume)


def resume_in_the_wrong_order(patch: Patch) -> None:
    def resume(self: Session, now: float) -> None:
        self.in_flight = dict(reversed(self.in_flight.items()))
        original(self, now)

    original = Session.resume
    patch(Session, "resume", resume)


def store_no_pubrec(patch: Patch) -> None:
    def pubrec(self: Session, packet_id: int, is_refused: bool, now: float) -> bool:
        changes, self.changes = self.changes, None
        try:
            return original(self, packet_id, is_refused, now)
        finally:
            self.changes = changes

    original = Session.pubrec
    patch(Session, "pubrec", pubrec)


def route_duplicates_of_qos_2(patch: Patch) -> None:
    patch(Session, "receive", lambda self, packet_id: None)


def never_delete_what_was_acknowledged(patch: Patch) -> None:
    def delivery_removed(self: Changes, session: Session, delivery: Delivery) -> None:
        if delivery.batch == self.number:
            original(self, session, delivery)

    original = Changes.delivery_removed
    patch(Changes, "delivery_removed", delivery_removed)


def keep_what_was_unsubscribed(patch: Patch) -> None:
    patch(Changes, "subscription_removed", lambda self, session, topic_filter: None)


def keep_what_is_no_longer_retained(patch: Patch) -> None:
    patch(Changes, "retained_removed", lambda self, topic: None)


def forget_the_expiry_timer(patch: Patch) -> None:
    def take(self: Broker, connection: Connection, client_id: str, clean_start: bool, now: float) -> Any:
        session = self.sessions.get(client_id)
        timer = session.expiry_timer if session is not None else None
        action = timer.action if timer is not None else None
        taken = original(self, connection, client_id, clean_start, now)
        if taken is not None and action is not None:
            self.timers.at(timer.when, action)  # type: ignore[union-attr]
        return taken

    original = Broker._take_session
    patch(Broker, "_take_session", take)


def publish_a_will_after_disconnect(patch: Patch) -> None:
    def on_disconnect(self: Connection, packet: Any, now: float) -> None:
        will = self.will
        original(self, packet, now)
        self.will = will

    from midge.core import connection
    from midge.protocol.packets import Disconnect

    original = connection.HANDLERS[Disconnect]
    patch(connection, "HANDLERS", connection.HANDLERS | {Disconnect: on_disconnect})


def lose_what_a_shared_subscriber_leaves(patch: Patch) -> None:
    patch(Session, "take_shared", lambda self: iter(()))


def take_what_no_queue_has_room_for(patch: Patch) -> None:
    patch(pressure, "_has_room", lambda session, size: True)


def let_publishers_wait_for_ever(patch: Patch) -> None:
    patch(pressure.Pressure, "turn_ends", lambda self: None)


def refuse_those_who_are_owed_something(patch: Patch) -> None:
    patch(pressure, "_is_owed", lambda connection: False)


def wait_for_no_commit_but_that_of_messages(patch: Patch) -> None:
    patch(Changes, "is_needed", property(lambda self: bool(self._new)))


MUTANTS = [
    acknowledge_before_commit,
    send_in_the_midst_of_a_turn,
    forget_dup,
    drop_in_flight_on_reconnect,
    resume_in_the_wrong_order,
    store_no_pubrec,
    route_duplicates_of_qos_2,
    never_delete_what_was_acknowledged,
    keep_what_was_unsubscribed,
    keep_what_is_no_longer_retained,
    forget_the_expiry_timer,
    publish_a_will_after_disconnect,
    lose_what_a_shared_subscriber_leaves,
    take_what_no_queue_has_room_for,
    let_publishers_wait_for_ever,
    refuse_those_who_are_owed_something,
    wait_for_no_commit_but_that_of_messages,
]
