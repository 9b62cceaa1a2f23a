"""Prepare the verdicts of a page: metrics with intervals, or why the sides are not comparable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from harness.results import show_compare
from harness.results.page.plots import Range, cell_color, interval
from harness.results.page.render import Swatch, Table, html
from harness.results.stats.compare import Cell, Comparison, Difference
from harness.results.stats.metrics import Metric
from harness.results.stats.reproduce import Reproduction
from harness.results.stats.statistics import Sample

LOOKS = {
    "better": "good", "reproduced": "good", "worse": "bad", "not reproduced": "bad",
    "equivalent": "same", "cannot tell": "unsure", show_compare.NONE: "none",
}  # fmt: skip
LEAST_REACH, MOST_REACH = 2.0, 6.0
"""The picture of an interval reaches this many margins to each side."""


def comparison(compared: Comparison, cells: Sequence[Cell], judge: bool) -> dict[str, Any]:
    """Return the template's data for two cells: a verdict for each metric.

    Args:
        cells: all cells of the page; their order sets their colors.
        judge: whether to give verdicts even if the cells are not comparable.
    """
    judged = judge or not compared.doubts
    ranges = [
        _range(finding.metric, finding.difference, finding.interval(0.90), finding.interval())
        for finding in compared.findings
    ]
    reach = _reach(ranges)
    rows = [
        _verdict(
            finding.metric, (finding.new, finding.base), finding.difference, finding.interval(),
            span, reach, (-1, 1), finding.verdict if judged else show_compare.NONE, finding.primary,
        )
        for finding, span in zip(compared.findings, ranges, strict=True)
    ]  # fmt: skip
    return {
        "sides": (_side("new", compared.new, cells), _side("base", compared.base, cells)),
        "doubts": compared.doubts, "names": ("new", "base"), "level": "95 %", "verdicts": rows,
        "notes": (),
    }  # fmt: skip


def reproduction(reproduced: Reproduction, cells: Sequence[Cell], judge: bool) -> dict[str, Any]:
    """Return the template's data for runs and a published result: the verdict for its metric."""
    metric, reference = reproduced.metric, reproduced.reference
    verdict = reproduced.verdict if judge or not reproduced.doubts else show_compare.NONE
    difference = metric.difference(reproduced.ours.mean - reproduced.theirs.mean)
    bounds = None
    if reproduced.estimate is not None:
        low, high = reproduced.estimate.interval(0.90)
        bounds = metric.difference(low), metric.difference(high)
    span = _range(metric, difference, bounds, None)
    row = _verdict(
        metric, (reproduced.ours, reproduced.theirs), difference, bounds, span, _reach([span]),
        (-1, math.inf), verdict, primary=True,
    )  # fmt: skip
    notes = [show_compare.meaning_of_reproduced(metric)]
    if verdict == "cannot tell":
        notes.append(show_compare.seeds_needed(reproduced))
    published = "", f"ref:{reference.id}", reference.source
    return {
        "sides": (_side("runs", reproduced.cell, cells), published),
        "doubts": reproduced.doubts, "names": ("ours", "published"), "level": "90 %",
        "verdicts": [row], "notes": notes,
    }  # fmt: skip


def _side(role: str, cell: Cell, cells: Sequence[Cell]) -> tuple[str, Swatch, str]:
    """Return the role of a side, its label, and how many runs it has."""
    number = next((i for i, other in enumerate(cells) if other is cell), 0)
    return role, Swatch(cell_color(number), cell.label), show_compare.count_runs(cell)


def differences(
    rows: Sequence[Difference], testing: Sequence[str], sides: tuple[str, str]
) -> Table:
    """Return a table of the differences between two sides: first those under test."""

    def key(row: Difference) -> str:
        group = html("<b>under test</b>") if row.key in testing else row.group
        return html("<code>{}</code> <small>{}</small>", row.key, group)

    ordered = sorted(rows, key=lambda row: row.key not in testing)
    return Table(("", *sides), [(key(row), row.new, row.base) for row in ordered])


def _verdict(
    metric: Metric, sides: tuple[Sample, Sample], difference: float,
    bounds: tuple[float, float] | None, span: Range | None, reach: float,
    same: tuple[float, float], verdict: str, primary: bool,
) -> dict[str, Any]:  # fmt: skip
    """Return a line of the page: one metric on both sides, with the picture of its interval."""
    new, base = (show_compare.format_sample(metric, side) for side in sides)
    change = f"{_signed(difference)} {show_compare.difference_unit(metric)}"
    span_text = "unknown" if bounds is None else f"{_signed(bounds[0])} to {_signed(bounds[1])}"
    label = f"{metric.title}: {change}, interval {span_text}, margin {metric.margin:g}"
    return {
        "metric": metric, "primary": primary, "values": (new, base), "change": change,
        "interval": span_text, "verdict": verdict, "look": LOOKS[verdict],
        "picture": span and interval(label, span, same, reach, LOOKS[verdict]),
    }  # fmt: skip


def _range(
    metric: Metric, point: float, inner: tuple[float, float] | None,
    outer: tuple[float, float] | None,
) -> Range | None:  # fmt: skip
    """Return a difference in units of the margin, better to the right; None without interval."""
    if inner is None:
        return None
    scale = (1 if metric.better == "higher" else -1) / metric.margin

    def turned(bounds: tuple[float, float]) -> tuple[float, float]:
        low, high = sorted(scale * bound for bound in bounds)
        return low, high

    return Range(scale * point, turned(inner), None if outer is None else turned(outer))


def _reach(ranges: Sequence[Range | None]) -> float:
    ends = [abs(end) for span in ranges if span for end in (*span.inner, *(span.outer or ()))]
    return min(max(LEAST_REACH, *ends), MOST_REACH) if ends else LEAST_REACH


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}")
