"""Deliberate bugs of durable queues, as in `mutants`: what histories of queues must find."""

from __future__ import annotations

from midge.core.durable_queue import DurableQueue
from midge.core.queues import Queues
from midge.core.session import Lent, Session
from simulation.mutants import Patch


def use_an_identifier_again_that_was_taken_back(patch: Patch) -> None:
    def take_back(self: Session) -> list[Lent]:
        taken = original(self)
        self.last_packet_id = 0
        self.avoided.clear()
        return taken

    original = Session.take_back
    patch(Session, "take_back", take_back)


def give_what_had_its_pubrec_to_another(patch: Patch) -> None:
    """The queue keeps it until PUBCOMP; a crash gives it out again."""
    patch(DurableQueue, "handed_over", lambda self, lent: None)


def keep_what_a_dead_consumer_held(patch: Patch) -> None:
    patch(Queues, "gone", lambda self, session, now, why="": None)


def give_it_back_and_tell_nobody(patch: Patch) -> None:
    def gone(self: Queues, session: Session, now: float, why: str = "") -> None:
        for lent in session.take_back():
            lent.consumer.queue.withdrawn(lent, why, now)

    patch(Queues, "gone", gone)


def forget_what_was_lent_before_a_restart(patch: Patch) -> None:
    patch(DurableQueue, "restore_lent", lambda self, rows: None)


def send_pubrel_before_the_commit(patch: Patch) -> None:
    def pubrec(self: Session, packet_id: int, reason_code: int, now: float) -> bool:
        connection = self.connection
        rests = connection is not None and connection.rests
        is_known = original(self, packet_id, reason_code, now)
        if connection is not None and not self.changes:
            connection.rests = rests
        return is_known

    original = Session.pubrec
    patch(Session, "pubrec", pubrec)


QUEUE_MUTANTS = [
    use_an_identifier_again_that_was_taken_back,
    give_what_had_its_pubrec_to_another,
    keep_what_a_dead_consumer_held,
    give_it_back_and_tell_nobody,
    forget_what_was_lent_before_a_restart,
    send_pubrel_before_the_commit,
]
