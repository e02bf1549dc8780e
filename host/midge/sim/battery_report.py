"""How long a battery lasts: runs the measurements, turns them into charge, and writes what each choice costs.
Knows what to compare; how it is measured and what it draws are `battery`'s and `energy`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midge.boards.simulate import BoardError
from midge.sim.battery import Bench, Choice, Measured
from midge.sim.cells import CELLS
from midge.sim.document import Document
from midge.sim.energy import S_PER_DAY, Consumption, Cost
from midge.sim.link import Conditions

INTERVALS_S = (60, 300, 600, 3600)

# Of a lossy link, to compare with; and cycles enough for some segments to be lost.
LOSSY = 0.05
LOSSY_CYCLES = 4

KEEP_ALIVE_S = 60


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line asks for."""

    board: str = "esp32"
    conditions: Conditions = field(default_factory=lambda: Conditions(0.02))
    cycles: int = 10
    interval_s: float = 600.0
    messages: int = 3
    payload_bytes: int = 20
    cell: str = "18650"
    programs: tuple[Path, ...] = ()
    arguments: tuple[str, ...] = ()


def choices(wishes: Wishes, has_umqtt: bool) -> list[Choice]:
    def choice(label: str, program: str = "wake", qos: int = 1, tls: bool = False) -> Choice:
        return Choice(label, program, qos, tls, wishes.messages, wishes.payload_bytes, wishes.arguments)

    found = [
        choice("`wake()`, QoS 1"),
        choice("`wake()`, QoS 0", qos=0),
        choice("`wake()`, QoS 2", qos=2),
        choice("`wake()`, QoS 1, TLS", tls=True),
    ]
    if has_umqtt:
        found += [
            choice("`umqtt.simple`, QoS 0, fetches no commands", "umqtt", 0),
            choice("`umqtt.simple`, QoS 1, fetches no commands", "umqtt", 1),
            choice("`umqtt.simple`, QoS 1, looks 1 s for commands", "umqtt commands", 1),
            choice("`umqtt.simple`, QoS 1, TLS (not verified)", "umqtt", 1, True),
        ]
    found += [choice(f"`{path.name}`", str(path)) for path in wishes.programs]
    return found


@dataclass(slots=True)
class Result:
    """All measurements, the first of them the one that the others are compared with."""

    wishes: Wishes
    consumption: Consumption
    measured: list[Measured]
    ping: Measured
    lossy: list[Measured]

    def costs(self, measured: Measured, is_fast: bool = True) -> list[Cost]:
        parts = [self.consumption.boot(), self.consumption.wifi(is_fast)]
        if measured.choice.tls:
            parts.append(self.consumption.handshake())
        return [*parts, self.consumption.exchange(measured.ms, measured.segments)]

    def mAh_per_day(self, measured: Measured, is_fast: bool = True, interval_s: float | None = None) -> float:
        return self.consumption.sleeping(self.costs(measured, is_fast), interval_s or self.wishes.interval_s)


async def measure(
    wishes: Wishes, consumption: Consumption, umqtt: Path | None, on_step: Callable[[str], None] = lambda text: None
) -> Result:
    """*on_step*: told what is measured now."""
    measured, lossy = [], []
    known = wishes.conditions
    async with Bench(known, wishes.cycles, umqtt, wishes.programs) as bench:
        for choice in choices(wishes, umqtt is not None):
            on_step(choice.label)
            measured.append(await bench.measure(choice))
        on_step("always on")
        ping = await bench.measure(Choice("PINGREQ", "always on"))
        conditions = Conditions(known.delay_s, known.jitter_s, max(LOSSY, known.loss), known.rto_s)
        for one in measured:
            if one.choice.program in ("wake", "umqtt") and one.choice.qos == 1 and not one.choice.tls:
                on_step(f"{one.choice.label}, loss")
                lossy.append(await bench.measure(one.choice, conditions, LOSSY_CYCLES * wishes.cycles))
    return Result(wishes, consumption, measured, ping, lossy)


