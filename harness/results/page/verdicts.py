"""Prepare the verdicts of a page: metrics with intervals, or why the sides are not comparable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from harness.results import show_compare
from harness.results.page.plots import Bounds, cell_color, interval
from harness.results.page.render import Swatch, Table, html
from harness.results.stats.compare import NOT_COMPARABLE, Cell, Comparison, Difference, Finding

LOOKS = {
    "better": "good", "reproduced": "good", "worse": "bad", "not reproduced": "bad",
    "equivalent": "same", "cannot tell": "unsure", NOT_COMPARABLE: "none",
}  # fmt: skip
Span = tuple[float, Bounds, Bounds | None]
LEAST_REACH, MOST_REACH = 2.0, 6.0
"""The picture of an interval reaches this many margins to each side."""


def judgment(compared: Comparison, cells: Sequence[Cell], anyway: bool) -> dict[str, Any]:
    """Return the template's data for two sides: a verdict for each metric.

    Args:
        cells: all cells of the page; their order sets their colors.
        anyway: whether to give verdicts even if the sides are not comparable.
    """
    reference = compared.base.reference
    spans = [_span(finding) for finding in compared.findings]
    ends = [abs(end) for span in spans if span for end in (*span[1], *(span[2] or ()))]
    reach = min(max(LEAST_REACH, *ends), MOST_REACH) if ends else LEAST_REACH
    new = _side("runs" if reference else "new", compared.new, cells)
    published = reference and ("", compared.base.label, reference.source)
    return {
        "sides": (new, published or _side("base", compared.base, cells)),
        "doubts": compared.doubts, "names": show_compare.column_names(compared),
        "level": show_compare.interval_level(compared),
        "verdicts": [
            _verdict(finding, span, reach, compared.verdict(finding, anyway=anyway))
            for finding, span in zip(compared.findings, spans, strict=True)
        ],
        "notes": show_compare.notes(compared, anyway=anyway) if reference else (),
    }  # fmt: skip


def _side(role: str, cell: Cell, cells: Sequence[Cell]) -> tuple[str, object, str]:
    """Return the role of a side, its label, and how many runs it has."""
    number = next((i for i, other in enumerate(cells) if other is cell), 0)
    return role, Swatch(cell_color(number), cell.label), show_compare.count_runs(cell)


def differences(compared: Comparison, testing: Sequence[str]) -> Table:
    """Return a table of the differences between two sides: first those under test."""

    def key(row: Difference) -> str:
        group = html("<b>under test</b>") if row.key in testing else row.group
        return html("<code>{}</code> <small>{}</small>", row.key, group)

    ordered = sorted(compared.differences, key=lambda row: row.key not in testing)
    head = "", compared.new.label, compared.base.label
    return Table(head, [(key(row), row.new, row.base) for row in ordered])


def _verdict(finding: Finding, span: Span | None, reach: float, verdict: str) -> dict[str, Any]:
    """Return a line of the page: one metric on both sides, with the picture of its interval."""
    metric, bounds = finding.metric, finding.interval()
    change = f"{_signed(finding.difference)} {show_compare.difference_unit(metric)}"
    span_text = "unknown" if bounds is None else f"{_signed(bounds[0])} to {_signed(bounds[1])}"
    label = f"{metric.title}: {change}, interval {span_text}, margin {metric.margin:g}"
    same = -1, math.inf if finding.published else 1
    return {
        "metric": metric, "primary": finding.primary, "change": change, "interval": span_text,
        "values": [show_compare.format_sample(metric, s) for s in (finding.new, finding.base)],
        "verdict": verdict, "look": LOOKS[verdict],
        "picture": span and interval(label, *span, same=same, reach=reach, color=LOOKS[verdict]),
    }  # fmt: skip


def _span(finding: Finding) -> Span | None:
    """Return point, 90 % and 95 % interval in margins, better to the right; None without them."""
    scale = (1 if finding.metric.better == "higher" else -1) / finding.metric.margin
    inner, outer = (
        bounds and (min(scale * b for b in bounds), max(scale * b for b in bounds))
        for bounds in (finding.interval(0.90), None if finding.published else finding.interval())
    )
    return inner and (scale * finding.difference, inner, outer)


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}")
