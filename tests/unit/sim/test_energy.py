"""From phases to charge, and from charge to days; figures that nobody has published."""

import math

import pytest

from midge.boards import profiles
from midge.boards.profiles import Current, Figure, Profile
from midge.boards.simulate import BoardError
from midge.sim.cells import CELLS, Cell
from midge.sim.energy import AIRTIME_MS, TLS_HANDSHAKE_MS, Consumption, Cost


def _profile(**figures: float) -> Profile:
    known = {key: Figure(value=value, source=f"the source of {key}") for key, value in figures.items()}
    return profiles.find("esp32").model_copy(update={"current": Current(**known)})


def test_cycle_is_the_sum_of_its_parts() -> None:
    board = Consumption(_profile(active_mA=50, rx_mA=100, tx_mA=200, deep_sleep_uA=10, boot_ms=600,
                                 connect_wifi_ms=1500, connect_wifi_fast_ms=700))  # fmt: skip
    assert board.boot() == Cost("boot to main.py", 600, 30)
    assert board.wifi(is_fast=True).mC == 70
    assert board.wifi(is_fast=False).mC == 150
    assert board.handshake().mC == TLS_HANDSHAKE_MS.value / 10
    exchange = board.exchange(100, segments=4)
    assert exchange.is_measured
    assert exchange.mC == pytest.approx(10 + 4 * AIRTIME_MS.value * 100 / 1000)


def test_day_is_cycles_and_sleep_between_them() -> None:
    board = Consumption(_profile(deep_sleep_uA=10))
    cost = Cost("all", ms=2000, mC=90)
    # 144 cycles of 90 mC, and 598 s of 10 uA after each.
    assert board.sleeping([cost], 600) == pytest.approx(144 * (90 + 5.98) / 3600)
    # Longer than the interval: one after the other.
    assert board.sleeping([cost], 1) == pytest.approx(43_200 * 90 / 3600)


def test_always_on_board_draws_its_idle_current_and_more_while_it_is_busy() -> None:
    board = Consumption(_profile(rx_mA=100, modem_sleep_mA=30))
    assert board.always_on(True, busy_ms=0, interval_s=60) == 30 * 24
    assert board.always_on(True, busy_ms=600, interval_s=60) == pytest.approx((30 + 0.7) * 24)
    assert board.always_on(False, busy_ms=600, interval_s=60) == 100 * 24


def test_measured_charge_is_taken_before_a_product_of_time_and_current() -> None:
    board = Consumption(_profile(rx_mA=100, connect_wifi_ms=1500, connect_wifi_mC=201))
    assert board.wifi(is_fast=False).mC == 201
    assert "connect_wifi_mC" in board.used


def test_figure_that_is_taken_from_elsewhere_is_said() -> None:
    board = Consumption(_profile(rx_mA=100, active_mA=50))
    assert board.value("tx_mA", "rx_mA") == 100
    assert board.boot().ms == profiles.find("esp32").current.figures()["boot_ms"].value
    assert board.used["rx_mA (in the place of tx_mA)"] == "100: the source of rx_mA"
    assert any(key.startswith("boot_ms (the ESP32's") for key in board.used)


def test_board_without_a_current_is_refused() -> None:
    with pytest.raises(BoardError, match=r"Pico 2 W.*no source for active_mA"):
        Consumption(profiles.find("pico2-w")).value("active_mA")


def test_cell_lasts_as_long_as_load_and_self_discharge_leave_it() -> None:
    cell = Cell("ideal", 1000, 1.0, 1e-9, 1000, "")
    assert cell.days(10) == pytest.approx(100, rel=1e-4)
    leaky = Cell("leaky", 1000, 1.0, 0.5, 1000, "")
    assert leaky.days(1e-6) > 365  # no load: half of it each year
    # After `days` nothing is left: C(t) = (C0 + load / s) exp(-s t) - load / s.
    days, rate = leaky.days(2), math.log(2) / 365
    assert (1000 + 2 / rate) * math.exp(-rate * days) - 2 / rate == pytest.approx(0, abs=1e-6)


def test_each_cell_says_where_its_figures_come_from() -> None:
    for cell in CELLS.values():
        assert 0 < cell.usable < 1 and 0 < cell.self_discharge < 1
        assert len(cell.source) > 20
