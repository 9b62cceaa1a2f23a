"""Two cells of runs, or a cell and a published result: what differs, and what can be said of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from harness.results.measured import Measured, facts, identity
from harness.results.references import DATASETS
from harness.results.stats.metrics import Metric, sample
from harness.results.stats.statistics import ALPHA, Estimate, Sample, compare, holm

Word = Literal["better", "worse", "equivalent", "cannot tell"]


@dataclass(frozen=True)
class Cell:
    """Runs of one thing, and what a person calls it."""

    label: str
    runs: tuple[Measured, ...]


class Difference(NamedTuple):
    """A fact that is not the same on both sides."""

    group: str
    key: str
    new: Any
    base: Any


@dataclass(frozen=True)
class Finding:
    """What a metric says.

    Attributes:
        p_differs, p_within: of no difference, and of one of the margin or more; those of secondary
            metrics are adjusted for their number (Holm 1979).
    """

    metric: Metric
    new: Sample
    base: Sample
    estimate: Estimate | None
    primary: bool
    p_differs: float = 1.0
    p_within: float = 1.0

    @property
    def word(self) -> Word:
        """The verdict on `new`. What is surely within the margin is equivalent, if not equal."""
        if self.estimate is None:
            return "cannot tell"
        if self.p_within <= ALPHA:
            return "equivalent"
        if self.p_differs > ALPHA:
            return "cannot tell"
        up = self.estimate.difference > 0
        return "better" if up == (self.metric.better == "higher") else "worse"

    @property
    def difference(self) -> float:
        """`new - base`, in points or percent of the base."""
        return self.metric.difference(self.new.mean - self.base.mean)

    def interval(self, level: float = 1 - ALPHA) -> tuple[float, float] | None:
        """Its confidence interval, in the same unit; of this metric alone."""
        if self.estimate is None:
            return None
        low, high = self.estimate.interval(level)
        return self.metric.difference(low), self.metric.difference(high)


@dataclass(frozen=True)
class Comparison:
    """All that is said of `new` beside `base`.

    Attributes:
        doubts: reasons for which the two cannot be compared.
    """

    new: Cell
    base: Cell
    differences: tuple[Difference, ...]
    doubts: tuple[str, ...]
    findings: tuple[Finding, ...]

    def finding(self, name: str) -> Finding | None:
        """What the metric of this name says; none if a side does not tell it."""
        return next((found for found in self.findings if found.metric.name == name), None)


def compare_cells(new: Cell, base: Cell, known: Mapping[str, Metric], primary: str) -> Comparison:
    """Compare two cells.

    Args:
        known: the metrics.
        primary: the one that is asked for first; its test is not adjusted for the others.
    """
    found = []
    for metric in known.values():
        ours, theirs = sample(metric, new.runs), sample(metric, base.runs)
        if ours is not None and theirs is not None:
            found.append(_finding(metric, ours, theirs, metric.name == primary))
    return Comparison(
        new, base, tuple(differences(new.runs[0], base.runs[0])),
        (*doubts(new), *doubts(base), *_unlike(new, base)), _adjusted(found),
    )  # fmt: skip


def _finding(metric: Metric, new: Sample, base: Sample, primary: bool) -> Finding:
    std = None if metric.assumed_std is None else metric.step(metric.assumed_std)
    estimate = compare(new, base, std)
    if estimate is None:
        return Finding(metric, new, base, None, primary)
    # In logarithms the lower bound is the nearer one: equivalent both ways.
    margin = min(metric.step(metric.margin), -metric.step(-metric.margin))
    differs, equal = estimate.p_differs(), estimate.p_within(margin)
    return Finding(metric, new, base, estimate, primary, differs, equal)


def _adjusted(found: list[Finding]) -> tuple[Finding, ...]:
    """The same, the p-values of secondary metrics adjusted."""
    rest = [at for at, each in enumerate(found) if not each.primary and each.estimate]
    differs = holm([found[at].p_differs for at in rest])
    equal = holm([found[at].p_within for at in rest])
    new = dict(enumerate(found))
    for at, p_differs, p_within in zip(rest, differs, equal, strict=True):
        new[at] = replace(found[at], p_differs=p_differs, p_within=p_within)
    return tuple(new.values())


def differences(new: Measured, base: Measured) -> Iterable[Difference]:
    """Every fact that is not the same in both runs."""
    here, there = facts(new), facts(base)
    for group, part in here.items():
        for key in dict.fromkeys([*part, *there[group]]):
            ours, theirs = part.get(key), there[group].get(key)
            if ours != theirs:
                yield Difference(group, key, ours, theirs)


def doubts(cell: Cell) -> Iterable[str]:
    """Reasons for which a cell is not to be compared with anything."""
    kinds = {identity(run): run for run in cell.runs}.values()
    if len(kinds) > 1:
        keys = dict.fromkeys(each.key for run in kinds for each in differences(run, cell.runs[0]))
        yield f"{cell.label}: its runs are not of one kind: they differ in {', '.join(keys)}"
    # Each once, for all runs of the cell that it holds for.
    found: dict[str, list[str]] = {}
    for run in cell.runs:
        for doubt in _doubts_of(run):
            found.setdefault(doubt, []).append(run.name)
    for doubt, names in found.items():
        yield f"{', '.join(names)}: {doubt}"


def _doubts_of(run: Measured) -> Iterable[str]:
    result = run.result
    classes, images = DATASETS["imagenet"]
    imagenet = result["classes"] == classes and result["source"] != "synthetic"
    if imagenet and result["val_images"] != images:
        yield f"validated on {result['val_images']:,} images, where ImageNet has {images:,}"
    if (run.environment.get("harness") or {}).get("git_dirty"):
        yield "ran with uncommitted changes: nobody knows which code that was"
    if result["recompiles"] or result["graph_breaks"]:
        told = f"{result['recompiles']} recompiles, {result['graph_breaks']} graph breaks"
        yield f"{told} in the timed part: the speed is not to be trusted"
    if result.get("slowed"):
        yield f"the GPU's clocks were held down: {'; '.join(result['slowed'])}"


def _unlike(new: Cell, base: Cell) -> Iterable[str]:
    """Reasons for which these two cannot be compared."""
    ours, theirs = new.runs[0].result, base.runs[0].result
    if "synthetic" in (ours["source"], theirs["source"]):
        if ours["source"] != theirs["source"]:
            yield "one side trained on synthetic images: nothing is read or decoded there"
        return
    for key, what in (
        ("protocol", "validated in another way"), ("val_digest", "validated on other images"),
    ):  # fmt: skip
        if ours[key] != theirs[key]:
            yield f"{what}: {ours[key]} | {theirs[key]}"
            return
