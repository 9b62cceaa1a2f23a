"""Laws of the comparison's statistics: coverage, agreement with scipy, power, Holm."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.results.stats.statistics import (
    Estimate,
    Sample,
    compare,
    holm,
    rate_error,
    runs_needed,
)

TRIALS = 4000
WITHIN = (0.93, 0.97)
"""What a 95 % interval must cover: 4,000 trials tell 95 % to 0.7 points."""

REPEATS = [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (5, 10))]

numbers = st.lists(st.floats(50, 100), min_size=2, max_size=6, unique=True)


def covered(intervals: list[tuple[float, float]], truth: float) -> float:
    return float(np.mean([low <= truth <= high for low, high in intervals]))


def excludes_zero(bounds: tuple[float, float]) -> bool:
    return not bounds[0] <= 0 <= bounds[1]


def interval(new: Sample, base: Sample, assumed_std: float | None = None) -> tuple[float, float]:
    estimate = compare(new, base, assumed_std)
    assert estimate is not None
    return estimate.interval()


@given(numbers, numbers)
def test_two_sides_with_repeats_are_welchs_test(new: list[float], base: list[float]) -> None:
    theirs = stats.ttest_ind(new, base, equal_var=False)
    estimate = compare(Sample.of(new), Sample.of(base), None)
    assert estimate is not None
    assert estimate.basis == "welch"
    assert estimate.p_differs() == pytest.approx(theirs.pvalue, rel=1e-6, abs=1e-12)
    assert estimate.interval() == pytest.approx(tuple(theirs.confidence_interval(0.95)))


@pytest.mark.parametrize("n", REPEATS)
def test_interval_of_two_sides_with_repeats_covers_the_truth(n: int) -> None:
    rng = np.random.default_rng(n)
    new, base = rng.normal(76.3, 0.1, (TRIALS, n)), rng.normal(76.0, 0.1, (TRIALS, n))
    pairs = zip(new, base, strict=True)
    found = [interval(Sample.of(list(a)), Sample.of(list(b))) for a, b in pairs]
    assert WITHIN[0] <= covered(found, 0.3) <= WITHIN[1]


@pytest.mark.parametrize("n", REPEATS)
def test_interval_of_a_single_run_beside_several_covers_the_truth(n: int) -> None:
    rng = np.random.default_rng(n)
    ours, theirs = rng.normal(76.3, 0.1, TRIALS), rng.normal(76.0, 0.1, (TRIALS, n))
    pairs = zip(ours, theirs, strict=True)
    found = [interval(Sample(one, None, 1), Sample.of(list(many))) for one, many in pairs]
    assert WITHIN[0] <= covered(found, 0.3) <= WITHIN[1]


@pytest.mark.parametrize("n", REPEATS)
def test_interval_of_throughputs_covers_the_truth(n: int) -> None:
    """Runs differ by 1 %; within each, neighbouring periods drift together."""
    rng = np.random.default_rng(n)
    noise = rng.normal(0, 0.02, (TRIALS, 2, n, 64))
    drift = sum(np.roll(noise, shift, axis=-1) for shift in range(5)) / 5
    offset = rng.normal(0, 0.01, (TRIALS, 2, n, 1))
    seconds = 1000 / (np.array([1000, 950])[:, None, None] * np.exp(offset + drift))
    rates = np.log(64 * 1000 / seconds.sum(-1))
    found = [interval(Sample.of(list(new)), Sample.of(list(base))) for new, base in rates]
    assert WITHIN[0] <= covered(found, math.log(1000 / 950)) <= WITHIN[1]


def test_two_single_runs_of_known_spread_cover_the_truth() -> None:
    """What neither run tells of the other, the assumed spread does; each tells of itself."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        sides = []
        for mean in (1000.0, 950.0):
            offset = rng.normal(0, 0.01)
            images = np.full(200, 256.0)
            seconds = images / (mean * np.exp(offset + rng.normal(0, 0.1, 200)))
            rate = math.log(images.sum() / seconds.sum())
            sides.append(Sample(rate, None, 1, rate_error(images, seconds)))
        found.append(interval(*sides, assumed_std=0.01))
    assert 0.92 <= covered(found, math.log(1000 / 950)) <= 0.975


def test_error_of_a_rate_is_that_of_independent_periods() -> None:
    rng = np.random.default_rng(0)
    images, seconds = np.full(400, 256.0), rng.normal(1.0, 0.05, 400)
    error = rate_error(images, seconds)
    assert error == pytest.approx(0.05 / 20, rel=0.35)  # 20 blocks tell a spread to a sixth


def test_error_of_a_rate_grows_where_neighbours_drift_together() -> None:
    drift = np.repeat(np.random.default_rng(0).normal(1.0, 0.05, 20), 20)
    error = rate_error(np.full(400, 256.0), drift)
    assert error > 3 * 0.05 / 20  # four times, as only 20 of 400 are independent


def test_few_periods_tell_no_error() -> None:
    assert rate_error(np.full(3, 10.0), np.full(3, 2.0)) == 0.0


