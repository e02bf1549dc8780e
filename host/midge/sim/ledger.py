"""Who made which message, what arrived, and why the rest didn't: one book for the whole fleet.
Knows what boards say and what arrives, nothing of how either travels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

# Why a message didn't arrive. The first two aren't lost: they wait.
ON_THE_BOARD = "waits in the board's outbox"
IN_A_QUEUE = "waits in a broker's queue"
OUTBOX_FULL = "outbox full, the oldest dropped"
POWER_CUT = "power cut, and the outbox was in memory that needs power"
DEEP_SLEEP = "deep sleep, and the outbox was in memory that needs power"
HUB_POWER_CUT = "the hub's power cut, and it has no store"
GIVEN_UP = "given up by the program: no connection in time"
QUICK = "QoS 0 on a connection that was lost"
UNEXPLAINED = "unexplained"

WAITING = (ON_THE_BOARD, IN_A_QUEUE)


@dataclass(slots=True)
class Entry:
    """One message. Times are the real clock's, in s."""

    qos: int
    made_at: float
    packet_id: int = 0  # in the board's outbox; 0: none
    arrived_at: float = 0.0  # the first time
    count: int = 0  # arrivals
    was_kept: bool = False  # not delivered in the cycle that made it
    cause: str = ""  # why it didn't arrive, where that is known at once


@dataclass(slots=True)
class Book:
    """One board's messages to the laptop, or the laptop's commands to one board, by name."""

    entries: dict[str, Entry] = field(default_factory=dict)
    by_packet_id: dict[int, str] = field(default_factory=dict)  # what the board's outbox holds
    refused: int = 0  # the outbox was full: the program knows that they were not taken

    def made(self, name: str, qos: int, now: float, packet_id: int = 0) -> None:
        # It may have arrived before we hear that it was made.
        entry = self.entries.setdefault(name, Entry(qos, now))
        entry.qos, entry.packet_id = qos, packet_id
        if packet_id:
            self.by_packet_id[packet_id] = name

    def arrived(self, name: str, qos: int, made_at: float, now: float) -> None:
        entry = self.entries.setdefault(name, Entry(qos, made_at))
        entry.made_at = made_at
        entry.count += 1
        if entry.count == 1:
            entry.arrived_at = now

    def dropped(self, packet_id: int) -> None:
        name = self.by_packet_id.pop(packet_id, None)
        if name is not None:
            self.entries[name].cause = OUTBOX_FULL

    def failed(self, name: str) -> None:
        self.entries[name].cause = GIVEN_UP

    def kept(self, packet_ids: list[int]) -> None:
        """What the outbox holds at the end of a cycle, and nothing else."""
        self.by_packet_id = {i: name for i, name in self.by_packet_id.items() if i in packet_ids}
        for name in self.by_packet_id.values():
            self.entries[name].was_kept = True

    def power_cut(self, is_outbox_lost: bool, are_all: bool = False) -> None:
        """*are_all*: the program keeps no outbox between its runs, so all that hasn't arrived was in memory."""
        if is_outbox_lost:
            self._lose(self.entries if are_all else self.by_packet_id.values(), POWER_CUT)
            self.by_packet_id.clear()
        for name in self.by_packet_id.values():
            self.entries[name].was_kept = True

    def deep_sleep(self) -> None:
        """The outbox was in memory that deep sleep switches off."""
        self._lose(self.by_packet_id.values(), DEEP_SLEEP)
        self.by_packet_id.clear()

    def _lose(self, names: Iterable[str], cause: str) -> None:
        for name in names:
            entry = self.entries[name]
            if not entry.count and not entry.cause:
                entry.cause = cause

    def outstanding(self, made_before: float) -> int:
        """Messages that should arrive without anyone doing anything more."""
        waiting = set(self.by_packet_id.values())
        return sum(
            not entry.count and not entry.cause and entry.made_at < made_before and name not in waiting
            for name, entry in self.entries.items()
        )

    def forget_since(self, now: float) -> None:
        """What was made after that and hasn't arrived: the simulation was over, nobody waited for it."""
        self.entries = {
            name: entry for name, entry in self.entries.items() if entry.count or entry.made_at < now
        }

    def causes(self, otherwise: str = "") -> Counter[str]:
        """Of what didn't arrive. *otherwise*: of a message whose board knows nothing of it any more."""
        waiting = set(self.by_packet_id.values())
        found: Counter[str] = Counter()
        for name, entry in self.entries.items():
            if entry.count:
                continue
            if entry.cause:
                found[entry.cause] += 1
            elif name in waiting:
                found[ON_THE_BOARD] += 1
            elif otherwise:
                found[otherwise] += 1
            else:
                found[QUICK if entry.qos == 0 else UNEXPLAINED] += 1
        return found
