"""The writer's thread: whatever goes wrong in the store, what waits for a commit waits for it, and no longer."""

import asyncio

import pytest

from midge import writing
from midge.core.broker import Broker
from midge.core.changes import Batch
from midge.core.limits import Limits
from midge.core.message import Message
from midge.core.session import Delivery, Session
from midge.store import StoreError


class UntidyStore:
    """Has so many steps to tidy."""

    portion = 1.0
    kept_size = (3, 30)

    def __init__(self, steps: int):
        self.steps = steps
        self.done: list[object] = []

    @property
    def is_untidy(self) -> bool:
        return self.steps > 0

    def write(self, batch: Batch) -> int:
        self.done.append(batch.number)
        return batch.number

    def tidy(self, now: float) -> bool:
        self.steps -= 1
        self.done.append(now)
        return self.steps > 0


def test_what_is_too_much_is_removed_step_by_step():
    async def run() -> UntidyStore:
        broker = Broker(Limits(), None, True)
        store = UntidyStore(3)
        writer = writing.Writer(asyncio.get_running_loop(), broker, store, "commit", lambda: None, lambda: 7.0)
        assert broker.changes is not None
        broker.changes.retained_removed("a/b")
        broker.changes.rest()
        writer.write_soon()
        for _ in range(2000):
            if store.steps == 0:
                break
            await asyncio.sleep(0.01)
        writer.finish()
        writer.join()
        assert broker.replay.history.count == 3
        return store

    assert asyncio.run(run()).done == [1, 7.0, 7.0, 7.0]


class FailingStore:
    """Raises *errors*, one a write, then writes."""

    portion = 1.0
    kept_size = (0, 0)
    is_untidy = False

    def __init__(self, errors: list[Exception]):
        self.errors = errors
        self.written: list[int] = []

    def write(self, batch: Batch) -> int:
        if self.errors:
            raise self.errors.pop(0)
        self.written.append(batch.number)
        return batch.number


@pytest.mark.parametrize("error", [StoreError("the disk is full"), RuntimeError("a bug")])
def test_a_write_that_fails_is_tried_again_until_it_is_committed(error, monkeypatch, caplog):
    monkeypatch.setattr(writing, "_RETRY_S", 0.01)

    async def run() -> None:
        broker = Broker(Limits(), None, True)
        store = FailingStore([error, error])
        committed = asyncio.Event()
        writer = writing.Writer(asyncio.get_running_loop(), broker, store, "commit",
                                lambda: broker.committed_batch and committed.set(), lambda: 0.0)
        assert broker.changes is not None
        broker.changes.retained_removed("a/b")
        assert broker.changes.rest() == 1
        writer.write_soon()
        await asyncio.wait_for(committed.wait(), 20)
        assert store.written == [1] and broker.committed_batch == 1 and not writer.problem
        writer.finish()
        writer.join()

    asyncio.run(run())
    (said,) = [record for record in caplog.records if "trying again" in record.message]
    assert bool(said.exc_info) is isinstance(error, RuntimeError)  # a bug is shown with its place


@pytest.mark.parametrize("is_prompt", [True, False])
def test_the_disk_is_asked_when_receivers_take_their_time(is_prompt):
    """A receiver that has acknowledged in time costs no write; for one that doesn't, patience ends."""

    async def run() -> tuple[list[int], int]:
        broker = Broker(Limits(), None, True)
        store = FailingStore([])
        released = asyncio.Event()
        writer = writing.Writer(asyncio.get_running_loop(), broker, store, "commit", released.set, lambda: 0.0)
        session = Session("sub", 1, broker.limits, broker.counters, broker.backlog)
        session.changes = broker.changes
        assert broker.changes is not None
        delivery = Delivery(Message("a", b"x", 1), 1, False, (), 1)
        delivery.packet_id = 1
        broker.changes.delivery(session, delivery)
        number = broker.changes.rest()
        writer.write_soon()
        assert broker.committed_batch < number
        if is_prompt:
            broker.changes.delivery_removed(session, delivery)
            writer.write_soon()
            assert broker.committed_batch == number and released.is_set()
        await asyncio.wait_for(released.wait(), 20)
        assert broker.committed_batch == number
        writer.finish()
        writer.join()
        return store.written, number

    written, number = asyncio.run(run())
    assert written == ([] if is_prompt else [number])


def test_patience_that_was_in_vain_becomes_rare():
    patience = writing.Patience()
    patience.wrote(1.0)
    waited = 0
    for at in range(2000):
        if patience.begins(float(at)):
            patience.ends(at + 0.001, in_vain=True)
            waited += 1
    assert 10 < waited < 20
    while not patience.begins(3000.0):
        pass
    patience.ends(3000.001, in_vain=False)
    assert patience.begins(3001.0)


def test_receivers_that_are_slower_than_the_disk_are_not_waited_for():
    patience = writing.Patience()
    for _ in range(50):
        patience.wrote(0.0001)
    waited = 0
    for at in range(2000):
        if patience.begins(float(at)):
            patience.ends(at + 0.0005, in_vain=False)
            waited += 1
    assert waited < 20
