"""Show a comparison on the console."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from harness.results.stats.compare import NOT_COMPARABLE, Cell, Comparison, Difference, Finding
from harness.results.stats.metrics import Metric
from harness.results.stats.statistics import Sample, runs_needed
from harness.system.console import count, out, wide

VERDICT_COLORS = {
    "better": "green", "worse": "red", "equivalent": "cyan", "cannot tell": "yellow",
    "reproduced": "green", "not reproduced": "red", NOT_COMPARABLE: "yellow",
}  # fmt: skip
BASIS = {
    "welch": "intervals: from the spread between runs on both sides (Welch)",
    "one side": "intervals: one side has a single run, taken as one more of the other side's kind",
    "assumed": "intervals: one run each, so how much repeats differ is not known; a standard "
    "deviation of {std:g} {unit} is assumed for {metric.title} (--assume-std {metric.name}=...); "
    "repeats are better",
    "drift": "intervals: one run each, and the halves of a run differ in {metric.title} by more "
    "than the {std:g} {unit} that would be assumed, so that difference is taken for the spread "
    "between runs; repeats are better",
}


def show_comparison(comparison: Comparison, testing: Sequence[str], *, anyway: bool) -> None:
    """Show what differs, the doubts, and each metric; without doubts or `anyway`, its verdict."""
    base, published = comparison.base, comparison.base.reference
    out.print(_head("runs" if published else "new ", comparison.new))
    out.print(Text(f"{base.label}  {published.source}") if published else _head("base", base))
    _show_differences(comparison.differences, () if published else testing)
    for doubt in comparison.doubts:
        out.print(Text(f"not comparable: {doubt}", "yellow"))
    table = Table("", *column_titles(comparison), "verdict", box=box.SIMPLE_HEAD)
    for i, column in enumerate(table.columns):
        column.no_wrap = True
        column.justify = "right" if 1 <= i <= 4 else "left"
    for item in comparison.findings:
        bounds, verdict = item.interval(), comparison.verdict(item, anyway=anyway)
        table.add_row(
            Text(f"{item.metric.title}, {item.metric.unit}", "bold" if item.primary else ""),
            format_sample(item.metric, item.new), format_sample(item.metric, item.base),
            f"{item.difference:+.2f} {difference_unit(item.metric)}",
            "unknown" if bounds is None else f"{bounds[0]:+.2f} to {bounds[1]:+.2f}",
            Text(verdict, VERDICT_COLORS[verdict]),
        )  # fmt: skip
    wide.print(table)
    for line in notes(comparison, anyway=anyway):
        out.print(Text(line, "" if published else "dim"))


def column_titles(comparison: Comparison) -> tuple[str, str, str, str]:
    """Return the titles between metric and verdict; a one-sided test at 5 % has 90 % intervals."""
    if comparison.base.reference:
        return "ours", "published", "difference", "90 % interval"
    return "new", "base", "difference", "95 % interval"


def _show_differences(differences: Sequence[Difference], testing: Sequence[str]) -> None:
    if not differences:
        out.print("nothing differs but the seeds: settings, software, hardware and data agree")
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    tested = any(row.key in testing for row in differences)
    for row in sorted(differences, key=lambda row: row.key not in testing):
        title = "under test" if row.key in testing else "differs too" if tested else "differs"
        table.add_row(
            Text(title, "dim"), row.group, Text(row.key), Text(_shorten(row.new)),
            Text("base:", "dim"), Text(_shorten(row.base)),
        )  # fmt: skip
    out.print(table)


def notes(comparison: Comparison, *, anyway: bool) -> list[str]:
    """Return notes for the table: what its numbers mean and where its intervals come from."""
    if comparison.base.reference:
        (finding,) = comparison.findings
        metric, unit = finding.metric, difference_unit(finding.metric)
        worse = "below" if metric.better == "higher" else "above"
        lines = [f"reproduced: certainly not {worse} it by {metric.margin:g} {unit} or more"]
        if comparison.verdict(finding, anyway=anyway) == "cannot tell":
            lines.append(_seeds_needed(finding))
        return lines
    bases: dict[str, str] = {}
    margins = []
    for finding in comparison.findings:
        metric, unit = finding.metric, difference_unit(finding.metric)
        margins.append(f"{metric.title} {metric.margin:g} {unit}")
        if finding.estimate:
            basis = finding.estimate.basis
            note = BASIS[basis].format(metric=metric, unit=unit, std=metric.assumed_std or 0)
            bases.setdefault(basis, note)
    lines = [
        "±: standard deviation between runs; in brackets: number of runs, or of seeds for accuracy",
        *bases.values(),
        f"equivalent: certainly nearer than {', '.join(margins)} (--margin)",
    ]
    if len(margins) > 1:
        lines.append("verdicts except the first are adjusted for the number of metrics (Holm)")
    return lines


def verdicts(comparison: Comparison) -> str:
    """Return the verdicts in one line."""
    named = (f"{item.metric.title} {item.verdict}" for item in comparison.findings)
    return f"{comparison.new.label}: {', '.join(named)}"


def _seeds_needed(finding: Finding) -> str:
    if needed := runs_needed(finding.new, finding.base, finding.metric.least_loss):
        more = max(1, needed - finding.new.n)
        return f"needs {count(more, 'more seed')}: {needed} in all, for a power of 80 %"
    if finding.estimate is None:
        return "one run here and no spread published: train more seeds"
    return "no number of seeds would tell: the spread of the publication is too wide"


def format_sample(metric: Metric, sample: Sample) -> str:
    """Return mean, spread and n: `75.91 ± 0.12 (5)`."""
    mean = metric.inverse(sample.mean)
    digits = 0 if mean >= 1000 else 1 if mean >= 100 else 2
    std = sample.std or 0.0
    spread = f"{100 * std:.1f} %" if metric.scale == "relative" else f"{std:.2f}"
    shown = "" if sample.std is None else f" ± {spread}"
    return f"{mean:,.{digits}f}{shown} ({sample.n})"


def _shorten(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def count_runs(cell: Cell) -> str:
    """Return how many runs a side has, and their seeds."""
    runs = count(len(cell.runs), "run")
    seeds = sorted({run.config.run.seed for run in cell.runs})
    return f"{runs}, seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else runs


def _head(role: str, cell: Cell) -> Text:
    return Text.assemble((f"{role}  ", "dim"), (cell.label, "bold"), f"  {count_runs(cell)}")


def difference_unit(metric: Metric) -> str:
    """Return the unit of a metric's differences."""
    return "%" if metric.scale == "relative" else "points"
