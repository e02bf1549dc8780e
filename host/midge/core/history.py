"""What [[history]] keeps: a number for each message, the last of them in memory, the others in pages from the store.
Knows no session; who reads, and how far, is `replay`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from midge.core.message import Message
from midge.protocol.packets import Properties

if TYPE_CHECKING:
    from midge.core.changes import Changes, KeptRow, Reader

# The user property of MQTT 5.0 that a replayed message carries: its number, for `$replay/after/NUMBER/FILTER`.
SEQUENCE = "midge-sequence"


class HistoryRule(NamedTuple):
    """One [[history]]: which topics are kept, and how long. The filter is its name; the first that matches keeps."""

    topic_filter: str
    age_s: float  # kept for so long at least
    max_messages: int  # of them there are at most so many,
    max_bytes: int  # and so many of topic names and payloads


class Kept:
    """One kept message. `at`: when it came, s since the epoch; `batch`: the number of the batch that has it, -1:
    it was read back."""

    __slots__ = ("_numbered", "at", "batch", "message", "sequence")

    def __init__(self, sequence: int, at: float, message: Message, batch: int) -> None:
        self.sequence = sequence
        self.at = at
        self.message = message
        self.batch = batch
        self._numbered: Message | None = None

    def numbered(self) -> Message:
        """The message with its number, for clients that speak 5.0: one for all of them."""
        found = self._numbered
        if found is None:
            message = self.message
            properties: Properties = {}
            if message.properties:
                properties.update(message.properties)
            # Its own, not that of another broker's history that it has been in.
            others = [pair for pair in properties.get("user_property", ()) if pair[0] != SEQUENCE]
            properties["user_property"] = [*others, (SEQUENCE, str(self.sequence))]
            found = self._numbered = Message(
                message.topic, message.payload, message.qos, message.retain, properties, message.expires_at
            )
        return found


def restored_kept(row: KeptRow) -> Kept:
    sequence, at, message = row
    return Kept(sequence, at, Message.restored(message), -1)


class History:
    """All that is kept, numbered 1, 2, 3, ... in the order in which it came, whichever rule keeps it.

    What the store has settled is read from it; the rest, the tail, is here. The loop learns of what is settled only
    at its own time, so that between the two there is neither a gap nor a message twice.
    """

    def __init__(self) -> None:
        self.rules: list[HistoryRule] = []
        self.last = 0  # number of the last message
        self.tail: list[Kept] = []  # without gaps
        self.tail_first = 1  # number of the first in the tail; last + 1 if that is empty
        self.reader: Reader | None = None
        self.count = 0  # messages that are settled in the store, and bytes of them: as it told last
        self.bytes = 0

    def restore(self, last: int, reader: Reader) -> None:
        """At the start: everything up to number *last* is settled."""
        self.last = last
        self.tail_first = last + 1
        self.reader = reader

    def keep(self, message: Message, name: str, now: float, changes: Changes) -> int:
        """Keep *message* by the rule *name*; its number."""
        self.last = sequence = self.last + 1
        self.tail.append(Kept(sequence, now, message, changes.number))
        changes.keep(name, sequence, now, message)
        return sequence

    def settled(self, number: int) -> None:
        """What batches up to *number* brought can be read back."""
        tail = self.tail
        if not tail or tail[0].batch > number:
            return
        count = 0
        while count < len(tail) and tail[count].batch <= number:
            count += 1
        del tail[:count]
        self.tail_first += count

    def page(self, topic_filter: str, after: int) -> tuple[list[KeptRow], int]:
        """The next messages beyond number *after* that match, of those that are settled; and the number up to
        which that is all of them. ReadError: the store can't be read."""
        end = self.tail_first - 1
        if self.reader is None:
            return [], end
        return self.reader.kept(topic_filter, after, end)

    def before(self, topic_filter: str, since: float) -> int:
        """The number after which to read for what came at *since* (s since the epoch) or later. ReadError."""
        if self.reader is not None:
            first = self.reader.kept_since(topic_filter, since)
            if first is not None:
                return first - 1
        for kept in self.tail:
            if kept.at >= since:
                return kept.sequence - 1
        return self.last
