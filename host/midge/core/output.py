"""What one connection is sent: in order, written once per turn, and not before what it rests on is kept.
Knows turns and batches, not what the packets are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from midge.core.broker import Broker
    from midge.core.changes import Changes


class Output:
    """The sending half of a `Connection`, which is the only kind there is."""

    __slots__ = ("broker", "held", "is_closing", "is_paused", "out", "output_bytes", "rests", "unacknowledged")

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.out: list[bytes] = []  # this turn's output
        self.rests = False  # this turn's output must not leave before this turn's commit
        self.held: list[tuple[int, list[bytes]]] = []  # (batch that it rests on, output), oldest first
        self.is_paused = False  # set and cleared by the owner: the peer reads too slowly
        self.output_bytes = 0  # in `out` and `held` while paused
        self.unacknowledged = 0  # QoS 1 messages of the client whose PUBACK has not left yet
        self.is_closing = False  # nothing follows what is in `out`

    def data_to_send(self) -> list[bytes]:
        """What may leave now, in order; empty if it still rests on a commit."""
        held = self.held
        if not (held or self.rests):
            data, self.out = self.out, []
        else:
            data = []
            committed = self.broker.committed_batch
            while held and held[0][0] <= committed:
                data += held.pop(0)[1]
            # A turn that isn't over may rest on changes that no batch has yet: its end will tell.
            if not held and (not self.rests or self.broker.changes is None):
                data += self.out
                self.out = []
        if not held and not self.out:
            self.unacknowledged = 0
        elif self.unacknowledged:
            # A publisher that is never idle always has some that wait for the next commit.
            for piece in data:
                if piece[0] == 0x40 and self.unacknowledged:
                    self.unacknowledged -= 1
        self.output_bytes = 0
        return data

    @property
    def is_drained(self) -> bool:
        """Nothing waits to be taken, neither for this turn's end nor for a commit."""
        return not self.out and not self.held

    @property
    def unread(self) -> int:
        """Pieces of output that wait, for the peer to read or for a commit."""
        return len(self.out) + sum(len(output) for _, output in self.held)

    def end_turn(self, changes: Changes) -> None:
        """The turn is over: what rests on its changes, or queues behind such output, is held back."""
        if not self.out or not (self.rests or self.held):
            return
        held = self.held
        number = changes.rest() if self.rests else held[-1][0]
        if held and held[-1][0] >= number:
            held[-1][1].extend(self.out)
        else:
            held.append((number, self.out))
        self.out = []
        self.rests = False
