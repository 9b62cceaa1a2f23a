"""Show a comparison on the console."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from harness.results.stats.compare import Cell, Comparison, Difference, Finding
from harness.results.stats.metrics import Metric
from harness.results.stats.reproduce import Reproduction
from harness.results.stats.statistics import Sample
from harness.system.console import count, out, wide

VERDICT_COLORS = {
    "better": "green", "worse": "red", "equivalent": "cyan", "cannot tell": "yellow",
    "reproduced": "green", "not reproduced": "red", "not comparable": "yellow",
}  # fmt: skip
BASIS = {
    "welch": "intervals: from the spread between runs on both sides (Welch)",
    "one side": "intervals: one side has a single run, taken as one more of the other side's kind",
    "assumed": "intervals: one run each, so how much repeats differ is not known; a "
    "standard deviation of {std:g} {unit} is assumed for {title} (--assume-std {name}=...); "
    "repeats are better",
    "drift": "intervals: one run each, and the halves of a run differ in {title} by more than the "
    "{std:g} {unit} that would be assumed, so that difference is taken for the spread between "
    "runs; repeats are better",
}
NONE = "not comparable"
MAX_TEXT = 60


def show_comparison(comparison: Comparison, testing: Sequence[str], *, judge: bool) -> None:
    """Show what differs, the doubts, and each metric; with `judge`, also its verdict."""
    out.print(_head("new ", comparison.new))
    out.print(_head("base", comparison.base))
    show_differences(comparison.differences, testing)
    show_doubts(comparison.doubts)
    table = _table("new", "base", "95 % interval")
    for finding in comparison.findings:
        table.add_row(*_row(finding, judge))
    wide.print(table)
    for line in interval_notes(comparison.findings):
        out.print(Text(line, "dim"))


def _table(new: str, base: str, interval: str) -> Table:
    table = Table("", new, base, "difference", interval, "verdict", box=box.SIMPLE_HEAD)
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[1:5]:
        column.justify = "right"
    return table


def show_differences(differences: Sequence[Difference], testing: Sequence[str]) -> None:
    """Show the differences: first those under test, then all others."""
    tested = [row for row in differences if row.key in testing]
    others = [row for row in differences if row.key not in testing]
    table = Table(box=None, pad_edge=False, show_header=False)
    for title, rows in (("under test", tested), ("differs too" if tested else "differs", others)):
        for row in rows:
            table.add_row(
                Text(title, "dim"), row.group, Text(row.key), Text(_shorten(row.new)),
                Text("base:", "dim"), Text(_shorten(row.base)),
            )  # fmt: skip
    if differences:
        out.print(table)
    else:
        out.print("nothing differs but the seeds: settings, software, hardware and data agree")


def show_doubts(doubts: Sequence[str]) -> None:
    """Show the reasons why the sides are not comparable."""
    for doubt in doubts:
        out.print(Text(f"not comparable: {doubt}", "yellow"))


def show_reproduction(result: Reproduction, *, judge: bool) -> None:
    """Show our number, the published one, and the interval; with `judge`, also the verdict."""
    metric, reference = result.metric, result.reference
    out.print(_head("runs", result.cell))
    out.print(Text(f"ref:{reference.id}  {reference.source}"))
    show_differences(result.differences, ())
    show_doubts(result.doubts)
    table = _table("ours", "published", "90 % interval")
    difference = metric.difference(result.ours.mean - result.theirs.mean)
    table.add_row(
        f"{metric.title}, {metric.unit}", format_sample(metric, result.ours),
        format_sample(metric, result.theirs), f"{difference:+.2f} {difference_unit(metric)}",
        _interval(result), _verdict(result.verdict if judge else NONE),
    )  # fmt: skip
    wide.print(table)
    out.print(meaning_of_reproduced(metric))
    if judge and result.verdict == "cannot tell":
        out.print(seeds_needed(result))


def meaning_of_reproduced(metric: Metric) -> str:
    """Return the sentence that says what `reproduced` means."""
    worse = "below" if metric.better == "higher" else "above"
    margin = f"{metric.margin:g} {difference_unit(metric)}"
    return f"reproduced: certainly not {worse} it by {margin} or more"


def seeds_needed(result: Reproduction) -> str:
    """Return the sentence that says how many more seeds would decide."""
    if result.runs_needed is None:
        if result.estimate is None:
            return "one run here and no spread published: train more seeds"
        return "no number of seeds would tell: the spread of the publication is too wide"
    more = max(1, result.runs_needed - result.ours.n)
    return f"needs {count(more, 'more seed')}: {result.runs_needed} in all, for a power of 80 %"


def format_sample(metric: Metric, sample: Sample) -> str:
    """Return mean, spread and n: `75.91 ± 0.12 (5)`."""
    mean = metric.inverse(sample.mean)
    digits = 0 if mean >= 1000 else 1 if mean >= 100 else 2
    spread = ""
    if sample.std is not None:
        std = f"{100 * sample.std:.1f} %" if metric.scale == "relative" else f"{sample.std:.2f}"
        spread = f" ± {std}"
    return f"{mean:,.{digits}f}{spread} ({sample.n})"


def _shorten(value: Any) -> str:
    """Return a fact as text of at most MAX_TEXT letters."""
    text = "-" if value is None else str(value)
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"


def count_runs(cell: Cell) -> str:
    """Return how many runs a side has, and their seeds."""
    runs = count(len(cell.runs), "run")
    seeds = sorted({run.config.run.seed for run in cell.runs})
    return f"{runs}, seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else runs


def _head(role: str, cell: Cell) -> Text:
    return Text.assemble((f"{role}  ", "dim"), (cell.label, "bold"), f"  {count_runs(cell)}")


def _row(finding: Finding, judge: bool) -> tuple[str | Text, ...]:
    metric, bounds = finding.metric, finding.interval()
    name = f"{metric.title}, {metric.unit}"
    interval = "unknown" if bounds is None else f"{bounds[0]:+.2f} to {bounds[1]:+.2f}"
    return (
        Text(name, "bold" if finding.primary else ""), format_sample(metric, finding.new),
        format_sample(metric, finding.base),
        f"{finding.difference:+.2f} {difference_unit(metric)}", interval,
        _verdict(finding.verdict if judge else NONE),
    )  # fmt: skip


def _interval(result: Reproduction) -> str:
    if result.estimate is None:
        return "unknown"
    low, high = map(result.metric.difference, result.estimate.interval(0.90))
    return f"{low:+.2f} to {high:+.2f}"


def difference_unit(metric: Metric) -> str:
    """Return the unit of a metric's differences."""
    return "%" if metric.scale == "relative" else "points"


def _verdict(verdict: str) -> Text:
    return Text(verdict, VERDICT_COLORS[verdict])


def interval_notes(findings: Sequence[Finding]) -> list[str]:
    """Return notes for the table: what its numbers mean and where its intervals come from."""
    notes = {}
    for finding in findings:
        metric, basis = finding.metric, finding.estimate.basis if finding.estimate else None
        if basis and basis not in notes:
            notes[basis] = BASIS[basis].format(
                std=metric.assumed_std or 0, unit=difference_unit(metric), title=metric.title,
                name=metric.name,
            )  # fmt: skip
    metrics = [finding.metric for finding in findings]
    margins = ", ".join(f"{m.title} {m.margin:g} {difference_unit(m)}" for m in metrics)
    lines = [
        "±: standard deviation between runs; in brackets: number of runs, or of seeds for accuracy",
        *notes.values(),
        f"equivalent: certainly nearer than {margins} (--margin)",
    ]
    if len(findings) > 1:
        lines.append("verdicts except the first are adjusted for the number of metrics (Holm)")
    return lines