def document(result: Result, without_umqtt: str = "") -> Document:
    """*without_umqtt*: why it isn't compared."""
    wishes, profile = result.wishes, result.consumption.profile
    paper = Document("How long will my battery last?")
    link = wishes.conditions
    paper.say(
        f"A board that wakes every {_time(wishes.interval_s)}, sends {wishes.messages} messages of "
        f"{wishes.payload_bytes} bytes, and sleeps again. Board: {profile.name} (the chip; a development board's "
        f"regulator, LED and USB bridge come on top). Link: {link.delay_s * 1000:g} ms each way, "
        f"{link.loss * 100:g} % of segments lost. `midge sim battery` measured this on MicroPython's unix port against "
        f"`midge broker`, {wishes.cycles} cycles each, and reckoned with the board's currents. What isn't marked as "
        "measured comes from the sources at the end; what they don't tell isn't in it."
    )
    paper.say(_in_short(result))
    paper.say(
        "`make battery` wrote this page. For another board, link or program: `midge sim battery --board esp32-c3 "
        "--interval 300 --delay 50 --loss 1 --program main.py --argument {port}`; `midge sim battery --help` has the "
        "rest."
    )
    _one_cycle(paper, result)
    _compare(paper, result, without_umqtt)
    _intervals(paper, result)
    _loss(paper, result)
    _sources(paper, result)
    return paper


def _in_short(result: Result) -> str:
    """What to decide first, with what it is worth: percentages of a day's charge."""
    first = result.measured[0]
    base = result.mAh_per_day(first)
    texts = [
        f"remember the access point, its channel and your address, as wifi.py does (without: "
        f"{_more(result.mAh_per_day(first, is_fast=False), base)})",
        f"wake half as often ({_more(result.mAh_per_day(first, interval_s=2 * result.wishes.interval_s), base)})",
    ]
    for one in result.measured[1:]:
        if one.choice.tls and one.choice.program == "wake":
            texts.append(f"TLS only where it must be ({_more(result.mAh_per_day(one), base)})")
    staying = result.consumption.always_on(True, 0.0, result.wishes.interval_s)
    texts.append(f"don't keep the connection between two readings ({staying / base:.0f} times as much)")
    others = [
        f"QoS {one.choice.qos} {_more(result.mAh_per_day(one), base)}"
        for one in result.measured[1:]
        if one.choice.program == "wake" and not one.choice.tls
    ]
    return f"In short: {'; '.join(texts)}. The QoS matters little: beside QoS 1, {', '.join(others)}."


def _more(value: float, base: float) -> str:
    return f"{(value / base - 1) * 100:+.0f} %"


def _one_cycle(paper: Document, result: Result) -> None:
    base = result.measured[0]
    costs = result.costs(base)
    paper.heading("Where the charge of one cycle goes")
    paper.say(f"{base.choice.label}, without TLS.")
    asleep_s = result.wishes.interval_s - sum(cost.ms for cost in costs) / 1000
    sleep = Cost("deep sleep", asleep_s * 1000, asleep_s * result.consumption.value("deep_sleep_uA") / 1000)
    whole = sum(cost.mC for cost in [*costs, sleep])
    rows = [
        [cost.what + (", measured" if cost.is_measured else ""), f"{cost.ms:.0f}", f"{cost.mC:.1f}",
         f"{cost.mC / whole * 100:.0f} %"]
        for cost in [*costs, sleep]
    ]  # fmt: skip
    paper.table(["part", "ms", "mC", "share"], rows)
    phases = base.phases_ms
    paper.say(
        f"What is measured, by `wake()`'s `stats`: {phases['connect_ms'] + phases['connack_ms']:.0f} ms to CONNACK, "
        f"TCP's handshake included, {phases['exchange_ms']:.0f} from there to the last answer, "
        f"{phases['close_ms']:.0f} to the end."
    )


