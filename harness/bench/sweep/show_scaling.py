"""Print scaling as a table, and write it as scaling.json and as a page."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from rich.table import Table

from harness.bench.pages import write_page
from harness.bench.sweep.process import Variant
from harness.bench.sweep.scaling import Cell, Kind, cells_of, efficiencies, measure, threads_of_each
from harness.config import load
from harness.errors import BadInput, RunFailed
from harness.results.page.series import Line
from harness.system.console import count, out, wide
from harness.system.files import write_atomic
from harness.system.process import process_age_s

KINDS: dict[Kind, str] = {
    "weak": "each rank has the same local batch",
    "strong": "the global batch is the same",
}
HEAD = ("ranks", "", "global batch", "images/s", "per rank", "efficiency %", "from", "to", "starts")


def run(
    base: Variant, ranks: Sequence[int], *, minutes: float, folder: Path, per_node: int
) -> None:
    """Measure, print, and write scaling.json and scaling.html into a folder.

    Args:
        ranks: the numbers of ranks to compare.
        per_node: ranks that share a node's cores.

    Raises:
        BadInput: the config cannot be run here, or the folder cannot be written.
        RunFailed: nothing could be measured.
    """
    config = load.load(base.all_words, prog="harness bench scaling")
    cells = cells_of(config, ranks)
    base = replace(base, flags=threads_of_each(config, min(max(ranks), per_node)))
    logs = folder / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out: {folder}: {error.strerror}; name a folder you can write") from None
    out.print(
        f"{len(cells)} cells: {', '.join(str(n) for n in ranks)} ranks, weak and strong, in rounds "
        f"for about {minutes:g} minutes"
    )
    until = time.perf_counter() - process_age_s() + 60 * minutes
    measure(base, cells, until=until, folder=logs)
    if not any(cell.rates and cell.failed is None for cell in cells):
        raise RunFailed(f"no number of ranks could be measured; see {logs}")
    show(cells, base, folder)


def show(cells: Sequence[Cell], base: Variant, folder: Path) -> None:
    """Print the cells, and write both files."""
    table = Table(*HEAD)
    for column in (table.columns[0], *table.columns[2:]):
        column.justify = "right"
    for row in _rows(cells):
        table.add_row(*row)
    wide.print(table)
    for line in (report := lines(cells)):
        out.print(line)
    content = {
        "words": base.all_words,
        "cells": [asdict(cell) for cell in cells],
        "efficiency": {
            kind: {str(n): asdict(value) for n, value in efficiencies(cells, kind).items()}
            for kind in KINDS
        },
        "lines": report,
    }
    write_atomic(
        folder / "scaling.json", lambda part: part.write_text(json.dumps(content, indent=1))
    )
    page = write_page(folder / "scaling.html", lambda: _page(cells, base))
    out.print(f"\n{page}\n{folder / 'scaling.json'}: all measurements")


def _rows(cells: Sequence[Cell]) -> list[list[str]]:
    rows = []
    for kind in KINDS:
        known = efficiencies(cells, kind)
        of_kind = (cell for cell in cells if kind in cell.kinds)
        for cell in sorted(of_kind, key=lambda cell: cell.ranks):
            if (efficiency := known.get(cell.ranks)) is None:
                continue
            low, high = efficiency.low, efficiency.high
            percent = [f"{100 * value:.1f}" for value in (efficiency.value, low, high)]
            rate = cell.images_per_second
            rows.append([
                str(cell.ranks), kind, f"{cell.global_batch:,}", f"{rate:,.0f}",
                f"{rate / cell.ranks:,.1f}", *(percent if low < high else ["100", "", ""]),
                str(len(cell.rates)),
            ])  # fmt: skip
    return rows


def lines(cells: Sequence[Cell]) -> list[str]:
    """Return the report: what the kinds mean, the efficiency of each, and what failed."""
    report = [f"{kind}: {meaning}" for kind, meaning in KINDS.items()]
    for kind in KINDS:
        known = efficiencies(cells, kind)
        if len(known) > 1:
            fewest, most = min(known), max(known)
            value, low, high = (known[most].value, known[most].low, known[most].high)
            report.append(
                f"{kind}: {count(most, 'rank')} do {most / fewest * value:.2f} times the work of "
                f"{fewest}: {100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
            )
    report += [
        f"{count(cell.ranks, 'rank')} with {cell.global_batch} images: not measured: {cell.failed}"
        for cell in cells
        if cell.failed is not None
    ]
    return report


def _page(cells: Sequence[Cell], base: Variant) -> str:
    from harness.results.page import plots, plots_speed, render  # matplotlib is an extra

    curves, bars = [], []
    for color, kind in enumerate(KINDS):
        known = efficiencies(cells, kind)
        ranks = np.array(list(known), dtype=float)
        curves.append(Line(ranks, np.array([100 * e.value for e in known.values()]), color))
        bars += [
            Line(np.array([n, n], dtype=float), 100 * np.array([e.low, e.high]), color)
            for n, e in known.items()
        ]
    picture = plots_speed.scaling(
        "efficiency over ranks, percent", [*curves, *bars], curves, x="ranks", y="%"
    )
    legend = [
        render.Swatch(plots.cell_color(number), f"{kind}: {meaning}")
        for number, (kind, meaning) in enumerate(KINDS.items())
    ]
    figure = render.Figure("", picture, legend, "efficiency in percent, and its interval")
    table = render.Table(HEAD, _rows(cells), right=(0, *range(2, len(HEAD))))
    args = " ".join(base.all_words)
    page = render.Page("Scaling", args, "scaling", {"": [figure]}, {"": table}, lines(cells))
    return render.render(page)
