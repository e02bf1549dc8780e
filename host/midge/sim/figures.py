"""What a simulation showed, as plain numbers: for each kind of boards and for all, ready for JSON.
Knows the simulation's parts, nothing of how it is shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from midge.sim.board import SimulatedBoard
from midge.sim.ledger import HUB_POWER_CUT, IN_A_QUEUE, WAITING, Book
from midge.sim.link import Traffic
from midge.sim.run import Simulation

# Points of a distribution's curve, and of the line of what was awake.
_CURVE_POINTS = 60


def figures(simulation: Simulation) -> dict[str, Any]:
    """Times in ms are real ones; those in s (`kept_s`, `duration_s`) are the boards' own."""
    kinds = []
    for kind in simulation.fleet.boards:
        boards = [board for board in simulation.boards if board.kind is kind]
        kinds.append(
            {"name": kind.name, "profile": kind.profile, "boards": len(boards), **_of(boards, simulation)}
        )
    fleet, load = simulation.fleet.fleet, simulation.load
    return {
        "fleet": {
            "boards": len(simulation.boards),
            "duration_s": round(simulation.lasted_s * fleet.speed, 1),
            "speed": fleet.speed,
            "seed": fleet.seed,
            "real_s": round(simulation.lasted_s, 1),
            "broken_off": simulation.is_stopped,
        },
        "kinds": kinds,
        "total": _of(simulation.boards, simulation),
        "other_topics": dict(simulation.laptop.others) if simulation.laptop else {},
        "machine": {
            "processes_max": load.processes,
            "boards_memory_max_MB": _rounded(load.boards_MB),
            "own_memory_max_MB": _rounded(load.own_MB),
            "boards_cpu_s": round(simulation.boards_cpu_s, 2),
            "own_cpu_s": round(simulation.own_cpu_s, 2),
            "broker_cpu_s": _rounded(load.broker_cpu_s, 2),
        },
        "awake": _thinned(simulation.awake),
    }


def _of(boards: Sequence[SimulatedBoard], simulation: Simulation) -> dict[str, Any]:
    speed = simulation.fleet.fleet.speed
    cycles = [cycle for board in boards for cycle in board.life.cycles]
    entries = [entry for board in boards for entry in board.messages.entries.values() if entry.count]
    traffic = Traffic()
    for board in boards:
        if board.link is not None:
            traffic.add(board.link.traffic)
    latencies = [(e.arrived_at - e.made_at) * 1000 for e in entries if not e.was_kept]
    return {
        "boots": sum(board.life.boots for board in boards),
        "power_cuts": sum(board.life.power_cuts for board in boards),
        "crashes": [text for board in boards for text in board.life.crashes],
        "cycles": len(cycles),
        "cycle_errors": dict(Counter(cycle.stats["error"] for cycle in cycles if cycle.stats["error"])),
        "messages": _count(boards, simulation, [board.messages for board in boards], is_command=False),
        "commands": _count(boards, simulation, [board.commands for board in boards], is_command=True),
        "outbox_at_end": sum(simulation.waiting_at_end.get(board.name, 0) for board in boards),
        "latency_ms": distribution(latencies),
        "kept_s": distribution((e.arrived_at - e.made_at) * speed for e in entries if e.was_kept),
        "cycle_ms": distribution(cycle.stats["total_ms"] for cycle in cycles),
        "awake_ms": distribution(cycle.awake_ms for cycle in cycles),
        "late_ms": distribution(cycle.late_ms for cycle in cycles),
        "round_trips": distribution(traffic.round_trips if cycles else ()),
        "connections": traffic.opened,
        "segments": {"up": traffic.segments_up, "down": traffic.segments_down, "again": traffic.again},
        "bytes": {"up": traffic.bytes_up, "down": traffic.bytes_down},
    }


def _count(
    boards: Sequence[SimulatedBoard], simulation: Simulation, books: Sequence[Book], is_command: bool
) -> dict[str, Any]:
    causes: Counter[str] = Counter()
    for board, book in zip(boards, books, strict=True):
        causes += book.causes(_otherwise(board, simulation, is_command))
    entries = [entry for book in books for entry in book.entries.values()]
    return {
        "made": len(entries),
        "arrived": sum(entry.count > 0 for entry in entries),
        "doubled": sum(entry.count > 1 for entry in entries),
        "doubled_qos_2": sum(entry.count > 1 and entry.qos == 2 for entry in entries),
        "refused": sum(book.refused for book in books),
        "waiting": {cause: n for cause, n in causes.items() if cause in WAITING},
        "lost": {cause: n for cause, n in causes.items() if cause not in WAITING},
    }


def _otherwise(board: SimulatedBoard, simulation: Simulation, is_command: bool) -> str:
    """Where a message is that neither the laptop nor the board has."""
    hubs = [hub for hub in simulation.boards if hub.name == board.kind.via]
    if hubs and hubs[0].life.power_cuts and not hubs[0].kind.store:
        return HUB_POWER_CUT
    # A command waits for a board whose last wake-up didn't fetch it.
    if is_command and board.sleeps and not simulation.is_drained.get(board.name):
        return IN_A_QUEUE
    return ""


def distribution(values: Iterable[float]) -> dict[str, Any]:
    """Count, mean, percentiles, and a curve of [value, share of values up to it]."""
    known = sorted(values)
    if not known:
        return {"count": 0}
    count = len(known)
    steps = range(1, min(count, _CURVE_POINTS) + 1)
    ranks = [-(-count * step // len(steps)) for step in steps]
    return {
        "count": count,
        "mean": round(sum(known) / count, 3),
        **{f"p{percent}": round(percentile(known, percent), 3) for percent in (50, 90, 95, 99)},
        "max": round(known[-1], 3),
        "curve": [[round(known[rank - 1], 2), round(rank / count, 4)] for rank in ranks],
    }


def percentile(known: Sequence[float], percent: float) -> float:
    """Of sorted values, the nearest rank."""
    return known[max(0, min(len(known) - 1, -(-len(known) * int(percent) // 100) - 1))]


def is_well(result: dict[str, Any]) -> bool:
    """Nothing lost without an explanation, nothing doubled at QoS 2, no program dead."""
    total = result["total"]
    lost = sum(total[what]["lost"].get("unexplained", 0) for what in ("messages", "commands"))
    return not lost and not total["crashes"] and not total["messages"]["doubled_qos_2"]


def _thinned(points: Sequence[tuple[float, int]]) -> list[list[float]]:
    """Of each stretch the point with the most awake."""
    size = max(1, -(-len(points) // (4 * _CURVE_POINTS)))
    stretches = [points[at : at + size] for at in range(0, len(points), size)]
    return [[round(at, 2), n] for at, n in (max(stretch, key=lambda point: point[1]) for stretch in stretches)]


def _rounded(value: float | None, digits: int = 1) -> float | None:
    return None if value is None else round(value, digits)
