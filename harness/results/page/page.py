"""Write a comparison, or a report of runs, as an HTML page: one file that needs no network."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from harness.errors import BadInput
from harness.results import show_compare
from harness.results.measured import Measured
from harness.results.page import figures
from harness.results.page.plots import Bounds, cell_color, interval
from harness.results.page.render import Page, Swatch, Table, html, render
from harness.results.stats.compare import NOT_COMPARABLE, Cell, Comparison, Finding, doubts
from harness.results.stats.metrics import accuracy, metrics, sample, steady_rate
from harness.system.console import count, duration
from harness.system.files import write_atomic

MOST_NAMES = 4
ABOUT = {
    "model": "model", "source": "images from", "train_images": "training images",
    "protocol": "validation", "val_images": "validation images", "world_size": "ranks",
    "global_batch": "images per step", "accumulate": "micro-steps", "peak_lr": "peak learning rate",
    "precision": "precision", "compiled": "compiled", "decode": "decoded on",
    "attempt": "attempts",
}  # fmt: skip
"""Fields of a Result that describe a run -> their titles."""
LOOKS = {
    "better": "good", "reproduced": "good", "worse": "bad", "not reproduced": "bad",
    "equivalent": "same", "cannot tell": "unsure", NOT_COMPARABLE: "none",
}  # fmt: skip
Span = tuple[float, Bounds, Bounds | None]


def write_page(
    path: Path, cells: Sequence[Cell], comparisons: Sequence[Comparison], *,
    testing: Sequence[str] = (), anyway: bool,
) -> None:  # fmt: skip
    """Write the page of comparisons of cells, or a cell's report; `testing` is meant to differ.

    Raises:
        BadInput: the file cannot be written; nothing is left behind.
    """
    judgments = [_judgment(item, cells, anyway) for item in comparisons]
    kinds = (figures.rates, figures.step_times, figures.times, figures.efficiency)
    title = _title(cells, comparisons)
    page = Page(
        title, _about(cells), title, judgments=judgments,
        reports=[] if judgments else [_report(cell) for cell in cells],
        differences=[_differences(item, testing) for item in comparisons],
        figures={
            "Accuracy": figures.accuracies(cells, comparisons),
            "Speed": [figure for kind in kinds if (figure := kind(cells))],
        },
        tables={"Runs": _runs(cells)}, foot=list(_foot(comparisons)),
    )  # fmt: skip
    text = render(page)
    try:
        write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: a path such as `.` has no file name
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{path}: {reason}; give a file that can be written") from None


def _title(cells: Sequence[Cell], comparisons: Sequence[Comparison]) -> str:
    *new, base = (cell.label for cell in cells)
    published = [item.base.label for item in comparisons if item.base.reference]
    if new:
        return f"{_few(new)} beside {base}"
    return f"{base} beside {_few(published)}" if published else base


def _about(cells: Sequence[Cell]) -> str:
    runs = [run for cell in cells for run in cell.runs]
    models = _few(str(run.result["model"]) for run in runs)
    return " · ".join([models, count(len(runs), "run"), _few(map(_hardware, runs))])


def _few(names: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(names))
    if len(distinct) > MOST_NAMES:
        distinct[MOST_NAMES:] = [f"{len(distinct) - MOST_NAMES} more"]
    return ", ".join(distinct)


def _judgment(compared: Comparison, cells: Sequence[Cell], anyway: bool) -> dict[str, Any]:
    reference = compared.base.reference
    spans = [_span(finding) for finding in compared.findings]
    ends = [abs(end) for span in spans if span for end in (*span[1], *(span[2] or ()))]
    reach = min(max([2.0, *ends]), 6.0)  # margins that the pictures show to each side
    new = _side("runs" if reference else "new", compared.new, cells)
    published = reference and ("", compared.base.label, reference.source)
    return {
        "sides": (new, published or _side("base", compared.base, cells)),
        "doubts": compared.doubts, "titles": show_compare.column_titles(compared),
        "verdicts": [
            _verdict(finding, span, reach, compared.verdict(finding, anyway=anyway))
            for finding, span in zip(compared.findings, spans, strict=True)
        ],
        "notes": show_compare.notes(compared, anyway=anyway) if reference else (),
    }  # fmt: skip


def _side(role: str, cell: Cell, cells: Sequence[Cell]) -> tuple[str, object, str]:
    number = next((i for i, other in enumerate(cells) if other is cell), 0)
    return role, Swatch(cell_color(number), cell.label), show_compare.count_runs(cell)


def _differences(compared: Comparison, testing: Sequence[str]) -> Table:
    test, form = html("<b>under test</b>"), "<code>{}</code> <small>{}</small>"
    rows = [
        (html(form, row.key, test if row.key in testing else row.group), row.new, row.base)
        for row in sorted(compared.differences, key=lambda row: row.key not in testing)
    ]
    return Table(("", compared.new.label, compared.base.label), rows)


def _verdict(finding: Finding, span: Span | None, reach: float, verdict: str) -> dict[str, Any]:
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


def _report(cell: Cell) -> dict[str, Any]:
    numbers = [
        # The number of runs is left out if it is 1.
        (metric.title, show_compare.format_sample(metric, known).removesuffix(" (1)"), metric.unit)
        for metric in metrics().values()
        if (known := sample(metric, cell.runs))
    ]
    numbers.append(("wall time", duration(fmean(run.result["wall_s"] for run in cell.runs)), ""))
    first = cell.runs[0].result
    facts = [
        (name, f"{first[key]:,}" if type(first[key]) is int else first[key], "")
        for key, name in ABOUT.items()
        if first.get(key) is not None
    ]
    if started := first.get("started_at"):
        facts.append(("started, UTC", str(started)[:16].replace("T", " "), ""))
    notes = [f"note: {note}" for run in cell.runs for note in run.result.get("notes") or ()]
    remarks = {"doubts": tuple(doubts(cell)), "notes": dict.fromkeys(notes)}
    return remarks | {"numbers": numbers, "facts": facts}


def _runs(cells: Sequence[Cell]) -> Table:
    rows = [_run(number, run) for number, run in figures.numbered_runs(cells)]
    return Table(list(rows[0]), [list(row.values()) for row in rows], right=(1, 2, 3, 4, 5))


def _run(number: int, run: Measured) -> dict[str, object]:
    about, epochs = run.environment, run.result.get("epochs")
    top1_pct, rate = accuracy("val_top1_pct")(run), steady_rate(run)
    commit = (about.get("harness") or {}).get("git_commit")
    return {
        "run": Swatch(cell_color(number), run.name),
        "seed": run.config.run.seed,
        "epochs": None if epochs is None else f"{epochs:g}",
        "top-1, %": None if top1_pct is None else f"{top1_pct:.2f}",
        "images/s": None if rate is None else f"{rate:,.0f}",
        "wall time": duration(run.result["wall_s"]),
        "hardware": _hardware(run),
        "torch": (about.get("versions") or {}).get("torch"),
        "git commit": html("<code>{}</code>", commit and commit[:10]),
        "address": run.address,
    }


def _hardware(run: Measured) -> str:
    name = (run.environment.get("device") or {}).get("name") or run.result["device"]
    return f"{run.result['world_size']} × {name}"


def _foot(comparisons: Sequence[Comparison]) -> Iterable[str]:
    ours = [item for item in comparisons if not item.base.reference]
    notes = (show_compare.notes(item, anyway=True) for item in ours)
    yield from dict.fromkeys(line for lines in notes for line in lines)
    if ours:
        yield "95 % intervals are not adjusted for the number of metrics"
    if len(ours) < len(comparisons):
        yield "published results: 90 % intervals, as the test is one-sided"
    yield (
        "images/s: images of all ranks per second of training, waiting for data included. The "
        "first log period of each attempt, start-up, compiling, validation and checkpoints do not "
        "count."
    )
