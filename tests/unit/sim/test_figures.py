"""Distributions, and what makes a simulation end well."""

from midge.sim.figures import distribution, is_well, percentile


def test_percentile_is_the_nearest_rank() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, percent) for percent in (50, 95, 99, 100)] == [50, 95, 99, 100]
    assert percentile([7.0], 50) == 7.0


def test_distribution_has_a_curve_that_ends_at_the_largest_value() -> None:
    found = distribution([3, 1, 2] * 100)
    assert (found["count"], found["mean"], found["p50"], found["max"]) == (300, 2, 2, 3)
    curve = found["curve"]
    assert len(curve) == 60
    assert curve[-1] == [3, 1.0]
    assert curve == sorted(curve)


def test_nothing_measured_is_a_count_of_0() -> None:
    assert distribution([]) == {"count": 0}


def _result(lost: dict[str, int], doubled_qos_2: int = 0, crashes: list[str] | None = None) -> dict[str, object]:
    count = {"lost": lost, "doubled_qos_2": doubled_qos_2}
    return {"total": {"messages": count, "commands": count, "crashes": crashes or []}}


def test_only_what_has_no_explanation_is_bad() -> None:
    assert is_well(_result({"outbox full, the oldest dropped": 3}))
    assert not is_well(_result({"unexplained": 1}))
    assert not is_well(_result({}, doubled_qos_2=1))
    assert not is_well(_result({}, crashes=["lamp ended with exit code 1"]))
