"""What waits for the sessions: queues that keep their middle on disk once all of them together need too much memory.
Knows positions and sizes; the store reads the messages back.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from midge.core.changes import QueueRow, Reader, ReadError
from midge.core.message import Message

if TYPE_CHECKING:
    from midge.core.session import Delivery

# bytes of memory that one queued delivery takes beside its topic name and payload: the delivery, the message
# and their numbers (measured with 64-byte payloads, CPython 3.11 to 3.13).
_DELIVERY_BYTES = 500
# What a queue's middle and end are while there is nothing in them: never changed, shared by all.
_NONE: Final[deque[Delivery]] = deque()
# Relief goes on until this part of the budget is in use, so that it isn't sought with every message.
_RELIEVED = 0.75


class Backlog:
    """What all queues hold in memory, and its bound. One per broker."""

    def __init__(self, limit: int, reader: Reader | None = None) -> None:
        self.limit = limit  # bytes
        self.reader = reader  # None: there is no store to read from, so all stays in memory
        self.bytes = 0  # in memory, of queues that last
        self.has_made_room = False  # something has left a queue; set by them, cleared by `Pressure`
        self._in_memory: dict[Queue, None] = {}  # queues that hold something there, the oldest first

    def took(self, queue: Queue, size: int) -> None:
        self.bytes += size
        if queue not in self._in_memory:
            self._in_memory[queue] = None

    def gave(self, queue: Queue, size: int) -> None:
        self.bytes -= size
        if not (queue._head or queue._tail):
            self._in_memory.pop(queue, None)

    def relieve(self, settled: int) -> None:
        """If all queues hold too much: let go of what can be read back, batches up to *settled*, of those
        first that have held it longest."""
        if self.bytes <= self.limit or self.reader is None:
            return
        for queue in list(self._in_memory):
            queue.evict(settled)
            if self.bytes <= self.limit * _RELIEVED:
                break


class Queue:
    """One session's deliveries that wait to be sent, in order of position.

    In memory are the first (`_head`) and, while those behind them are only on disk, the last (`_tail`).
    """

    __slots__ = ("_backlog", "_head", "_tail", "after", "bytes", "count", "key", "lasts", "stored")

    def __init__(self, key: int, backlog: Backlog) -> None:
        self.key = key  # the session's
        self.lasts = False  # the session is kept in a store; set and cleared by it
        self.count = 0  # deliveries, wherever they are
        self.bytes = 0  # of their topic names and payloads
        self.stored = 0  # deliveries that are only on disk
        self.after = 0  # those have positions beyond this one
        self._head: deque[Delivery] = _NONE
        self._tail: deque[Delivery] = _NONE
        self._backlog = backlog

    def __len__(self) -> int:
        return self.count

    def append(self, delivery: Delivery) -> None:
        size = delivery.message.size()
        if self.stored:
            if self._tail is _NONE:
                self._tail = deque()
            self._tail.append(delivery)
        else:
            if self._head is _NONE:
                self._head = deque()
            self._head.append(delivery)
        self.count += 1
        self.bytes += size
        if self.lasts:
            self._backlog.took(self, size + _DELIVERY_BYTES)

    def popleft(self) -> Delivery:
        """The oldest; there must be one."""
        if not self._head:
            self._load()
        delivery = self._head.popleft()
        size = delivery.message.size()
        self.count -= 1
        self.bytes -= size
        self._backlog.has_made_room = True
        if self.lasts:
            self._backlog.gave(self, size + _DELIVERY_BYTES)
        return delivery

    def first(self) -> Delivery:
        """The oldest; there must be one."""
        if not self._head:
            self._load()
        return self._head[0]

    def next_qos(self) -> int:
        """Of the oldest; there must be one."""
        return self.first().qos

    def first_position(self) -> int:
        """Of the oldest, or one that no other delivery has before it; there must be one."""
        return self._head[0].position if self._head else self.after + 1

    def in_memory(self) -> list[Delivery]:
        return [*self._head, *self._tail]

    def keep_only(self, kept: list[Delivery]) -> None:
        """Of what is in memory only *kept* is left; for a queue with nothing on disk."""
        self.clear()
        for delivery in kept:
            self.append(delivery)

    def clear(self) -> None:
        """Forget all of it."""
        if self.lasts:
            size = sum(delivery.message.size() + _DELIVERY_BYTES for delivery in self.in_memory())
            self._backlog.gave(self, size)
        self._head = self._tail = _NONE
        self.count = self.bytes = self.stored = 0
        self._backlog.has_made_room = True

    # -- memory and disk --

    def restore(self, count: int, size: int, after: int) -> None:
        """At the start: *count* deliveries of *size* bytes wait on disk, beyond position *after*."""
        self.count = self.stored = count
        self.bytes = size
        self.after = after

    def evict(self, settled: int) -> None:
        """Let go of what batches up to *settled* brought, and of what was read back."""
        head = self._head
        if head and head[0].batch <= settled:
            self.after = head[0].position - 1
            self._forget(head, settled)
            if head:  # not settled yet, so nothing is on disk behind it: it comes behind what is there now
                self._head, self._tail = self._tail, head
        if self.stored:
            self._forget(self._tail, settled)

    def _forget(self, deliveries: deque[Delivery], settled: int) -> None:
        freed = 0
        while deliveries and deliveries[0].batch <= settled:
            freed += deliveries.popleft().message.size() + _DELIVERY_BYTES
            self.stored += 1
        self._backlog.gave(self, freed)

    def _load(self) -> None:
        """Read the next ones back."""
        reader = self._backlog.reader
        rows = reader.queue(self.key, self.after) if self.stored and reader is not None else []
        if not rows:
            raise ReadError(f"the store lacks {self.stored} messages of session {self.key} after {self.after}")
        if self._head is _NONE:
            self._head = deque()
        size = 0
        for position, row in rows[: self.stored]:
            delivery = restored_delivery(position, row)
            self._head.append(delivery)
            size += delivery.message.size() + _DELIVERY_BYTES
            self.after = position
            self.stored -= 1
        self._backlog.took(self, size)
        if not self.stored:
            self._head.extend(self._tail)
            self._tail = _NONE


def restored_delivery(position: int, row: QueueRow) -> Delivery:
    """The delivery in a row of the store."""
    from midge.core.session import Delivery

    message, qos, retain, identifiers, shared, packet_id, is_released = row
    delivery = Delivery(Message.restored(message), qos, retain, identifiers, position, shared)
    delivery.packet_id = packet_id
    delivery.is_released = is_released
    delivery.batch = -1  # in the store since before the first batch
    return delivery
