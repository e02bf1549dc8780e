"""Batteries: how much of what is printed on them a board gets, and how fast they lose it by themselves.
Knows no board.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cell:
    """*usable*: the share of *nominal_mAh* that comes out above the voltage that a 3.3 V board needs, as mA at 3.3 V.
    *self_discharge*: of what is left, in a year. *peak_mA*: what it can give for the time of a wake cycle."""

    name: str
    nominal_mAh: float
    usable: float
    self_discharge: float
    peak_mA: float
    source: str

    @property
    def usable_mAh(self) -> float:
        return self.nominal_mAh * self.usable

    def days(self, mAh_per_day: float) -> float:
        """Until it is empty: dC/dt = -load - s C, so t = ln(1 + s C / load) / s."""
        rate = -math.log(1 - self.self_discharge) / 365
        return math.log(1 + rate * self.usable_mAh / mAh_per_day) / rate


CELLS = {
    "18650": Cell(
        "18650", 3000, 0.9, 0.3, 3000,
        "3,000 mAh: common cells have 2,500 to 3,500; usable: what a linear regulator to 3.3 V leaves, an estimate; "
        "self-discharge 2 % a month and the protection circuit's, hdp-power.com (5 % in the first day, 1 to 2 % a "
        "month, 3 % the circuit)",
    ),
    "lipo500": Cell(
        "LiPo 500 mAh", 500, 0.9, 0.3, 500,
        "as printed; usable and self-discharge as the 18650's",
    ),
    "2xAA": Cell(
        "2 x AA alkaline", 2850, 0.62, 0.06, 500,
        "2,850 mAh to 0.8 V at 25 mA, Energizer E91; usable: 2.4 V on average to 3.3 V by a boost converter of 85 %; "
        "self-discharge 0.5 % a month, Journal of Renewable Energy 2024, 2329261, table 3",
    ),
    "2xL91": Cell(
        "2 x AA lithium (L91)", 3000, 0.75, 0.01, 1000,
        "3,000 mAh at any load, Energizer L91; usable: 2.9 V to 3.3 V by a boost converter of 85 %; self-"
        "discharge: 90 % left after 15 years, the same data sheet",
    ),
    "cr2032": Cell(
        "CR2032", 225, 0.9, 0.015, 15,
        "225 mAh, 0.2 mA continuous; pulses of 6.8 mA for 2 s (Energizer), 15 mA at most (encyc.org); self-discharge "
        "1.5 % a year, Rayovac",
    ),
}  # fmt: skip
