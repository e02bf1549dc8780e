"""How `midge top` looks: tables of what `top_state` knows.
Knows rich, nothing of connections.
"""

from __future__ import annotations

import time

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from midge.cli.top_state import State

# A board that said nothing for so long is marked; the examples speak every few seconds, battery sensors don't.
_SILENT_S = 120
# Of a durable queue, even if they are 0.
_ALWAYS_TOLD = ("messages/count", "consumers")


def render(state: State, where: str, now: float) -> RenderableType:
    parts: list[RenderableType] = [_headline(state, where), _broker(state)]
    if state.bridges() or state.queues():
        parts.append(_bridges_and_queues(state))
    parts.append(_boards(state, now))
    return Group(*parts)


def _headline(state: State, where: str) -> Text:
    none = "a board's broker" if state.is_board else "no $SYS/ topics came: not allowed to this user, or switched off"
    version = state.values.get("version", none)
    uptime = state.number("uptime")
    up = "" if uptime is None else f", up {age(uptime)}"
    return Text(f"{where}  {version}{up}  {time.strftime('%H:%M:%S')}", style="bold")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def _broker(state: State) -> Table:
    table = _table("", "in /s", "out /s", "", "now", "", "count")
    sums: list[tuple[str, str]] = [
        ("clients", _number(state.number("clients/connected"))),
        ("... away", _number(state.number("clients/disconnected"))),
        ("queued", _number(state.number("queued messages/count", "messages/stored"))),
    ]
    others: list[tuple[str, str]] = [
        ("subscriptions", _number(state.number("subscriptions/count"))),
        ("retained", _number(state.number("retained messages/count"))),
        ("memory", size(state.number("heap/current"))),
    ]
    if state.is_board:
        sums[2] = ("queued", size(state.number("messages/queued/bytes")))
        others[1] = ("retained", size(state.number("retained/bytes")))
        others[2] = ("heap free", size(state.number("heap/free")))
    for number, kind in enumerate(("messages", "packets", "bytes")):
        table.add_row(
            kind,
            _rate(state.rate(f"{kind} in")),
            _rate(state.rate(f"{kind} out")),
            Text(f"   {sums[number][0]}"),
            sums[number][1],
            Text(f"   {others[number][0]}"),
            others[number][1],
        )
    dropped = {cause: count for cause, count in state.drops().items() if count}
    told = ", ".join(f"{cause} {count:,}" for cause, count in dropped.items()) or "none"
    table.add_row(Text("dropped"), Text(told, style="bold red" if dropped else ""))
    return table


def _bridges_and_queues(state: State) -> Table:
    table = _table("bridge or queue", "state")
    for name, is_connected in state.bridges().items():
        table.add_row(name, Text("connected" if is_connected else "broken", style="" if is_connected else "bold red"))
    for name, figures in state.queues().items():
        told = [f"{figure} {text}" for figure, text in figures.items() if text != "0" or figure in _ALWAYS_TOLD]
        table.add_row(name, ", ".join(told))
    return table


def _boards(state: State, now: float) -> RenderableType:
    if not state.boards:
        return Text("no boards heard of yet (they tell NAME/status, or $SYS/ through a bridge)", style="dim")
    table = _table("board", "state", "seen", "heap free", "clients", "dropped", "up")
    for name in sorted(state.boards):
        board = state.boards[name]
        seen = "retained" if board.seen_at is None else f"{age(now - board.seen_at)} ago"
        is_silent = board.state == "offline" or (board.seen_at is not None and now - board.seen_at > _SILENT_S)
        table.add_row(
            name,
            Text(board.state, style="bold red" if board.state == "offline" else "green"),
            Text(seen, style="yellow" if is_silent else ""),
            size(board.heap_free),
            _number(board.clients),
            _number(board.dropped),
            "" if board.uptime_s is None else age(board.uptime_s),
        )
    return table


def _number(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def _rate(per_second: float | None) -> str:
    if per_second is None:
        return ""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.1f}"


def size(count: int | None) -> str:
    """`41.0 MB`; nothing if it isn't known."""
    if count is None:
        return ""
    number = float(count)
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} bytes" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def age(seconds: float) -> str:
    """`12 s`, `3 min`, `5 h`, `2 d`."""
    for least, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * least:
            return f"{seconds // least:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
