"""How sure a difference is: intervals, tests of difference and of equivalence, runs still needed.

Laws from scipy. Levels are two-sided: 95 % for a difference, 90 % for an equivalence, which is two
one-sided tests at 5 % (Schuirmann 1987).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np
from numpy.typing import NDArray
from scipy import special

ALPHA = 0.05
POWER = 0.8
MOST_RUNS = 1000
RESAMPLES = 2000
MOST_BLOCKS = 20


@dataclass(frozen=True)
class Sample:
    """A quantity, measured n times.

    Attributes:
        std: standard deviation from run to run; none where one run, or a publication, tells none.
        within: standard error of one run's value from its own ups and downs, where n is 1.
        drift: standard deviation of the values of its two halves, where n is 1.
    """

    mean: float
    std: float | None
    n: int
    within: float = 0.0
    drift: float = 0.0

    @staticmethod
    def of(values: Sequence[float], within: float = 0.0, drift: float = 0.0) -> Sample:
        """What some runs tell."""
        std = stdev(values) if len(values) > 1 else None
        return Sample(mean(values), std, len(values), within, drift)


@dataclass(frozen=True)
class Estimate:
    """A difference of two means, its standard error, and the degrees of freedom of that.

    Attributes:
        basis: where the spread from run to run was taken from: `welch`, both sides' own;
            `one side`, as the other has a single run; `assumed`, neither has more; `drift`, and a
            run's halves differ by more than is assumed.
    """

    difference: float
    error: float
    degrees: float
    basis: str

    def interval(self, level: float = 1 - ALPHA) -> tuple[float, float]:
        """The two-sided confidence interval."""
        half = self.error * _quantile((1 + level) / 2, self.degrees)
        return self.difference - half, self.difference + half

    def p_differs(self) -> float:
        """Two-sided p-value of no difference."""
        return 2 * min(self.p_above(0.0), self.p_below(0.0))

    def p_above(self, bound: float) -> float:
        """One-sided p-value against `the true difference is at most the bound`."""
        return self._tail(self.difference - bound)

    def p_below(self, bound: float) -> float:
        """One-sided p-value against `the true difference is at least the bound`."""
        return self._tail(bound - self.difference)

    def p_within(self, margin: float) -> float:
        """p-value of two one-sided tests against `differs by the margin or more`."""
        return max(self.p_above(-margin), self.p_below(margin))

    def _tail(self, distance: float) -> float:
        if self.error == 0:  # all repeats gave the very same value
            return 0.5 if distance == 0 else float(distance < 0)
        return _above(distance / self.error, self.degrees)


def _quantile(share: float, degrees: float) -> float:
    """Of Student's t; of the normal distribution for infinitely many degrees of freedom."""
    if math.isinf(degrees):
        return float(special.ndtri(share))
    return float(special.stdtrit(degrees, share))


def _above(value: float, degrees: float) -> float:
    """The share of the same distribution above a value."""
    if math.isinf(degrees):
        return float(special.ndtr(-value))
    return float(special.stdtr(degrees, -value))


def compare(new: Sample, base: Sample, assumed_std: float | None) -> Estimate | None:
    """The difference `new - base`; none where nothing tells how much runs of the same thing differ.

    Both sides with a spread of their own: Welch. One side with a single run: as a further run of
    the other side's kind, a prediction interval. Neither: the assumed spread, or what the halves of
    a run differ by where that is more, since a machine whose speed drifts within a run does so
    from run to run; and what each single run tells of itself.
    """
    difference = new.mean - base.mean
    if new.std is not None and base.std is not None and min(new.n, base.n) > 1:
        variances = new.std**2 / new.n, base.std**2 / base.n
        total = sum(variances)
        degrees = float(new.n + base.n - 2)
        if total > 0:  # Welch 1947 and Satterthwaite 1946
            parts = variances[0] ** 2 / (new.n - 1) + variances[1] ** 2 / (base.n - 1)
            degrees = total**2 / parts
        return Estimate(difference, math.sqrt(total), degrees, "welch")
    known = new if new.std is not None and new.n > 1 else base
    per_run = math.sqrt(1 / new.n + 1 / base.n)
    if known.std is not None and known.n > 1:
        return Estimate(difference, known.std * per_run, known.n - 1, "one side")
    if assumed_std is None:
        return None
    spreads = [max(assumed_std, side.drift) / math.sqrt(side.n) for side in (new, base)]
    error = math.hypot(*spreads, new.within, base.within)
    # Two halves have one degree of freedom (Satterthwaite 1946); what is assumed counts as known.
    drifting = [spread**4 for side, spread in zip((new, base), spreads, strict=True)
                if side.drift > assumed_std]  # fmt: skip
    if not drifting:
        return Estimate(difference, error, math.inf, "assumed")
    return Estimate(difference, error, error**4 / sum(drifting), "drift")


def interval_of_mean(values: Sequence[float], level: float = 1 - ALPHA) -> tuple[float, float]:
    """The confidence interval of a mean, by Student's t; infinite for a single value."""
    middle = mean(values)
    if len(values) < 2:
        return -math.inf, math.inf
    error = stdev(values) / math.sqrt(len(values))
    return Estimate(middle, error, len(values) - 1, "").interval(level)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for having asked several questions (Holm 1979)."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def log_rate(images: NDArray[np.float64], seconds: NDArray[np.float64]) -> tuple[float, float]:
    """Logarithm of a run's images per second over its log periods, and its standard error.

    The error is a bootstrap over blocks of neighbouring periods, whose ups and downs are alike; nan
    where there are fewer than four periods.
    """
    rate = math.log(images.sum() / seconds.sum())
    if len(images) < 4:
        return rate, math.nan
    blocks = min(MOST_BLOCKS, max(4, round(len(images) ** 0.5)), len(images))
    cuts = np.linspace(0, len(images), blocks + 1).astype(int)[:-1]
    parts = np.add.reduceat(images, cuts), np.add.reduceat(seconds, cuts)
    from scipy.stats import bootstrap  # a second to import, and seldom needed

    told = bootstrap(
        parts,
        lambda i, s, axis: np.log(i.sum(axis) / s.sum(axis)),
        paired=True, vectorized=True, n_resamples=RESAMPLES, method="percentile", rng=0,
    )  # fmt: skip
    # The bootstrap of k blocks has the variance of k, where k - 1 are free.
    return rate, float(told.standard_error) * math.sqrt(blocks / (blocks - 1))


def runs_to_tell(new: Sample, base: Sample, bound: float) -> int | None:
    """How many runs `new` must have in all to tell on which side of a bound the difference lies.

    With a power of 80 %, if the true difference and spreads are the ones seen. None: no number
    below 1,000 does: the spread is not known, the difference lies at the bound, or `base` is vague.
    """
    std = new.std if new.std is not None else base.std
    gap = abs(new.mean - base.mean - bound)
    if std is None or gap == 0:
        return None
    base_std = base.std if base.std is not None else std

    def power(n: int) -> float:
        told = compare(Sample(new.mean, std, n), Sample(base.mean, base_std, base.n), std)
        assert told is not None
        if told.error == 0:
            return 1.0
        least = _quantile(1 - ALPHA, told.degrees)
        return 1 - float(special.nctdtr(told.degrees, gap / told.error, least))

    if power(MOST_RUNS) < POWER:
        return None
    low, high = max(1, new.n), MOST_RUNS
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle + 1, high)
    return low
