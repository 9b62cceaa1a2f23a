"""Confidence intervals, tests of difference and equivalence, and power of a comparison of means.

Distributions are scipy's. A difference is tested two-sided, with a 95 % interval; an equivalence by
two one-sided tests at 5 % (Schuirmann 1987), which corresponds to a 90 % interval.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np
from numpy.typing import NDArray
from scipy import special

ALPHA = 0.05
POWER = 0.8
MOST_RUNS = 1000


@dataclass(frozen=True)
class Sample:
    """Summary of a quantity that was measured in n runs."""

    mean: float
    std: float | None  # between runs; None for a single run, or if a publication gives none
    n: int
    within: float = 0.0  # standard error of a single run's value, from its variation over time
    drift: float = 0.0  # standard deviation of the values of a single run's two halves

    @staticmethod
    def of(values: Sequence[float], within: float = 0.0, drift: float = 0.0) -> "Sample":
        """Summarize the values of some runs, one value per run."""
        n = len(values)
        return Sample(mean(values), stdev(values) if n > 1 else None, n, within, drift)


@dataclass(frozen=True)
class Estimate:
    """A difference of two means with its standard error and degrees of freedom.

    The basis is the source of the spread between runs: `welch` if both sides have repeats; `one
    side` if only one has; `assumed` if neither has; `drift` if neither has and the halves of a run
    differ by more than the assumed spread.
    """

    difference: float
    error: float
    degrees: float  # of Student's t; infinite for a normal distribution
    basis: str

    def interval(self, level: float = 1 - ALPHA) -> tuple[float, float]:
        """Return the two-sided confidence interval of the difference."""
        half = self.error * float(special.stdtrit(self.degrees, (1 + level) / 2))
        return self.difference - half, self.difference + half

    def p_differs(self) -> float:
        """Return the two-sided p-value of the hypothesis that there is no difference."""
        return 2 * min(self.p_above(0.0), self.p_below(0.0))

    def p_above(self, bound: float) -> float:
        """Return the one-sided p-value of the hypothesis `true difference <= bound`."""
        return self._tail(self.difference - bound)

    def p_below(self, bound: float) -> float:
        """Return the one-sided p-value of the hypothesis `true difference >= bound`."""
        return self._tail(bound - self.difference)

    def p_within(self, margin: float) -> float:
        """Return the p-value of the hypothesis `|true difference| >= margin`."""
        return max(self.p_above(-margin), self.p_below(margin))

    def _tail(self, distance: float) -> float:
        if self.error == 0:  # all repeats gave exactly the same value
            return 0.5 if distance == 0 else float(distance < 0)
        return float(special.stdtr(self.degrees, -distance / self.error))


def compare(new: Sample, base: Sample, assumed_std: float | None) -> Estimate | None:
    """Return the estimate of `new - base`, or None if the spread between runs is unknown.

    If both sides have repeats, this is Welch's test. If only one has, the other's single run is
    taken as one more run of the same kind (a prediction interval). If neither has, the spread is
    `assumed_std`, or the difference between the halves of a run if that is larger, since a machine
    whose speed drifts within a run also drifts between runs; `within` of both runs is added.
    """
    difference = new.mean - base.mean
    repeated = [(side.std, side.n) for side in (new, base) if side.std is not None and side.n > 1]
    if len(repeated) == 2:
        total = sum(std**2 / n for std, n in repeated)
        degrees = float(new.n + base.n - 2)
        if total > 0:  # Welch 1947 and Satterthwaite 1946
            degrees = total**2 / sum((std**2 / n) ** 2 / (n - 1) for std, n in repeated)
        return Estimate(difference, math.sqrt(total), degrees, "welch")
    if repeated:
        ((std, n),) = repeated
        return Estimate(difference, std * math.sqrt(1 / new.n + 1 / base.n), n - 1, "one side")
    if assumed_std is None:
        return None
    spreads = [max(assumed_std, side.drift) / math.sqrt(side.n) for side in (new, base)]
    error = math.hypot(*spreads, new.within, base.within)
    # Two halves have one degree of freedom (Satterthwaite 1946); an assumed spread is exact.
    drifting = [spread**4 for side, spread in zip((new, base), spreads, strict=True)
                if side.drift > assumed_std]  # fmt: skip
    if not drifting:
        return Estimate(difference, error, math.inf, "assumed")
    return Estimate(difference, error, error**4 / sum(drifting), "drift")


def interval_of_mean(values: Sequence[float], level: float = 1 - ALPHA) -> tuple[float, float]:
    """Return the confidence interval of a mean (Student's t); infinite for a single value."""
    if len(values) < 2:
        return -math.inf, math.inf
    error = stdev(values) / math.sqrt(len(values))
    return Estimate(mean(values), error, len(values) - 1, "").interval(level)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for the number of tests (Holm 1979), in the given order."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def rate_error(images: NDArray[np.float64], seconds: NDArray[np.float64]) -> float:
    """Return the standard error of the logarithm of a run's images per second.

    It comes from a bootstrap over blocks of neighboring log periods, as the speeds of neighbors
    are correlated; 0 if there are fewer than four periods, which do not tell it.
    """
    if len(images) < 4:
        return 0.0
    blocks = min(20, max(4, round(len(images) ** 0.5)))
    cuts = np.linspace(0, len(images), blocks + 1).astype(int)[:-1]
    parts = np.add.reduceat(images, cuts), np.add.reduceat(seconds, cuts)
    from scipy.stats import bootstrap  # slow to import (1 s), and seldom needed

    result = bootstrap(
        parts, lambda i, s, axis: np.log(i.sum(axis) / s.sum(axis)), paired=True, vectorized=True,
        n_resamples=2000, method="percentile", rng=0,
    )  # fmt: skip
    # A bootstrap of k blocks divides by k where k - 1 would be unbiased.
    return float(result.standard_error) * math.sqrt(blocks / (blocks - 1))


def runs_needed(new: Sample, base: Sample, bound: float) -> int | None:
    """Return how many runs `new` needs in total to decide on which side of a bound it lies.

    The power is 80 %, if the true difference and spreads are the measured ones. Return None if
    1,000 runs do not suffice, if the spread is unknown, or if the difference is at the bound.
    """
    std = base.std if new.std is None else new.std
    gap = abs(new.mean - base.mean - bound)
    if std is None or gap == 0:
        return None
    base_std = std if base.std is None else base.std

    def power(n: int) -> float:
        estimate = compare(Sample(new.mean, std, n), Sample(base.mean, base_std, base.n), std)
        assert estimate is not None
        if estimate.error == 0:
            return 1.0
        critical = special.stdtrit(estimate.degrees, 1 - ALPHA)
        return 1 - float(special.nctdtr(estimate.degrees, gap / estimate.error, critical))

    if power(MOST_RUNS) < POWER:
        return None
    numbers = range(max(1, new.n), MOST_RUNS + 1)
    return numbers[bisect_left(numbers, POWER, key=power)]
