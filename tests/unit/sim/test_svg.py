"""Plots as SVG: well-formed, with axes that hold all values."""

import re
import xml.etree.ElementTree as ET

import pytest

from midge.sim import svg


def _parse(text: str) -> ET.Element:
    return ET.fromstring(f"<div>{text}</div>")


def _texts(root: ET.Element) -> list[str]:
    return [element.text or "" for element in root.iter() if element.tag.endswith("text")]


def test_line_stays_within_the_plot_and_the_axes_reach_beyond_it() -> None:
    root = _parse(svg.lines([("a & b", [[0, 1], [70, 12]]), ("c", [[5, 3]])], "s", "boards"))
    lines = [element for element in root.iter() if element.tag.endswith("polyline")]
    assert len(lines) == 2
    for line in lines:
        for x, y in (map(float, pair.split(",")) for pair in line.get("points", "").split()):
            assert 0 < x < svg.WIDTH and 0 < y < svg.HEIGHT
    ticks = [float(text) for text in _texts(root) if re.fullmatch(r"[\d.]+", text)]
    assert max(ticks) >= 70
    assert "a & b" in ET.tostring(root, "unicode", "text")


def test_logarithmic_axis_shows_powers_of_ten() -> None:
    root = _parse(svg.lines([("a", [[0.5, 10], [900, 100]])], "ms", "%", is_log=True, y_max=100))
    assert {"1", "10", "100", "1000"} <= set(_texts(root))


@pytest.mark.parametrize("values", [[], [0.0], [0.001], [5, 1_000_000]])
def test_any_values_make_bars(values: list[float]) -> None:
    root = _parse(svg.bars([(f"<{value}>", value, f"{value:g}") for value in values], "what"))
    widths = [float(element.get("width", "0")) for element in root.iter() if element.tag.endswith("rect")]
    assert len(widths) == len(values)
    assert all(0 <= width < svg.WIDTH for width in widths)