def test_nothing_is_said_without_any_spread() -> None:
    assert compare(Sample(76.0, None, 1), Sample(75.0, None, 1), None) is None


def test_equal_repeats_are_equal_and_others_are_not() -> None:
    same, other = Sample(20.0, 0.0, 3), Sample(21.0, 0.0, 3)
    equal, differing = compare(same, same, None), compare(other, same, None)
    assert equal
    assert differing
    assert (equal.p_differs(), equal.p_within(0.1)) == (1.0, 0.0)
    assert (differing.p_differs(), differing.p_within(0.1)) == (0.0, 1.0)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order_and_is_between_the_raw_value_and_bonferroni(
    p_values: list[float],
) -> None:
    found = holm(p_values)
    for raw, adjusted in zip(p_values, found, strict=True):
        assert raw <= adjusted <= min(1.0, len(p_values) * raw) or raw == adjusted
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [found[k] for k in order] == sorted(found)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_false_alarms_stay_below_the_level() -> None:
    rng = np.random.default_rng(1)
    alarms = 0
    for new, base in rng.normal(76, 0.1, (TRIALS, 2, 5)):
        estimate = compare(Sample.of(list(new)), Sample.of(list(base)), None)
        assert estimate
        alarms += estimate.p_differs() <= 0.05 and estimate.p_within(0.02) > 0.05
    assert alarms / TRIALS <= 0.06


def test_the_number_of_runs_that_is_asked_for_tells() -> None:
    """With so many seeds, eight of ten times the truth is distinguished from the bound."""
    ours, theirs = Sample(76.35, 0.12, 1), Sample(76.40, 0.12, 5)
    n = runs_needed(ours, theirs, bound=-0.25)
    assert n is not None
    rng = np.random.default_rng(2)
    # As the publication's mean, known to have an error, was used for the number.
    detected = 0
    for draw in rng.normal(76.35, 0.12, (TRIALS, n)):
        paper = rng.normal(76.40, 0.12 / math.sqrt(5))
        estimate = compare(Sample.of(list(draw)), Sample(paper, 0.12, 5), None)
        assert estimate
        detected += estimate.p_above(-0.25) <= 0.05
    assert 0.75 <= detected / TRIALS <= 0.93


def test_no_number_of_runs_tells_a_difference_at_the_bound_or_without_spread() -> None:
    at_bound = runs_needed(Sample(1.0, 0.1, 3), Sample(2.0, 0.1, 3), bound=-1.0)
    unknown = runs_needed(Sample(1.0, None, 1), Sample(2.0, None, 1), bound=0.0)
    vague = runs_needed(Sample(1.0, 0.1, 3), Sample(1.1, 5.0, 2), bound=0.0)
    assert (at_bound, unknown, vague) == (None, None, None)


@given(st.floats(-5, 5), st.floats(0.01, 2), st.floats(2, 30), st.floats(0.1, 3))
def test_equivalence_is_the_90_percent_interval_within_the_margin(
    difference: float, error: float, degrees: float, margin: float
) -> None:
    estimate = Estimate(difference, error, degrees, "welch")
    low, high = estimate.interval(0.90)
    near = min(abs(low + margin), abs(high - margin)) < 1e-9
    assert near or (estimate.p_within(margin) <= 0.05) == (-margin <= low and high <= margin)


def test_runs_that_drift_do_not_cry_wolf() -> None:
    """Speed that wanders within a run wanders from run to run: 2 % is not assumed then."""
    rng = np.random.default_rng(0)
    alarms, steady_alarms = 0, 0
    for _ in range(1000):
        sides = []
        for _ in range(2):
            start = rng.normal(0, 0.05)
            halves = start + rng.normal(0, 0.05, 2)
            drift = abs(halves[0] - halves[1]) / math.sqrt(2)
            sides.append(Sample(float(halves.mean()), None, 1, 0.01, drift))
        alarms += excludes_zero(interval(*sides, assumed_std=0.02))
        blind = [Sample(side.mean, None, 1, 0.01) for side in sides]
        steady_alarms += excludes_zero(interval(*blind, assumed_std=0.02))
    assert alarms < 100 < 400 < steady_alarms


def test_what_the_halves_differ_by_counts_only_where_it_is_more_than_assumed() -> None:
    calm, wild = Sample(0.0, None, 1, 0.0, 0.01), Sample(0.0, None, 1, 0.0, 0.05)
    estimate = compare(calm, calm, 0.02)
    assert estimate is not None
    assert (estimate.basis, estimate.degrees) == ("assumed", math.inf)
    assert estimate.error == pytest.approx(0.02 * math.sqrt(2))
    estimate = compare(wild, calm, 0.02)
    assert estimate is not None
    assert estimate.basis == "drift"
    assert estimate.error == pytest.approx(math.hypot(0.05, 0.02))
    assert estimate.degrees == pytest.approx((0.05**2 + 0.02**2) ** 2 / 0.05**4)
