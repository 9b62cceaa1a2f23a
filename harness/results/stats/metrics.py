"""What runs are compared by: each metric, where it stands in a run, and what counts as equal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from harness.errors import BadInput
from harness.results.measured import Measured
from harness.results.stats.statistics import Sample, log_rate

STEADY_PERIODS = 4
"""With fewer log periods than this after the first, a run's whole throughput is taken."""


@dataclass(frozen=True)
class Metric:
    """One thing to compare.

    Attributes:
        scale: differences are points, or a share of the base (compared as logarithms).
        margin: differences below it count as none; points or percent.
        assumed_std: from run to run, where no side has repeats: points or percent; none: refuse.
        of: its value in a run, in its unit; none where the run does not tell.
        of_seed: it hangs on the seed, so that repeats with one seed count once.
        within: its standard error from one run's own ups and downs, where a run tells that.
        drift: standard deviation of its halves, likewise.
    """

    name: str
    title: str
    unit: str
    scale: Literal["points", "relative"]
    better: Literal["higher", "lower"]
    margin: float
    assumed_std: float | None
    of: Callable[[Measured], float | None]
    of_seed: bool = False
    within: Callable[[Measured], float] = lambda run: 0.0
    drift: Callable[[Measured], float] = lambda run: 0.0

    def inner(self, value: float) -> float:
        """A value as it is averaged and compared."""
        return math.log(value) if self.scale == "relative" else value

    def outer(self, value: float) -> float:
        """The way back."""
        return math.exp(value) if self.scale == "relative" else value

    def difference(self, inner: float) -> float:
        """A difference of inner values, in points or percent of the base."""
        return 100 * math.expm1(inner) if self.scale == "relative" else inner

    def step(self, difference: float) -> float:
        """The way back: points or percent as a difference of inner values."""
        return math.log1p(difference / 100) if self.scale == "relative" else difference


def _field(name: str) -> Callable[[Measured], float | None]:
    def of(run: Measured) -> float | None:
        value = run.result.get(name)
        return None if value is None else float(value)

    return of


def accuracy(name: str) -> Callable[[Measured], float | None]:
    """Of synthetic images it means nothing."""
    of = _field(name)
    return lambda run: None if run.result["source"] == "synthetic" else of(run)


def steady_rate(run: Measured) -> float | None:
    """Images of all ranks per second of training, after the first log period of each attempt."""
    images, seconds = steady(run)
    if len(images) < STEADY_PERIODS:
        return _field("images_per_second")(run)
    return float(images.sum() / seconds.sum())


def steady(run: Measured) -> tuple[np.ndarray, np.ndarray]:
    """Images and seconds of the log periods, without the first of each attempt."""
    seen, train_s, attempt = (run.train[name] for name in ("images_seen", "train_s", "attempt"))
    same_attempt = attempt[1:] == attempt[:-1]
    images, seconds = np.diff(seen)[same_attempt], np.diff(train_s)[same_attempt]
    counts = (images > 0) & (seconds > 0)
    return images[counts], seconds[counts]


def _rate_within(run: Measured) -> float:
    """Standard error of the logarithm of the steady rate."""
    images, seconds = steady(run)
    return log_rate(images, seconds)[1] if len(images) >= STEADY_PERIODS else 0.0


def _rate_drift(run: Measured) -> float:
    """Standard deviation of the logarithms of the steady rates of a run's halves."""
    images, seconds = steady(run)
    if len(images) < STEADY_PERIODS:
        return 0.0
    half = len(images) // 2
    first, second = (
        math.log(images[part].sum() / seconds[part].sum())
        for part in (slice(None, half), slice(half, None))
    )
    return _apart(first, second)


def _step_drift(run: Measured) -> float:
    """The same of the median step."""
    steps = run.train["step_ms_p50"][1:]
    steps = steps[np.isfinite(steps) & (steps > 0)]
    if len(steps) < STEADY_PERIODS:
        return 0.0
    half = len(steps) // 2
    first, second = (math.log(np.median(part)) for part in (steps[:half], steps[half:]))
    return _apart(first, second)


