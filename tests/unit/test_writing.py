"""The writer's thread: whatever goes wrong in the store, what waits for a commit waits for it, and no longer."""

import asyncio

import pytest

from midge import writing
from midge.core.broker import Broker
from midge.core.changes import Batch
from midge.core.limits import Limits
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