def _compare(paper: Document, result: Result, without_umqtt: str) -> None:
    wishes = result.wishes
    cell = CELLS[wishes.cell]
    base = result.mAh_per_day(result.measured[0])
    paper.heading("What each choice costs")
    rows = []
    for one in result.measured:
        rows.append(_choice_row(result, one, one.choice.label, result.mAh_per_day(one), base))
    first = result.measured[0]
    slow = result.mAh_per_day(first, is_fast=False)
    rows.append(_choice_row(result, first, "`wake()`, QoS 1, Wi-Fi with a scan and DHCP each time", slow, base, False))
    for has_power_save, label in ((True, "always on, radio in modem sleep"), (False, "always on, no power save")):
        # A ping: the radio is on from PINGREQ to PINGRESP; a report takes as long as a cycle without a connection.
        ping_ms = 2000 * wishes.conditions.delay_s + 5
        pings = wishes.interval_s / KEEP_ALIVE_S
        mAh = result.consumption.always_on(has_power_save, ping_ms * (pings + 1), wishes.interval_s)
        rows.append([
            f"{label}, keep alive {KEEP_ALIVE_S} s", "", "", f"{result.ping.segments * pings:.0f}",
            f"{result.ping.bytes * pings:.0f}", "", f"{mAh:.1f}", _ratio(mAh, base), _days(cell.days(mAh)), "",
        ])  # fmt: skip
    paper.table(
        ["choice", "ms", "round trips", "segments", "bytes", "mC a cycle", "mAh a day", "times the first",
         f"days on {cell.name}", "arrived"],
        rows,
    )  # fmt: skip
    paper.say(
        "Milliseconds (from the call to its return), round trips, segments from the board and bytes both ways are "
        "measured: of each cycle the median, or on a link that loses the mean. A round trip of TCP's handshake is in "
        "them. `wake()` also fetches what waits for "
        "the board; `umqtt.simple` can't know that nothing does, so a program looks for a while: here 1 s, as mqtt_as' "
        "low-power example does. It has no QoS 2. TLS costs round trips, which are measured, and the board's "
        "computing, which is not: see the sources."
    )
    if without_umqtt:
        paper.say(f"`umqtt.simple` isn't compared: {without_umqtt}.")


def _choice_row(
    result: Result, one: Measured, label: str, mAh: float, base: float, is_fast: bool = True
) -> list[str]:
    mC = sum(cost.mC for cost in result.costs(one, is_fast))
    return [
        label, f"{one.ms:.0f}", f"{one.round_trips:.1f}", f"{one.segments:.1f}", f"{one.bytes:.0f}", f"{mC:.0f}",
        f"{mAh:.2f}", _ratio(mAh, base), _days(CELLS[result.wishes.cell].days(mAh)),
        f"{one.arrived} of {one.made}" if one.made else "",
    ]  # fmt: skip


def _intervals(paper: Document, result: Result) -> None:
    base = result.measured[0]
    peak_mA = max(result.consumption.value("tx_mA", "rx_mA"), result.consumption.value("rx_mA"))
    paper.heading("How often to wake, and on what")
    paper.say(f"Days, with {base.choice.label}, self-discharge included.")
    rows = []
    for interval_s in INTERVALS_S:
        mAh = result.mAh_per_day(base, interval_s=interval_s)
        cells = [_days(cell.days(mAh)) if cell.peak_mA >= peak_mA else "-" for cell in CELLS.values()]
        rows.append([f"every {_time(interval_s)}", f"{mAh:.2f}", *cells])
    paper.table(["interval", "mAh a day", *(cell.name for cell in CELLS.values())], rows)
    weak = [cell.name for cell in CELLS.values() if cell.peak_mA < peak_mA]
    if weak:
        paper.say(f"-: a {' or '.join(weak)} can't give the {peak_mA:g} mA that the radio wants, however seldom.")
    no_cycle = result.consumption.value("deep_sleep_uA") * 24 / 1000
    paper.say(
        f"Sleep alone takes {no_cycle:.2f} mAh a day, so beyond {_time(_break_even_s(result))} it takes more than the "
        "cycles do."
    )


def _break_even_s(result: Result) -> float:
    """The interval at which sleep and cycles take the same."""
    mC = sum(cost.mC for cost in result.costs(result.measured[0]))
    return mC / result.consumption.value("deep_sleep_uA") * 1000


