"""The report of a simulation on a terminal: tables and sentences.
Knows the figures' shape, nothing of where they come from.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

# Of half of the wake-ups: more says that processes wait for each other, not for their links.
LATE_MS = 50


def print_report(result: dict[str, Any], console: Console) -> None:
    fleet = result["fleet"]
    console.print(
        f"{fleet['boards']} boards, {fleet['duration_s']:g} s of theirs in {fleet['real_s']:g} s"
        f" (speed {fleet['speed']:g}){', broken off' if fleet['broken_off'] else ''}"
    )
    rows = [*result["kinds"], {"name": "all", "profile": "", **result["total"]}]
    rows = rows if len(result["kinds"]) > 1 else rows[:-1]
    console.print(_messages(rows))
    console.print(_times(rows))
    for row in result["kinds"]:
        for sentence in _sentences(row):
            console.print(f"{row['name']}: {sentence}", highlight=False, soft_wrap=True)
    for topic, count in sorted(result["other_topics"].items())[:20]:
        console.print(f"{topic}: {count} messages of programs of yours", highlight=False, markup=False, soft_wrap=True)
    console.print(machine_sentence(result), highlight=False, soft_wrap=True)


def _messages(rows: list[dict[str, Any]]) -> Table:
    table = Table("boards", "made", "arrived", "waiting", "lost", "doubled", "commands", "arrived", "waiting", "lost",
                  "doubled", title="messages of the boards, and commands to them", title_justify="left")  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        cells = [row["name"]]
        for what in ("messages", "commands"):
            count = row[what]
            cells += [str(count["made"]), str(count["arrived"]), str(sum(count["waiting"].values())),
                      str(sum(count["lost"].values())), str(count["doubled"])]  # fmt: skip
        table.add_row(*cells)
    return table


def _times(rows: list[dict[str, Any]]) -> Table:
    table = Table("boards", "latency ms p50", "p95", "p99", "cycles", "wake() ms p50", "p95", "round trips p50",
                  "segments up", "down", "again", "bytes up", "down", title="times and traffic",
                  title_justify="left")  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        latency, cycle, trips = row["latency_ms"], row["cycle_ms"], row["round_trips"]
        table.add_row(
            row["name"], *(number(latency.get(name), 0) for name in ("p50", "p95", "p99")), str(row["cycles"]),
            number(cycle.get("p50"), 0), number(cycle.get("p95"), 0), number(trips.get("p50"), 2),
            *(str(row["segments"][name]) for name in ("up", "down", "again")),
            *(str(row["bytes"][name]) for name in ("up", "down")),
        )  # fmt: skip
    return table


def _sentences(row: dict[str, Any]) -> list[str]:
    sentences = []
    for what in ("messages", "commands"):
        for how in ("lost", "waiting"):
            for cause, count in row[what][how].items():
                sentences.append(f"{_counted(count, what)} {how}: {cause}")
        if row[what]["refused"]:
            sentences.append(f"{_counted(row[what]['refused'], what)} refused: the outbox was full")
    if row["power_cuts"]:
        sentences.append(_counted(row["power_cuts"], "power cuts"))
    for error, count in row["cycle_errors"].items():
        sentences.append(f"{count} of {row['cycles']} cycles ended early: {error}")
    if row["kept_s"]["count"]:
        kept = row["kept_s"]
        sentences.append(
            f"{kept['count']} messages left in a later cycle, p50 {kept['p50']:.0f} s, max {kept['max']:.0f} s "
            "of the board's time after they were made"
        )
    if row["outbox_at_end"]:
        sentences.append(f"{row['outbox_at_end']} messages were in outboxes at the end, before the last wake-up")
    sentences += [f"died: {text}" for text in row["crashes"][:3]]
    return sentences


def _counted(count: int, what: str) -> str:
    return f"{count} {what[:-1] if count == 1 else what}"


def machine_sentence(result: dict[str, Any]) -> str:
    machine, total = result["machine"], result["total"]
    parts = [f"at most {machine['processes_max']} processes of boards at once"]
    if machine["boards_memory_max_MB"] is not None:
        parts.append(f"{machine['boards_memory_max_MB']:.0f} MB for them, {machine['own_memory_max_MB']:.0f} MB for us")
    parts.append(f"CPU {machine['boards_cpu_s']:.1f} s boards, {machine['own_cpu_s']:.1f} s links and report")
    if machine["broker_cpu_s"] is not None:
        parts.append(f"{machine['broker_cpu_s']:.1f} s broker")
    late = total["late_ms"]
    if late["count"]:
        parts.append(f"wake-ups late by p50 {late['p50']:.0f}, p99 {late['p99']:.0f} ms")
        if late["p50"] > LATE_MS:
            parts.append("too slow for this fleet, so times are this machine's: choose a lower speed")
    return "this machine: " + "; ".join(parts)


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
