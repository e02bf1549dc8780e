"""What a simulation takes of this machine: processes, memory, CPU time.
Knows /proc, where there is one, and getrusage.
"""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterable
from dataclasses import dataclass

_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


@dataclass(slots=True)
class MachineLoad:
    """Peaks over all samples; `None` where this system doesn't tell."""

    processes: int = 0
    boards_MB: float | None = None  # proportional set size: pages shared by n processes count 1/n each
    own_MB: float | None = None
    broker_cpu_s: float | None = None

    def sample(self, pids: Iterable[int]) -> None:
        known = list(pids)
        self.processes = max(self.processes, len(known))
        sizes = [size for size in map(pss_mb, known) if size is not None]
        if sizes:
            self.boards_MB = max(self.boards_MB or 0.0, sum(sizes))
        own = pss_mb(os.getpid())
        if own is not None:
            self.own_MB = max(self.own_MB or 0.0, own)


def pss_mb(pid: int) -> float | None:
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            found = _PSS.search(file.read())
    except OSError:  # not Linux, or the process has just ended
        return None
    return int(found[1]) / 1024 if found else None


def cpu_of(pid: int) -> float | None:
    """s of CPU time that a process that runs has taken."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cpu_s() -> tuple[float, float]:
    """s of CPU time: ours, and that of all children that have ended."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime, children.ru_utime + children.ru_stime