def _apart(first: float, second: float) -> float:
    """Standard deviation of two values."""
    return abs(first - second) / math.sqrt(2)


def to_target(top1_pct: float | None) -> Callable[[Measured], float | None]:
    """Training time to an accuracy, seconds; none: the one at which the run was told to stop."""

    def of(run: Measured) -> float | None:
        target = run.result.get("target")
        if top1_pct is None:
            return float(target["train_s"]) if target else None
        reached = run.val["train_s"][run.val["val_top1_pct"] >= top1_pct]
        return float(reached[0]) if len(reached) else None

    return of


def metrics(target_top1_pct: float | None = None) -> dict[str, Metric]:
    """All metrics, by name, in the order in which they are shown."""
    target = "its target" if target_top1_pct is None else f"{target_top1_pct:g} %"
    all_of_them = (
        Metric(
            "top1", "top-1", "%", "points", "higher", 0.25, None, accuracy("val_top1_pct"),
            of_seed=True,
        ),
        Metric(
            "images_per_second", "throughput", "images/s", "relative", "higher", 2, 2, steady_rate,
            within=_rate_within, drift=_rate_drift,
        ),
        Metric(
            "train_s_to_target", f"training time to {target}", "s", "relative", "lower", 5, None,
            to_target(target_top1_pct),
        ),
        Metric(
            "step_ms", "step, median", "ms", "relative", "lower", 2, 2, _field("step_ms_p50"),
            drift=_step_drift,
        ),
        Metric(
            "memory_gib", "memory, highest", "GiB", "relative", "lower", 2, 2,
            _field("memory_peak_gib"),
        ),
        Metric(
            "data_wait_pct", "waiting for data", "%", "points", "lower", 2, 0.5,
            _field("data_wait_pct"),
        ),
    )  # fmt: skip
    return {metric.name: metric for metric in all_of_them}


def sample(metric: Metric, runs: Sequence[Measured]) -> Sample | None:
    """What runs of one cell tell; none if one of them does not.

    Repeats with one seed say nothing of how seeds differ: their accuracies count once.
    """
    values = [metric.of(run) for run in runs]
    if not values or any(value is None or not _usable(metric, value) for value in values):
        return None
    inner = [metric.inner(value) for value in values if value is not None]
    if metric.of_seed:
        inner = list(_means_by_seed(runs, inner))
    if len(runs) > 1:
        return Sample.of(inner)
    return Sample.of(inner, metric.within(runs[0]), metric.drift(runs[0]))


def _usable(metric: Metric, value: float) -> bool:
    return math.isfinite(value) and (metric.scale == "points" or value > 0)


def _means_by_seed(runs: Sequence[Measured], values: Sequence[float]) -> Iterable[float]:
    seeds: dict[int, list[float]] = {}
    for run, value in zip(runs, values, strict=True):
        seeds.setdefault(run.config.run.seed, []).append(value)
    return (sum(found) / len(found) for found in seeds.values())


def with_settings(
    known: dict[str, Metric], margins: dict[str, float], stds: dict[str, float]
) -> dict[str, Metric]:
    """The metrics with the margins and spreads that the user gave, which count as known.

    Raises:
        BadInput: no such metric.
    """
    for name in (*margins, *stds):
        if name not in known:
            raise BadInput(f"{name}: no such metric; known: {', '.join(known)}")
    return {
        name: replace(
            metric,
            margin=margins.get(name, metric.margin),
            assumed_std=stds.get(name, metric.assumed_std),
            drift=(lambda run: 0.0) if name in stds else metric.drift,
        )
        for name, metric in known.items()
    }


def first(known: dict[str, Metric], primary: str) -> dict[str, Metric]:
    """The metrics, the primary one first.

    Raises:
        BadInput: no such metric.
    """
    if primary not in known:
        raise BadInput(f"--primary: {primary}: no such metric; known: {', '.join(known)}")
    return {primary: known[primary]} | known
