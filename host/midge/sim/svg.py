"""Plots as plain SVG, for pages that must stand alone: bars, lines and steps, with axes that fit their values.
Knows numbers and texts only; colours come from the page's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

WIDTH, HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 30, 12, 44
_BAR_HEIGHT = 26
_BAR_LEFT = 380

Points = Sequence[Sequence[float]]


def lines(
    series: Sequence[tuple[str, Points]], x_label: str, y_label: str, is_log: bool = False, y_max: float | None = None
) -> str:
    """A plot of [x, y] points, joined; *is_log*: of x, whose values below 1 are shown at 1."""
    x_values = [point[0] for _, points in series for point in points] or [1.0]
    y_values = [point[1] for _, points in series for point in points] or [1.0]
    x_ticks = _log_ticks(max(x_values)) if is_log else _ticks(max(x_values))
    y_ticks = _ticks(y_max if y_max is not None else max(y_values))

    def x_of(x: float) -> float:
        if is_log:
            share = math.log10(max(x, 1.0)) / math.log10(x_ticks[-1])
        else:
            share = x / x_ticks[-1]
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y_of(y: float) -> float:
        return HEIGHT - _BOTTOM - y / y_ticks[-1] * (HEIGHT - _TOP - _BOTTOM)

    parts = [_axes(x_ticks, y_ticks, x_of, y_of, x_label, y_label)]
    for number, (name, points) in enumerate(series):
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
        parts.append(f'<polyline class="line c{number % 6}" points="{path}"><title>{escape(name)}</title></polyline>')
    return _svg(WIDTH, HEIGHT, f"{y_label} over {x_label}", parts) + _legend([name for name, _ in series])


def bars(rows: Sequence[tuple[str, float, str]], label: str) -> str:
    """Horizontal bars: name, value, and what stands behind the bar."""
    largest = max((value for _, value, _ in rows), default=0) or 1
    height = _BAR_HEIGHT * len(rows) + 8
    room = WIDTH - _BAR_LEFT - 120
    parts = []
    for number, (name, value, text) in enumerate(rows):
        y = 4 + number * _BAR_HEIGHT
        width = value / largest * room
        parts.append(
            f'<text class="end" x="{_BAR_LEFT - 8}" y="{y + 17}">{escape(name)}</text>'
            f'<rect class="bar" x="{_BAR_LEFT}" y="{y + 4}" width="{width:.1f}" height="{_BAR_HEIGHT - 8}" rx="2"/>'
            f'<text x="{_BAR_LEFT + width + 6:.1f}" y="{y + 17}">{escape(text)}</text>'
        )
    return _svg(WIDTH, height, label, parts)


def _axes(
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_of: Callable[[float], float],
    y_of: Callable[[float], float],
    x_label: str,
    y_label: str,
) -> str:
    bottom = HEIGHT - _BOTTOM
    parts = []
    for y in y_ticks:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y_of(y):.1f}" y2="{y_of(y):.1f}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 6}" y="{y_of(y) + 4:.1f}">{y:g}</text>')
    for x in x_ticks:
        parts.append(f'<line class="grid" x1="{x_of(x):.1f}" x2="{x_of(x):.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="middle" x="{x_of(x):.1f}" y="{bottom + 16}">{x:g}</text>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text class="middle" x="{middle}" y="{HEIGHT - 8}">{escape(x_label)}</text>')
    parts.append(
        f'<text class="middle" transform="rotate(-90 12 {bottom / 2})" x="12" y="{bottom / 2}">{escape(y_label)}</text>'
    )
    return "".join(parts)


def _ticks(largest: float) -> list[float]:
    """About five round values from 0 to at least *largest*."""
    largest = largest if largest > 0 else 1.0
    rough = largest / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    return [step * number for number in range(math.ceil(largest / step - 1e-9) + 1)]


def _log_ticks(largest: float) -> list[float]:
    return [float(10**power) for power in range(max(1, math.ceil(math.log10(max(largest, 1.0)))) + 1)]


def _svg(width: int, height: int, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _legend(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    items = (f'<span><i class="c{number % 6}"></i>{escape(name)}</span>' for number, name in enumerate(names))
    return f'<p class="legend">{"".join(items)}</p>'
