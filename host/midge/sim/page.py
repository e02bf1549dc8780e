"""The report of a simulation as one HTML page that needs nothing else: tables and plots.
Knows the figures' shape, nothing of where they come from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from midge.sim import svg
from midge.sim.tables import machine_sentence, number

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --paper: #fff; --faint: #d9dfe5; --bar: #2a78b5;
  --c0: #2a78b5; --c1: #c8572c; --c2: #3b8f5a; --c3: #8a5bb0; --c4: #a5812a; --c5: #5b6773; }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe6ec; --paper: #14191e; --faint: #323b44; --bar: #5aa5dd;
  --c0: #5aa5dd; --c1: #e98a63; --c2: #6cc08b; --c3: #b591d6; --c4: #d3b15c; --c5: #9aa7b3; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1000px;
  margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid var(--faint); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
svg { width: 100%; max-width: 700px; display: block; } svg text { font-size: 12px; fill: var(--ink); }
.end { text-anchor: end; } .middle { text-anchor: middle; } .grid { stroke: var(--faint); } .bar { fill: var(--bar); }
.line { fill: none; stroke-width: 2; }
.line.c0 { stroke: var(--c0); } .line.c1 { stroke: var(--c1); } .line.c2 { stroke: var(--c2); }
.line.c3 { stroke: var(--c3); } .line.c4 { stroke: var(--c4); } .line.c5 { stroke: var(--c5); }
.legend span { margin-right: 1.4em; } .legend i { display: inline-block; width: 1.6em; height: 3px; margin-right: .4em;
  vertical-align: middle; }
i.c0 { background: var(--c0); } i.c1 { background: var(--c1); } i.c2 { background: var(--c2); }
i.c3 { background: var(--c3); } i.c4 { background: var(--c4); } i.c5 { background: var(--c5); }
pre { background: color-mix(in srgb, var(--ink) 6%, transparent); padding: .6em; overflow-x: auto; }
"""


def page(result: dict[str, Any]) -> str:
    """All of it, UTF-8, without a link to anything outside."""
    fleet = result["fleet"]
    title = f"{fleet['boards']} boards, {fleet['duration_s']:g} s"
    kinds = result["kinds"]
    rows = [*kinds, {"name": "all", **result["total"]}] if len(kinds) > 1 else kinds
    body = [
        f"<h1>midge sim: {escape(title)}</h1>",
        f"<p>In {fleet['real_s']:g} s of real time: sleep goes by {fleet['speed']:g} times as fast; what is awake runs "
        f"in real time. Seed {fleet['seed']}.{' Broken off.' if fleet['broken_off'] else ''}</p>",
        "<h2>Messages</h2>",
        _counts("messages", rows),
        "<h2>Commands</h2>" + _counts("commands", rows) if result["total"]["commands"]["made"] else "",
        _causes(result["total"]),
        "<h2>From the program to the laptop</h2>",
        "<p>Of messages that left in the cycle that made them.</p>",
        _curves(kinds, "latency_ms", "ms, logarithmic", "share that arrived within"),
        _cycles(kinds),
        "<h2>Boards awake</h2>",
        svg.lines(
            [("awake", [[at * fleet["speed"], count] for at, count in result["awake"]])],
            "s of the boards' time",
            "processes",
        ),
        "<h2>Times and traffic</h2>",
        _traffic(rows),
        _ends(kinds),
        f"<h2>This machine</h2><p>{escape(machine_sentence(result))}.</p>",
    ]
    # What a program may want to read from the page; "</" would end the element.
    data = json.dumps(result).replace("</", "<\\/")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n<body>'
        + "\n".join(part for part in body if part)
        + f'\n<script type="application/json" id="figures">{data}</script>\n</body></html>\n'
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    cells = "".join(f"<th>{escape(text)}</th>" for text in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>'


def _counts(what: str, rows: Sequence[dict[str, Any]]) -> str:
    head = ("boards", "made", "arrived", "waiting", "lost", "doubled", "refused")
    return table(
        head,
        (
            (row["name"], count["made"], count["arrived"], sum(count["waiting"].values()),
             sum(count["lost"].values()), count["doubled"], count["refused"])
            for row in rows
            for count in [row[what]]
        ),
    )  # fmt: skip


def _causes(total: dict[str, Any]) -> str:
    rows = [
        (f"{what}, {how}: {cause}", float(count), str(count))
        for what in ("messages", "commands")
        for how in ("lost", "waiting")
        for cause, count in total[what][how].items()
    ]
    if not rows:
        return "<p>Nothing was lost, and nothing waits.</p>"
    short = [(name if len(name) <= 58 else name[:55] + "...", value, text) for name, value, text in rows]
    listed = "".join(f"<li>{escape(text)} {escape(name)}</li>" for name, _, text in rows)
    return f"<h2>What didn't arrive, and why</h2>{svg.bars(short, 'messages that did not arrive')}<ul>{listed}</ul>"


def _curves(kinds: Sequence[dict[str, Any]], what: str, x_label: str, y_label: str) -> str:
    series = [
        (kind["name"], [[x, share * 100] for x, share in kind[what]["curve"]])
        for kind in kinds
        if kind[what]["count"]
    ]
    if not series:
        return "<p>None.</p>"
    return svg.lines(series, x_label, f"{y_label}, %", is_log=True, y_max=100)


def _cycles(kinds: Sequence[dict[str, Any]]) -> str:
    if not any(kind["cycles"] for kind in kinds):
        return ""
    curves = _curves(kinds, "cycle_ms", "ms, logarithmic", "share of cycles")
    return f"<h2>wake(), from its call to its result</h2>{curves}"


def _traffic(rows: Sequence[dict[str, Any]]) -> str:
    head = ("boards", "latency ms p50", "p95", "p99", "cycles", "wake() ms p50", "p95", "round trips p50",
            "connections", "segments up", "down", "again", "bytes up", "down")  # fmt: skip
    return table(
        head,
        (
            (row["name"], *(number(row["latency_ms"].get(name), 0) for name in ("p50", "p95", "p99")), row["cycles"],
             *(number(row["cycle_ms"].get(name), 0) for name in ("p50", "p95")),
             number(row["round_trips"].get("p50"), 2), row["connections"],
             *(row["segments"][name] for name in ("up", "down", "again")), row["bytes"]["up"], row["bytes"]["down"])
            for row in rows
        ),
    )  # fmt: skip


def _ends(kinds: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"<li>{escape(kind['name'])}: {count} of {kind['cycles']} cycles ended early: {escape(error)}</li>"
        for kind in kinds
        for error, count in kind["cycle_errors"].items()
    ]
    lines += [
        f"<li>{escape(kind['name'])}: {kind['power_cuts']} power cuts</li>" for kind in kinds if kind["power_cuts"]
    ]
    lines += [f"<li>died: <pre>{escape(text)}</pre></li>" for kind in kinds for text in kind["crashes"]]
    return f"<h2>What happened</h2><ul>{''.join(lines)}</ul>" if lines else ""
