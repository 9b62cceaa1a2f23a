"""What a page says of two sides: verdicts with their intervals, or why there are none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from harness.results.page.plots import Range, cell_color, interval
from harness.results.page.render import Swatch, Table, html
from harness.results.show_compare import NONE, needs, points, runs_of, value
from harness.results.stats.compare import Cell, Comparison, Difference
from harness.results.stats.metrics import Metric
from harness.results.stats.reproduce import Reproduction
from harness.results.stats.statistics import Sample

LOOKS = {
    "better": "good", "reproduced": "good", "worse": "bad", "not reproduced": "bad",
    "equivalent": "same", "cannot tell": "unsure", NONE: "none",
}  # fmt: skip
LEAST_REACH, MOST_REACH = 2.0, 6.0
"""How many margins the picture of an interval is wide to each side."""


def comparison(compared: Comparison, cells: Sequence[Cell], judge: bool) -> dict[str, Any]:
    """Two cells, and a verdict for each metric.

    Args:
        cells: of the page; their order says their colors.
        judge: whether to judge them even if they are not comparable.
    """
    judged = judge or not compared.doubts
    ranges = [
        _range(each.metric, each.difference, each.interval(0.90), each.interval())
        for each in compared.findings
    ]
    reach = _reach(ranges)
    rows = [
        _verdict(
            finding.metric, (finding.new, finding.base), finding.difference, finding.interval(),
            drawn, reach, (-1, 1), finding.word if judged else NONE, finding.primary,
        )
        for finding, drawn in zip(compared.findings, ranges, strict=True)
    ]  # fmt: skip
    return {
        "sides": (_side("new", compared.new, cells), _side("base", compared.base, cells)),
        "doubts": compared.doubts, "names": ("new", "base"), "level": "95 %", "verdicts": rows,
        "notes": (),
    }  # fmt: skip


def reproduction(reproduced: Reproduction, cells: Sequence[Cell], judge: bool) -> dict[str, Any]:
    """Runs and a published result, with the verdict for its metric."""
    metric, reference = reproduced.metric, reproduced.reference
    word = reproduced.word if judge or not reproduced.doubts else NONE
    difference = metric.difference(reproduced.ours.mean - reproduced.theirs.mean)
    bounds = None
    if reproduced.estimate is not None:
        low, high = reproduced.estimate.interval(0.90)
        bounds = metric.difference(low), metric.difference(high)
    drawn = _range(metric, difference, bounds, None)
    row = _verdict(
        metric, (reproduced.ours, reproduced.theirs), difference, bounds, drawn, _reach([drawn]),
        (-1, math.inf), word, primary=True,
    )  # fmt: skip
    worse = "below" if metric.better == "higher" else "above"
    means = f"reproduced: surely not {worse} it by {metric.margin:g} {points(metric)} or more"
    notes = [means, needs(reproduced)] if word == "cannot tell" else [means]
    published = "", f"ref:{reference.id}", reference.source
    return {
        "sides": (_side("runs", reproduced.cell, cells), published),
        "doubts": reproduced.doubts, "names": ("ours", "published"), "level": "90 %",
        "verdicts": [row], "notes": notes,
    }  # fmt: skip


def _side(role: str, cell: Cell, cells: Sequence[Cell]) -> tuple[str, Swatch, str]:
    """Whose side it is, and of how many runs."""
    number = next((n for n, each in enumerate(cells) if each is cell), 0)
    return role, Swatch(cell_color(number), cell.label), runs_of(cell)


def differences(
    rows: Sequence[Difference], testing: Sequence[str], sides: tuple[str, str]
) -> Table:
    """What is not the same on both sides: first what is under test."""

    def key(row: Difference) -> str:
        group = html("<b>under test</b>") if row.key in testing else row.group
        return html("<code>{}</code> <small>{}</small>", row.key, group)

    ordered = sorted(rows, key=lambda row: row.key not in testing)
    return Table(("", *sides), [(key(row), row.new, row.base) for row in ordered])


def _verdict(
    metric: Metric, sides: tuple[Sample, Sample], difference: float,
    bounds: tuple[float, float] | None, drawn: Range | None, reach: float,
    same: tuple[float, float], word: str, primary: bool,
) -> dict[str, Any]:  # fmt: skip
    """A line of the page: one metric on both sides, with the picture of its interval."""
    new, base = (value(metric, side) for side in sides)
    change = f"{_signed(difference)} {points(metric)}"
    about = "unknown" if bounds is None else f"{_signed(bounds[0])} to {_signed(bounds[1])}"
    label = f"{metric.title}: {change}, interval {about}, margin {metric.margin:g}"
    return {
        "metric": metric, "primary": primary, "values": (new, base), "change": change,
        "interval": about, "word": word, "look": LOOKS[word],
        "picture": drawn and interval(label, drawn, same, reach, LOOKS[word]),
    }  # fmt: skip


def _range(
    metric: Metric, point: float, inner: tuple[float, float] | None,
    outer: tuple[float, float] | None,
) -> Range | None:  # fmt: skip
    """A difference in margins, so that what is better is to the right; none without an interval."""
    if inner is None:
        return None
    scale = (1 if metric.better == "higher" else -1) / metric.margin

    def turned(bounds: tuple[float, float]) -> tuple[float, float]:
        low, high = sorted(scale * bound for bound in bounds)
        return low, high

    return Range(scale * point, turned(inner), None if outer is None else turned(outer))


def _reach(ranges: Sequence[Range | None]) -> float:
    ends = [abs(end) for seen in ranges if seen for end in (*seen.inner, *(seen.outer or ()))]
    return min(max(LEAST_REACH, *ends), MOST_REACH) if ends else LEAST_REACH


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}")
