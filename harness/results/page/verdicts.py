"""What a page says of sides beside each other: verdicts with their intervals, and why none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from harness.results.page.markup import Markup, join, labelled, table, tag, text
from harness.results.page.plots import cell_colour, interval
from harness.results.show_compare import NONE, needs, points, runs_of, value
from harness.results.stats.compare import Cell, Comparison, Difference, Finding
from harness.results.stats.metrics import Metric
from harness.results.stats.reproduce import Reproduction
from harness.system.console import count

LOOKS = {
    "better": "good", "reproduced": "good", "worse": "bad", "not reproduced": "bad",
    "equivalent": "same", "cannot tell": "unsure", NONE: "none",
}  # fmt: skip
COLLAPSED = 10
"""Tables of differences longer than this are folded."""
LEAST_REACH, MOST_REACH = 2.0, 6.0
"""How many margins the picture of an interval is wide to each side."""


class _Range(NamedTuple):
    """A difference with what is drawn of it: in margins, what is better to the right."""

    point: float
    inner: tuple[float, float]
    outer: tuple[float, float] | None


def comparison(key: str, told: Comparison, cells: Sequence[Cell], judge: bool) -> Markup:
    """The sides, why they are not comparable, and a line for each metric.

    Args:
        key: what ids begin with.
        cells: of the page; their order says their colours.
        judge: whether to judge them even if they are not comparable.
    """
    judged = judge or not told.doubts
    ranges = [_range_of(found) for found in told.findings]
    reach = _reach(ranges)
    lines = []
    for number, (found, seen) in enumerate(zip(told.findings, ranges, strict=True)):
        word = found.word if judged else NONE
        metric, bounds = found.metric, found.interval()
        lines.append(
            _line(
                f"{key}-{number}", metric, found.primary, word, seen, reach, (-1, 1),
                sides=(("new", value(metric, found.new)), ("base", value(metric, found.base))),
                change=_change(metric, found.difference), bounds=bounds,
            )
        )  # fmt: skip
    return tag(
        "article",
        tag("p", _side("new", told.new, cells), _side("base", told.base, cells), class_="sides"),
        doubts(told.doubts),
        _list(("new", "base"), "95 %", lines),
    )


def reproduction(key: str, told: Reproduction, cells: Sequence[Cell], judge: bool) -> Markup:
    """Runs beside the publication, the same way."""
    metric, reference = told.metric, told.reference
    word = told.word if judge or not told.doubts else NONE
    difference = metric.difference(told.ours.mean - told.theirs.mean)
    bounds = None
    if told.estimate is not None:
        low, high = told.estimate.interval(0.90)
        bounds = metric.difference(low), metric.difference(high)
    seen = None if bounds is None else _range(metric, difference, bounds, None)
    line = _line(
        key, metric, True, word, seen, _reach([seen]), (-1, math.inf),
        sides=(("ours", value(metric, told.ours)), ("published", value(metric, told.theirs))),
        change=_change(metric, difference), bounds=bounds,
    )  # fmt: skip
    worse = "below" if metric.better == "higher" else "above"
    means = f"reproduced: surely not {worse} it by {metric.margin:g} {points(metric)} or more"
    notes = [means, needs(told)] if word == "cannot tell" else [means]
    source = (tag("b", text(f"ref:{reference.id}")), text(f" {reference.source}"))
    return tag(
        "article",
        tag("p", _side("runs", told.cell, cells), tag("span", *source), class_="sides"),
        doubts(told.doubts),
        _list(("ours", "published"), "90 %", [line]),
        *(tag("p", text(note), class_="note") for note in notes),
    )


def _side(which: str, cell: Cell, cells: Sequence[Cell]) -> Markup:
    """Whose side it is, and of how many runs."""
    number = next((n for n, each in enumerate(cells) if each is cell), 0)
    name = tag("b", labelled(cell_colour(number), cell.label))
    return tag("span", text(f"{which} "), name, text(f" {runs_of(cell)}"))


def doubts(found: Sequence[str]) -> Markup:
    """Why there is nothing to compare; nothing where there is."""
    if not found:
        return Markup("")
    lines = (tag("li", tag("b", text(f"{NONE}: ")), text(doubt)) for doubt in found)
    return tag("ul", *lines, class_="doubts")


def differences(
    found: Sequence[Difference], testing: Sequence[str], sides: tuple[str, str]
) -> Markup:
    """What is not the same on both sides: first what is under test; folded if long."""
    if not found:
        said = "Nothing but the seeds: settings, software, hardware and data agree."
        return tag("p", text(said))
    rows = sorted(found, key=lambda each: each.key not in testing)
    body = table(
        ("", *sides), ([_what(each, testing), _fact(each.new), _fact(each.base)] for each in rows),
        class_="differences",
    )  # fmt: skip
    if len(rows) <= COLLAPSED:
        return body
    return tag("details", tag("summary", text(count(len(rows), "difference"))), body)


def _what(found: Difference, testing: Sequence[str]) -> Markup:
    group = tag("b", text("under test")) if found.key in testing else text(found.group)
    return join([tag("code", text(found.key)), text(" "), tag("small", group)])


def _fact(value: object) -> Markup:
    return text("-" if value is None else value)


def _list(sides: tuple[str, str], level: str, lines: Sequence[Markup]) -> Markup:
    titles = ("metric", *sides, "difference", f"{level} interval", "", "verdict")
    head = [tag("span", text(title)) for title in titles]
    head[5] = tag("span", *(tag("span", text(end)) for end in ("worse", "better")), class_="ends")
    return tag("ul", tag("li", *head, class_="head", aria_hidden="true"), *lines, class_="verdicts")


def _line(
    key: str, metric: Metric, primary: bool, word: str, seen: _Range | None, reach: float,
    same: tuple[float, float], *, sides: Sequence[tuple[str, str]], change: str,
    bounds: tuple[float, float] | None,
) -> Markup:  # fmt: skip
    told = "unknown" if bounds is None else _signed(bounds[0]) + " to " + _signed(bounds[1])
    picture = Markup("")
    if seen is not None:
        picture = interval(
            key, f"{metric.title}: {change}, interval {told}, margin {metric.margin:g}",
            outer=seen.outer, inner=seen.inner, point=seen.point, same=same, reach=reach,
            colour=f"--{LOOKS[word]}",
        )  # fmt: skip
    title = tag("b" if primary else "span", text(metric.title))
    values = (
        tag("span", tag("small", text(f"{name} ")), text(said), class_="value")
        for name, said in sides
    )
    return tag(
        "li",
        tag("span", title, text(" "), tag("small", text(metric.unit)), class_="metric"),
        *values,
        tag("span", text(change), class_="change"),
        tag("span", text(told), class_="interval"),
        tag("span", picture, class_="picture"),
        tag("span", tag("strong", text(word), class_=f"pill {LOOKS[word]}"), class_="verdict"),
    )


def _range_of(found: Finding) -> _Range | None:
    outer, inner = found.interval(), found.interval(0.90)
    if outer is None or inner is None:
        return None
    return _range(found.metric, found.difference, inner, outer)


def _range(
    metric: Metric, point: float, inner: tuple[float, float], outer: tuple[float, float] | None
) -> _Range:
    scale = (1 if metric.better == "higher" else -1) / metric.margin

    def turned(bounds: tuple[float, float]) -> tuple[float, float]:
        low, high = sorted(scale * bound for bound in bounds)
        return low, high

    return _Range(scale * point, turned(inner), None if outer is None else turned(outer))


def _reach(ranges: Sequence[_Range | None]) -> float:
    ends = [abs(end) for seen in ranges if seen for end in (*seen.inner, *(seen.outer or ()))]
    return min(max(LEAST_REACH, *ends), MOST_REACH) if ends else LEAST_REACH


def _change(metric: Metric, difference: float) -> str:
    return f"{_signed(difference)} {points(metric)}"


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "\N{MINUS SIGN}")
