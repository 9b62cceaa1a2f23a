"""A comparison on the console."""

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

COLOURS = {
    "better": "green", "worse": "red", "equivalent": "cyan", "cannot tell": "yellow",
    "reproduced": "green", "not reproduced": "red", "not comparable": "yellow",
}  # fmt: skip
BASIS = {
    "welch": "intervals: Welch's, from run to run on both sides",
    "one side": "intervals: one side has a single run, taken as one more of the other side's kind",
    "assumed": "intervals: one run each, so that nothing tells how much runs of the same thing "
    "differ; a standard deviation of {std:g} {unit} is assumed for {title} (--assume-std "
    "{name}=...), and repeats are better",
    "drift": "intervals: one run each, and the halves of a run differ in {title} by more than the "
    "{std:g} {unit} that would be assumed: that is taken for how much runs of the same thing "
    "differ; repeats tell more",
}
NONE = "not comparable"
MOST_WORDS = 60


def show_comparison(told: Comparison, testing: Sequence[str], *, judge: bool) -> None:
    """What differs, whether it may be compared, and each metric, with its verdict or without."""
    out.print(_head("new ", told.new))
    out.print(_head("base", told.base))
    show_differences(told.differences, testing)
    show_doubts(told.doubts)
    table = _table("new", "base", "95 % interval")
    for found in told.findings:
        table.add_row(*_row(found, judge))
    wide.print(table)
    for line in bases(told.findings):
        out.print(Text(line, "dim"))


def _table(new: str, base: str, interval: str) -> Table:
    table = Table("", new, base, "difference", interval, "verdict", box=box.SIMPLE_HEAD)
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[1:5]:
        column.justify = "right"
    return table


def show_differences(found: Sequence[Difference], testing: Sequence[str]) -> None:
    """Under test, and what else is not the same."""
    meant = [each for each in found if each.key in testing]
    others = [each for each in found if each.key not in testing]
    table = Table(box=None, pad_edge=False, show_header=False)
    for what, part in (("under test", meant), ("differs" if not meant else "differs too", others)):
        for each in part:
            table.add_row(
                Text(what, "dim"), each.group, Text(each.key), Text(words(each.new)),
                Text("base:", "dim"), Text(words(each.base)),
            )  # fmt: skip
    if found:
        out.print(table)
    else:
        out.print("nothing differs but the seeds: settings, software, hardware and data agree")


def show_doubts(doubts: Sequence[str]) -> None:
    """Why the sides are not comparable."""
    for doubt in doubts:
        out.print(Text(f"not comparable: {doubt}", "yellow"))


def show_reproduction(told: Reproduction, *, judge: bool) -> None:
    """The paper's number, ours, the interval, and the verdict or none."""
    metric, reference = told.metric, told.reference
    out.print(_head("runs", told.cell))
    out.print(Text(f"ref:{reference.id}  {reference.source}"))
    show_differences(told.differences, ())
    show_doubts(told.doubts)
    table = _table("ours", "published", "90 % interval")
    difference = metric.difference(told.ours.mean - told.theirs.mean)
    table.add_row(
        f"{metric.title}, {metric.unit}", value(metric, told.ours), value(metric, told.theirs),
        f"{difference:+.2f} {points(metric)}", _interval(told),
        _verdict(told.word if judge else NONE),
    )  # fmt: skip
    wide.print(table)
    worse = "below" if metric.better == "higher" else "above"
    out.print(f"reproduced: surely not {worse} it by {metric.margin:g} {points(metric)} or more")
    if judge and told.word == "cannot tell":
        out.print(needs(told))


def needs(told: Reproduction) -> str:
    """How many more runs would tell."""
    if told.runs_needed is None:
        if told.estimate is None:
            return "one run here and no spread published: train more seeds"
        return "no number of seeds would tell: the publication's own spread is too wide for that"
    more = max(1, told.runs_needed - told.ours.n)
    return f"needs {count(more, 'more seed')}: {told.runs_needed} in all, for a power of 80 %"


def value(metric: Metric, sample: Sample) -> str:
    """Mean, spread and n: `75.91 +- 0.12 (5)`."""
    mean = metric.outer(sample.mean)
    digits = 0 if mean >= 1000 else 1 if mean >= 100 else 2
    spread = ""
    if sample.std is not None:
        told = f"{100 * sample.std:.1f} %" if metric.scale == "relative" else f"{sample.std:.2f}"
        spread = f" ± {told}"
    return f"{mean:,.{digits}f}{spread} ({sample.n})"


def words(value: Any) -> str:
    """A fact in a few words."""
    text = "-" if value is None else str(value)
    return text if len(text) <= MOST_WORDS else f"{text[: MOST_WORDS - 1]}…"


def runs_of(cell: Cell) -> str:
    """How many runs a side has, and their seeds."""
    runs = count(len(cell.runs), "run")
    seeds = sorted({run.config.run.seed for run in cell.runs})
    return f"{runs}, seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else runs


def _head(which: str, cell: Cell) -> Text:
    return Text.assemble((f"{which}  ", "dim"), (cell.label, "bold"), f"  {runs_of(cell)}")


def _row(found: Finding, judge: bool) -> tuple[str | Text, ...]:
    metric = found.metric
    name = f"{metric.title}, {metric.unit}"
    interval = found.interval()
    seen = "unknown" if interval is None else f"{interval[0]:+.2f} to {interval[1]:+.2f}"
    return (
        Text(name, "bold" if found.primary else ""), value(metric, found.new),
        value(metric, found.base), f"{found.difference:+.2f} {points(metric)}", seen,
        _verdict(found.word if judge else NONE),
    )  # fmt: skip


def _interval(told: Reproduction) -> str:
    if told.estimate is None:
        return "unknown"
    low, high = map(told.metric.difference, told.estimate.interval(0.90))
    return f"{low:+.2f} to {high:+.2f}"


def points(metric: Metric) -> str:
    """The unit of a metric's differences."""
    return "%" if metric.scale == "relative" else "points"


def _verdict(word: str) -> Text:
    return Text(word, COLOURS[word])


def bases(findings: Sequence[Finding]) -> list[str]:
    """Where intervals come from, each said once; and what the numbers in brackets count."""
    lines = ["± from run to run, in brackets how many: runs, or seeds where the seed matters"]
    seen = {}
    for found in findings:
        basis = found.estimate.basis if found.estimate else None
        if basis and basis not in seen:
            seen[basis] = BASIS[basis].format(
                std=found.metric.assumed_std or 0, unit=points(found.metric),
                title=found.metric.title, name=found.metric.name,
            )  # fmt: skip
    lines += seen.values()
    margins = ", ".join(
        f"{found.metric.title} {found.metric.margin:g} {points(found.metric)}" for found in findings
    )
    lines.append(f"equivalent: surely nearer than {margins} (--margin)")
    if len(findings) > 1:
        lines.append("verdicts but the first metric's are adjusted for their number (Holm)")
    return lines
