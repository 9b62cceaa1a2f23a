"""A comparison, or the report of some runs, as a page: one file that needs no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.errors import BadInput
from harness.results.measured import Measured
from harness.results.page import figures, verdicts
from harness.results.page.markup import Markup, join, labelled, table, tag, text
from harness.results.page.plots import cell_colour
from harness.results.show_compare import bases, value
from harness.results.stats.compare import Cell, Comparison, doubts
from harness.results.stats.metrics import accuracy, metrics, sample, steady_rate
from harness.results.stats.reproduce import Reproduction
from harness.system.console import count, duration
from harness.system.files import write_atomic

STYLE = Path(__file__).with_name("page.css")
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
PICTURES = (
    "Pictures of intervals: one for all metrics, in margins; better is to the right. The shaded "
    "part counts as equal. A thin line is the 95 % interval, a thick one the 90 % interval, which "
    "decides on equivalence; an arrow leads out of the picture."
)
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
    title = _title(cells, reproductions)
    body = [
        tag("header", tag("h1", text(title)), tag("p", text(_about(cells)))),
        *_verdicts(cells, comparisons, reproductions, judge),
        *_differences(comparisons, reproductions, testing),
        *_figures(cells, reproductions),
        _section("Runs", _runs(cells)),
        tag("footer", *(tag("p", text(line)) for line in _foot(comparisons, reproductions))),
    ]
    page = whole(title, body)
    try:
        write_atomic(path, lambda part: part.write_text(page, encoding="utf-8"))
    except (OSError, ValueError) as error:  # of a value: a path such as `.` names no file
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{path}: {reason}; give a file that can be written") from None


def whole(title: str, body: Iterable[Markup]) -> str:
    """A page of its own, styles and all."""
    head = (
        '<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{tag('title', text(title))}\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>"
    )
    inside = "\n".join(body)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n'
        f"<body>\n<main>\n{inside}\n</main>\n</body>\n</html>\n"
    )


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


def _verdicts(
    cells: Sequence[Cell], comparisons: Sequence[Comparison],
    reproductions: Sequence[Reproduction], judge: bool,
) -> list[Markup]:  # fmt: skip
    told = [
        verdicts.comparison(f"v{number}", each, cells, judge)
        for number, each in enumerate(comparisons)
    ]
    told += [
        verdicts.reproduction(f"r{number}", each, cells, judge)
        for number, each in enumerate(reproductions)
    ]
    if told:
        return [_section("Verdicts", *told, tag("p", text(PICTURES), class_="note"))]
    return [_section("Result", *(_report(cell) for cell in cells))]


def _report(cell: Cell) -> Markup:
    """A cell by itself: what came out, and what it was."""
    known = [(each, sample(each, cell.runs)) for each in metrics().values()]
    numbers = {each.title: _number(value(each, found), each.unit) for each, found in known if found}
    wall_s = [float(run.result["wall_s"]) for run in cell.runs]
    numbers["wall time"] = text(duration(sum(wall_s) / len(wall_s)))
    first = cell.runs[0].result
    facts = {
        name: text(f"{first[key]:,}" if type(first[key]) is int else first[key])
        for key, name in ABOUT.items()
        if first.get(key) is not None
    }
    if started := first.get("started_at"):
        facts["started, UTC"] = text(str(started)[:16].replace("T", " "))
    notes = dict.fromkeys(note for run in cell.runs for note in run.result.get("notes") or ())
    return tag(
        "article",
        verdicts.doubts(tuple(doubts(cell))),
        _pairs(numbers, "numbers"),
        _pairs(facts, "facts"),
        *(tag("p", text(f"note: {note}"), class_="note") for note in notes),
    )


def _number(said: str, unit: str) -> Markup:
    """Of one run, which need not be said."""
    return join([text(f"{said.removesuffix(' (1)')} "), tag("small", text(unit))])


def _pairs(told: dict[str, Markup], kind: str) -> Markup:
    pairs = (tag("div", tag("dt", text(name)), tag("dd", said)) for name, said in told.items())
    return tag("dl", *pairs, class_=kind)


def _differences(
    comparisons: Sequence[Comparison], reproductions: Sequence[Reproduction], testing: Sequence[str]
) -> list[Markup]:
    told = [(each.new.label, each.base.label, each.differences) for each in comparisons]
    told += [
        (each.cell.label, f"ref:{each.reference.id}", each.differences) for each in reproductions
    ]
    parts = []
    for new, base, found in told:
        if len(told) > 1:
            parts.append(tag("h3", text(f"{new} beside {base}")))
        parts.append(verdicts.differences(found, testing, (new, base)))
    return [_section("What differs", *parts)] if parts else []


def _figures(cells: Sequence[Cell], reproductions: Sequence[Reproduction]) -> list[Markup]:
    speed = (
        figures.rates(cells), figures.step_times(cells), figures.times(cells),
        figures.efficiency(cells),
    )  # fmt: skip
    parts = {"Accuracy": figures.accuracies(cells, reproductions), "Speed": speed}
    return [
        _section(title, tag("div", *(each for each in found if each), class_="figures"))
        for title, found in parts.items()
        if any(found)
    ]


def _runs(cells: Sequence[Cell]) -> Markup:
    head = (
        "run", "seed", "epochs", "top-1, %", "images/s", "wall time", "hardware", "torch",
        "git commit", "address",
    )  # fmt: skip
    rows = [_run(number, run) for number, cell in enumerate(cells) for run in cell.runs]
    return table(head, rows, right=(1, 2, 3, 4, 5))


def _run(number: int, run: Measured) -> list[Markup]:
    result, about = run.result, run.environment
    top1_pct, rate = accuracy("val_top1_pct")(run), steady_rate(run)
    commit = (about.get("harness") or {}).get("git_commit")
    epochs = result.get("epochs")
    return [
        labelled(cell_colour(number), run.name),
        text(run.config.run.seed),
        text("-" if epochs is None else f"{epochs:g}"),
        text("-" if top1_pct is None else f"{top1_pct:.2f}"),
        text("-" if rate is None else f"{rate:,.0f}"),
        text(duration(result["wall_s"])),
        text(_hardware(run)),
        text((about.get("versions") or {}).get("torch") or "-"),
        tag("code", text((commit or "-")[:COMMIT_LETTERS])),
        text(run.address),
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


def _section(title: str, *inside: Markup) -> Markup:
    return tag("section", tag("h2", text(title)), *inside)