def _loss(paper: Document, result: Result) -> None:
    paper.heading("On a bad link")
    loss = max(LOSSY, result.wishes.conditions.loss)
    rto_ms = result.wishes.conditions.rto_s * 1000
    paper.say(
        f"{loss * 100:g} % of segments lost, the first retransmission after {rto_ms:g} ms (ESP-IDF's default); means "
        f"of {LOSSY_CYCLES * result.wishes.cycles} cycles, so chance has a part in it."
    )
    rows = []
    for one in result.lossy:
        mAh = result.mAh_per_day(one)
        good = next(other for other in result.measured if other.choice == one.choice)
        rows.append([
            one.choice.label, f"{one.ms:.0f}", f"{one.worst_ms:.0f}", f"{mAh:.2f}",
            _ratio(mAh, result.mAh_per_day(good)), f"{one.arrived} of {one.made}",
        ])  # fmt: skip
    paper.table(["choice", "ms", "the worst", "mAh a day", "times the good link's", "arrived"], rows)


def _sources(paper: Document, result: Result) -> None:
    paper.heading("The figures, and who says so")
    paper.table(["figure", "value and source"], [[key, text] for key, text in result.consumption.used.items()])
    rows = [
        [cell.name, f"{cell.usable_mAh:.0f} of {cell.nominal_mAh:g} mAh, {cell.self_discharge * 100:g} % a year: "
                    f"{cell.source}"]
        for cell in CELLS.values()
    ]  # fmt: skip
    paper.table(["cell", "what a board gets of it"], rows)
    paper.say(
        "Not in it: sensors, a regulator's own current, cold, age, a board's time to run Python between boot and "
        "`wake()`, retransmissions of the radio itself, and delayed acknowledgements, which would make programs of "
        "many small writes slower still."
    )


def figures(result: Result) -> dict[str, Any]:
    """For `--json`."""
    return {
        "board": result.consumption.profile.key,
        "interval_s": result.wishes.interval_s,
        "delay_ms": result.wishes.conditions.delay_s * 1000,
        "loss": result.wishes.conditions.loss,
        "choices": [_choice_figures(result, one) for one in result.measured],
        "lossy": [_choice_figures(result, one) for one in result.lossy],
        "sources": result.consumption.used,
        "cells": {key: round(cell.days(result.mAh_per_day(result.measured[0])), 1) for key, cell in CELLS.items()},
    }


def _choice_figures(result: Result, one: Measured) -> dict[str, Any]:
    costs = result.costs(one)
    return {
        "label": one.choice.label.replace("`", ""), "qos": one.choice.qos, "tls": one.choice.tls,
        "ms": round(one.ms, 1), "worst_ms": round(one.worst_ms, 1), "round_trips": round(one.round_trips, 2),
        "phases_ms": {name: round(ms, 1) for name, ms in one.phases_ms.items()},
        "segments": round(one.segments, 2), "bytes": round(one.bytes, 1), "made": one.made, "arrived": one.arrived,
        "mC": {cost.what: round(cost.mC, 2) for cost in costs}, "mAh_per_day": round(result.mAh_per_day(one), 3),
    }  # fmt: skip


def _ratio(value: float, base: float) -> str:
    return f"{value / base:.2f}"


def _days(days: float) -> str:
    return f"{days:.0f}" if days >= 10 else f"{days:.1f}"


def _time(seconds: float) -> str:
    for size, unit in ((S_PER_DAY, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:g} s"


def check(wishes: Wishes, consumption: Consumption) -> None:
    """`BoardError`: what is asked for can't be; before anything is measured."""
    if not consumption.profile.has_radio:
        raise BoardError(f"{consumption.profile.name} has no radio")
    for key in ("active_mA", "rx_mA", "deep_sleep_uA"):
        Consumption(consumption.profile).value(key)
    if wishes.cell not in CELLS:
        raise BoardError(f"no cell '{wishes.cell}'; there are: {', '.join(CELLS)}")
    for path in wishes.programs:
        if not path.is_file():
            raise BoardError(f"{path}: no such file")
