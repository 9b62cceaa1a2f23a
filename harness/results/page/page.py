"""A comparison, or the report of some runs, as a page: one file that needs no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from harness.errors import BadInput
from harness.results.measured import Measured
from harness.results.page import figures, verdicts
from harness.results.page.plots import cell_color
from harness.results.page.render import Page, Swatch, Table, html, render
from harness.results.show_compare import bases, value
from harness.results.stats.compare import Cell, Comparison, doubts
from harness.results.stats.metrics import accuracy, metrics, sample, steady_rate
from harness.results.stats.reproduce import Reproduction
from harness.system.console import count, duration
from harness.system.files import write_atomic

COMMIT_LETTERS = 10
MOST_NAMES = 4
ABOUT = {
    "model": "model", "source": "images from", "train_images": "training images",
    "protocol": "validation", "val_images": "validation images", "world_size": "ranks",
    "global_batch": "images per step", "accumulate": "micro-steps", "peak_lr": "peak learning rate",
    "precision": "precision", "compiled": "compiled", "decode": "decoded on",
    "attempt": "attempts",
}  # fmt: skip
"""Fields of a Result that say what a run was."""
FOOT = (
    "images/s: images of all ranks per second of training, waiting for data included; without the "
    "first log period of each attempt. Start-up, compiling, validation and checkpoints are not in "
    "it."
)


def write_page(
    path: Path, cells: Sequence[Cell], comparisons: Sequence[Comparison],
    reproductions: Sequence[Reproduction], *, testing: Sequence[str] = (), judge: bool,
) -> None:  # fmt: skip
    """Write the page of a comparison; of one cell with nothing beside it, its report.

    Args:
        cells: all sides, also those of comparisons and reproductions.
        testing: keys that are meant to differ.
        judge: whether to judge even what is not comparable.

    Raises:
        BadInput: the file cannot be written; nothing is left.
    """
    judgments = [verdicts.comparison(each, cells, judge) for each in comparisons]
    judgments += [verdicts.reproduction(each, cells, judge) for each in reproductions]
    speed = (
        figures.rates(cells), figures.step_times(cells), figures.times(cells),
        figures.efficiency(cells),
    )  # fmt: skip
    title = _title(cells, reproductions)
    page = Page(
        title, _about(cells), title, judgments=judgments,
        reports=[] if judgments else [_report(cell) for cell in cells],
        differences=_differences(comparisons, reproductions, testing),
        figures={
            "Accuracy": figures.accuracies(cells, reproductions),
            "Speed": [each for each in speed if each],
        },
        tables={"Runs": _runs(cells)}, foot=list(_foot(comparisons, reproductions)),
    )  # fmt: skip
    text = render(page)
    try:
        write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))
    except (OSError, ValueError) as error:  # of a value: a path such as `.` names no file
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{path}: {reason}; give a file that can be written") from None


def _title(cells: Sequence[Cell], reproductions: Sequence[Reproduction]) -> str:
    *new, base = (cell.label for cell in cells)
    published = [f"ref:{each.reference.id}" for each in reproductions]
    if new:
        return f"{_few(new)} beside {base}"
    return f"{base} beside {_few(published)}" if published else base


def _about(cells: Sequence[Cell]) -> str:
    """What all the runs are, in a line."""
    runs = [run for cell in cells for run in cell.runs]
    models = [str(run.result["model"]) for run in runs]
    machines = [_hardware(run) for run in runs]
    return " · ".join([_few(models), count(len(runs), "run"), _few(machines)])


def _few(names: Iterable[str]) -> str:
    """The names, each once; of many, the first."""
    known = list(dict.fromkeys(names))
    more = [f"{len(known) - MOST_NAMES} more"] if len(known) > MOST_NAMES else []
    return ", ".join(known[:MOST_NAMES] + more)


def _report(cell: Cell) -> dict[str, Any]:
    """A cell by itself: what came out, and what it was."""
    samples = [(each, sample(each, cell.runs)) for each in metrics().values()]
    numbers = [
        # Of one run, which need not be said.
        (each.title, value(each, known).removesuffix(" (1)"), each.unit)
        for each, known in samples
        if known
    ]
    wall_s = [float(run.result["wall_s"]) for run in cell.runs]
    first = cell.runs[0].result
    facts = [
        (name, f"{first[key]:,}" if type(first[key]) is int else first[key], "")
        for key, name in ABOUT.items()
        if first.get(key) is not None
    ]
    if started := first.get("started_at"):
        facts.append(("started, UTC", str(started)[:16].replace("T", " "), ""))
    notes = dict.fromkeys(note for run in cell.runs for note in run.result.get("notes") or ())
    numbers.append(("wall time", duration(sum(wall_s) / len(wall_s)), ""))
    return {
        "numbers": numbers, "facts": facts, "doubts": tuple(doubts(cell)),
        "notes": [f"note: {note}" for note in notes],
    }  # fmt: skip


def _differences(
    comparisons: Sequence[Comparison], reproductions: Sequence[Reproduction], testing: Sequence[str]
) -> list[Table]:
    sides = [(each.new.label, each.base.label, each.differences) for each in comparisons]
    sides += [
        (each.cell.label, f"ref:{each.reference.id}", each.differences) for each in reproductions
    ]
    return [verdicts.differences(rows, testing, (new, base)) for new, base, rows in sides]


def _runs(cells: Sequence[Cell]) -> Table:
    head = (
        "run", "seed", "epochs", "top-1, %", "images/s", "wall time", "hardware", "torch",
        "git commit", "address",
    )  # fmt: skip
    rows = [_run(number, run) for number, cell in enumerate(cells) for run in cell.runs]
    return Table(head, rows, right=(1, 2, 3, 4, 5))


def _run(number: int, run: Measured) -> list[object]:
    result, about = run.result, run.environment
    top1_pct, rate = accuracy("val_top1_pct")(run), steady_rate(run)
    commit = (about.get("harness") or {}).get("git_commit")
    epochs = result.get("epochs")
    return [
        Swatch(cell_color(number), run.name),
        run.config.run.seed,
        None if epochs is None else f"{epochs:g}",
        None if top1_pct is None else f"{top1_pct:.2f}",
        None if rate is None else f"{rate:,.0f}",
        duration(result["wall_s"]),
        _hardware(run),
        (about.get("versions") or {}).get("torch"),
        html("<code>{}</code>", commit and commit[:COMMIT_LETTERS]),
        run.address,
    ]


def _hardware(run: Measured) -> str:
    name = (run.environment.get("device") or {}).get("name") or run.result["device"]
    return f"{run.result['world_size']} × {name}"


def _foot(
    comparisons: Sequence[Comparison], reproductions: Sequence[Reproduction]
) -> Iterable[str]:
    yield from dict.fromkeys(line for each in comparisons for line in bases(each.findings))
    if comparisons:
        yield "95 % intervals are of each metric alone"
    if reproductions:
        yield "published results: 90 % intervals, as the question has one side only"
    yield FOOT
