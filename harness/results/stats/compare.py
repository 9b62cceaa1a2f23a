"""Compare cells of runs, or runs with a published result: differences, doubts, and verdicts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from harness.results.measured import Measured, facts, identity
from harness.results.references import DATASETS, Reference
from harness.results.stats.metrics import Metric, sample
from harness.results.stats.statistics import ALPHA, Estimate, Sample, compare, holm

NOT_COMPARABLE = "not comparable"


@dataclass(frozen=True)
class Cell:
    """Repeated runs of the same config, software and hardware; or a published result."""

    label: str
    runs: tuple[Measured, ...] = ()
    reference: Reference | None = None


class Difference(NamedTuple):
    """A setting or fact that is not the same on both sides."""

    group: str
    key: str
    new: Any
    base: Any


@dataclass(frozen=True)
class Finding:
    """The result for one metric; secondary p-values are adjusted for their number (Holm 1979)."""

    metric: Metric
    new: Sample
    base: Sample
    estimate: Estimate | None  # of `new - base`; None if the spread between runs is unknown
    primary: bool
    published: bool  # whether `base` is a published result; the test is then one-sided
    p_differs: float = 1.0  # of the hypothesis that there is no difference
    p_within: float = 1.0  # of the hypothesis that the difference is the margin or more

    @staticmethod
    def of(
        metric: Metric, new: Sample, base: Sample, *, primary: bool, published: bool = False
    ) -> "Finding":
        """Compare two samples of a metric."""
        transform, assumed = metric.transform_difference, metric.assumed_std
        estimate = compare(new, base, None if assumed is None else transform(assumed))
        if estimate is None:
            return Finding(metric, new, base, None, primary, published)
        # In logarithms, +2 % and -2 % are not equally far from 0: the nearer one bounds both.
        margin = min(abs(transform(metric.margin)), abs(transform(-metric.margin)))
        p_values = estimate.p_differs(), estimate.p_within(margin)
        return Finding(metric, new, base, estimate, primary, published, *p_values)

    @property
    def verdict(self) -> str:
        """The verdict on `new`.

        `equivalent` goes before `better` and `worse`. On a published result: `reproduced` if
        certainly not worse by the margin or more, `not reproduced` if certainly so.
        """
        if self.estimate is None:
            return "cannot tell"
        higher = self.metric.better == "higher"
        if self.published:
            bound = self.metric.least_loss
            above, below = self.estimate.p_above(bound), self.estimate.p_below(bound)
            if (above if higher else below) <= ALPHA:
                return "reproduced"
            return "not reproduced" if (below if higher else above) <= ALPHA else "cannot tell"
        if self.p_within <= ALPHA:
            return "equivalent"
        if self.p_differs > ALPHA:
            return "cannot tell"
        return "better" if (self.estimate.difference > 0) == higher else "worse"

    @property
    def difference(self) -> float:
        """The difference `new - base` in points or percent of the base."""
        return self.metric.difference(self.new.mean - self.base.mean)

    def interval(self, level: float | None = None) -> tuple[float, float] | None:
        """Return the confidence interval of `difference`, not adjusted for other metrics.

        By default at the level of the test: 95 %, or 90 % if it is one-sided.
        """
        if self.estimate is None:
            return None
        level = level or 1 - (2 * ALPHA if self.published else ALPHA)
        low, high = map(self.metric.difference, self.estimate.interval(level))
        return low, high


@dataclass(frozen=True)
class Comparison:
    """The result of comparing `new` with `base`."""

    new: Cell
    base: Cell
    differences: tuple[Difference, ...]
    doubts: tuple[str, ...]  # reasons why the two are not comparable
    findings: tuple[Finding, ...]

    def finding(self, name: str) -> Finding | None:
        """Return the finding for a metric; None if a side does not have the metric."""
        return next((item for item in self.findings if item.metric.name == name), None)

    def verdict(self, finding: Finding, *, anyway: bool) -> str:
        """Return the verdict; with doubts, there is one only if they are overridden."""
        return finding.verdict if anyway or not self.doubts else NOT_COMPARABLE


def compare_cells(new: Cell, base: Cell, known: Mapping[str, Metric], primary: str) -> Comparison:
    """Compare two cells by the known metrics; the test of the primary one is not adjusted."""
    findings = [
        Finding.of(metric, ours, theirs, primary=metric.name == primary)
        for metric in known.values()
        if (ours := sample(metric, new.runs)) and (theirs := sample(metric, base.runs))
    ]
    secondary = [i for i, item in enumerate(findings) if not item.primary and item.estimate]
    differs = holm([findings[i].p_differs for i in secondary])
    within = holm([findings[i].p_within for i in secondary])
    for i, p_differs, p_within in zip(secondary, differs, within, strict=True):
        findings[i] = replace(findings[i], p_differs=p_differs, p_within=p_within)
    return Comparison(
        new, base, tuple(differences(new.runs[0], base.runs[0])),
        (*doubts(new), *doubts(base), *_unlike(new, base)), tuple(findings),
    )  # fmt: skip


def differences(new: Measured, base: Measured) -> Iterable[Difference]:
    """Yield each setting or fact that is not the same in both runs."""
    base_facts = facts(base)
    for group, values in facts(new).items():
        for key in values | base_facts[group]:
            ours, theirs = values.get(key), base_facts[group].get(key)
            if ours != theirs:
                yield Difference(group, key, ours, theirs)


def doubts(cell: Cell) -> Iterable[str]:
    """Yield the reasons why a cell should not be compared with anything."""
    kinds = {identity(run): run for run in cell.runs}.values()
    if len(kinds) > 1:
        keys = dict.fromkeys(diff.key for run in kinds for diff in differences(run, cell.runs[0]))
        yield f"{cell.label}: its runs are not of one kind: they differ in {', '.join(keys)}"
    # A reason that holds for several runs is given once, with their names.
    names_by_doubt: dict[str, list[str]] = {}
    for run in cell.runs:
        for doubt in _doubts_of(run):
            names_by_doubt.setdefault(doubt, []).append(run.name)
    for doubt, names in names_by_doubt.items():
        yield f"{', '.join(names)}: {doubt}"


def _doubts_of(run: Measured) -> Iterable[str]:
    result, (classes, images) = run.result, DATASETS["imagenet"]
    imagenet = result["classes"] == classes and result["source"] != "synthetic"
    if imagenet and result["val_images"] != images:
        yield f"validated on {result['val_images']:,} images, where ImageNet has {images:,}"
    if (run.environment.get("harness") or {}).get("git_dirty"):
        yield "ran with uncommitted changes: which code that was is not known"
    if result["recompiles"] or result["graph_breaks"]:
        breaks = f"{result['recompiles']} recompiles, {result['graph_breaks']} graph breaks"
        yield f"{breaks} in the timed part: the speed is not to be trusted"
    if result.get("slowed"):
        yield f"the GPU's clocks were held down: {'; '.join(result['slowed'])}"


def _unlike(new: Cell, base: Cell) -> Iterable[str]:
    ours, theirs = new.runs[0].result, base.runs[0].result
    if "synthetic" in (ours["source"], theirs["source"]):
        if ours["source"] != theirs["source"]:
            yield "one side trained on synthetic images: nothing is read or decoded there"
    elif ours["protocol"] != theirs["protocol"]:
        yield f"validated in another way: {ours['protocol']} | {theirs['protocol']}"
    elif ours["val_digest"] != theirs["val_digest"]:
        yield f"validated on other images: {ours['val_digest']} | {theirs['val_digest']}"
