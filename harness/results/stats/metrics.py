"""The metrics by which runs are compared: how to read each from a run, and its margin."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from harness.errors import BadInput
from harness.results.measured import Measured
from harness.results.stats.statistics import Sample, rate_error

STEADY_PERIODS = 4
"""Below this many log periods after the first, the throughput of the whole run is used."""


@dataclass(frozen=True)
class Metric:
    """A quantity by which runs are compared.

    In `points`, values are compared as they are; `relative`, as logarithms, with differences in
    percent of the base. `margin` and `assumed_std` are in points or percent.
    """

    name: str
    title: str
    unit: str
    scale: Literal["points", "relative"]
    better: Literal["higher", "lower"]
    margin: float  # differences smaller than this count as none
    assumed_std: float | None  # between runs, if no side has repeats; None: then no verdict
    read: Callable[[Measured], float | None]  # its value, in `unit`; None if the run has none
    per_seed: bool = False  # it depends on the seed: repeats with the same seed count once
    within: Callable[[Measured], float] = lambda run: 0.0  # its standard error, 0 if unknown
    drift: Callable[[Measured], float] = lambda run: 0.0  # standard deviation of a run's halves

    def transform(self, value: float) -> float:
        """Return a value on the scale on which it is averaged and compared."""
        return math.log(value) if self.scale == "relative" else value

    def inverse(self, value: float) -> float:
        """Return the value, in `unit`, of a transformed one."""
        return math.exp(value) if self.scale == "relative" else value

    def difference(self, transformed: float) -> float:
        """Return a difference of transformed values in points or percent of the base."""
        return 100 * math.expm1(transformed) if self.scale == "relative" else transformed

    def transform_difference(self, difference: float) -> float:
        """Return points or percent of the base as a difference of transformed values."""
        return math.log1p(difference / 100) if self.scale == "relative" else difference

    @property
    def least_loss(self) -> float:
        """The margin on the worse side, as a difference of transformed values."""
        return self.transform_difference(-self.margin if self.better == "higher" else self.margin)


def field(name: str, part: str | None = None) -> Callable[[Measured], float | None]:
    """Return a reader of a field of the result, or of a part of one."""

    def read(run: Measured) -> float | None:
        value = run.result.get(name)
        value = value[part] if part and value else value
        return None if value is None else float(value)

    return read


def accuracy(name: str) -> Callable[[Measured], float | None]:
    """Return a reader of an accuracy; synthetic images have none."""
    read = field(name)
    return lambda run: None if run.result["source"] == "synthetic" else read(run)


def steady_rate(run: Measured) -> float | None:
    """Return images/s of all ranks in training, without the first log period of each attempt."""
    images, seconds = steady(run)
    if len(images) < STEADY_PERIODS:
        return field("images_per_second")(run)
    return float(images.sum() / seconds.sum())


def steady(run: Measured) -> tuple[np.ndarray, np.ndarray]:
    """Return images and seconds of each log period, without the first of each attempt."""
    seen, train_s, attempt = (run.train[name] for name in ("images_seen", "train_s", "attempt"))
    same_attempt = attempt[1:] == attempt[:-1]
    images, seconds = np.diff(seen)[same_attempt], np.diff(train_s)[same_attempt]
    counts = (images > 0) & (seconds > 0)
    return images[counts], seconds[counts]


def _rate_drift(run: Measured) -> float:
    return _drift(np.stack(steady(run)), lambda part: part[0].sum() / part[1].sum())


def _step_drift(run: Measured) -> float:
    steps = run.train["step_ms_p50"][1:]
    return _drift(steps[np.isfinite(steps) & (steps > 0)], np.median)


def _drift(values: np.ndarray, center: Callable[[np.ndarray], Any]) -> float:
    """Return the standard deviation of the logarithms of the centers of a run's two halves."""
    if values.shape[-1] < STEADY_PERIODS:
        return 0.0
    first, second = np.split(values, [values.shape[-1] // 2], axis=-1)
    return abs(math.log(center(first)) - math.log(center(second))) / math.sqrt(2)


def _to_target(run: Measured, top1_pct: float | None) -> float | None:
    if top1_pct is None:
        return field("target", "train_s")(run)
    reached = run.val["train_s"][run.val["val_top1_pct"] >= top1_pct]
    return float(reached[0]) if len(reached) else None


def metrics(target_top1_pct: float | None = None) -> dict[str, Metric]:
    """Return all metrics by name, in the order in which they are shown."""
    target = "its target" if target_top1_pct is None else f"{target_top1_pct:g} %"
    known = (
        Metric("top1", "top-1", "%", "points", "higher", 0.25, None, accuracy("val_top1_pct"),
               per_seed=True),
        Metric("images_per_second", "throughput", "images/s", "relative", "higher", 2, 2,
               steady_rate, within=lambda run: rate_error(*steady(run)), drift=_rate_drift),
        Metric("train_s_to_target", f"training time to {target}", "s", "relative", "lower", 5, None,
               lambda run: _to_target(run, target_top1_pct)),
        Metric("step_ms", "step, median", "ms", "relative", "lower", 2, 2, field("step_ms_p50"),
               drift=_step_drift),
        Metric("memory_gib", "memory, highest", "GiB", "relative", "lower", 2, 2,
               field("memory_peak_gib")),
        Metric("data_wait_pct", "waiting for data", "%", "points", "lower", 2, 0.5,
               field("data_wait_pct")),
    )  # fmt: skip
    return {metric.name: metric for metric in known}


def sample(metric: Metric, runs: Sequence[Measured]) -> Sample | None:
    """Return the summary of a metric over the runs of a cell; None if a run does not have it.

    Repeats with the same seed do not show how seeds differ, so their mean counts as one value.
    """
    values: dict[int, list[float]] = {}
    for number, run in enumerate(runs):
        value = metric.read(run)
        if value is None or not (math.isfinite(value) and (metric.scale == "points" or value > 0)):
            return None
        key = run.config.run.seed if metric.per_seed else number
        values.setdefault(key, []).append(metric.transform(value))
    means = [sum(repeats) / len(repeats) for repeats in values.values()]
    if len(runs) == 1:
        return Sample.of(means, metric.within(runs[0]), metric.drift(runs[0]))
    return Sample.of(means) if means else None


def with_settings(
    known: dict[str, Metric], margins: dict[str, float], stds: dict[str, float], primary: str
) -> dict[str, Metric]:
    """Return the metrics with the given margins and standard deviations, the primary one first.

    Raises:
        BadInput: a metric is unknown.
    """
    for name in (*margins, *stds):
        if name not in known:
            raise BadInput(f"{name}: no such metric; known: {', '.join(known)}")
    if primary not in known:
        raise BadInput(f"--primary: {primary}: no such metric; known: {', '.join(known)}")
    changed = dict(known)
    for name, margin in margins.items():
        changed[name] = replace(changed[name], margin=margin)
    for name, std in stds.items():
        changed[name] = replace(changed[name], assumed_std=std, drift=lambda run: 0.0)
    return {primary: changed[primary]} | changed
