"""Scaling as a table, as scaling.json and as a page."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from rich.table import Table

from harness.bench.pages import write_page
from harness.bench.sweep.process import Arm
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


def run(base: Arm, ranks: Sequence[int], *, minutes: float, folder: Path, per_node: int) -> None:
    """Measure, print, write scaling.json and scaling.html into the folder.

    Args:
        per_node: ranks that share a node's cores.

    Raises:
        BadInput: as a run's; a folder that cannot be written.
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


def show(cells: Sequence[Cell], base: Arm, folder: Path) -> None:
    """Print it, and write both files."""
    table = Table(*HEAD)
    for column in (table.columns[0], *table.columns[2:]):
        column.justify = "right"
    for row in _rows(cells):
        table.add_row(*row)
    wide.print(table)
    for line in (told := lines(cells)):
        out.print(line)
    found = {
        "words": base.all_words,
        "cells": [asdict(cell) for cell in cells],
        "efficiency": {
            kind: {str(n): asdict(each) for n, each in efficiencies(cells, kind).items()}
            for kind in KINDS
        },
        "lines": told,
    }
    write_atomic(folder / "scaling.json", lambda part: part.write_text(json.dumps(found, indent=1)))
    page = write_page(folder / "scaling.html", lambda: _page(cells, base))
    out.print(f"\n{page}\n{folder / 'scaling.json'}: all of it")


def _rows(cells: Sequence[Cell]) -> list[list[str]]:
    rows = []
    for kind in KINDS:
        known = efficiencies(cells, kind)
        for cell in sorted((each for each in cells if kind in each.kinds), key=lambda c: c.ranks):
            if (each := known.get(cell.ranks)) is None:
                continue
            share = [f"{100 * value:.1f}" for value in (each.value, each.low, each.high)]
            rate = cell.images_per_second
            rows.append([
                str(cell.ranks), kind, f"{cell.global_batch:,}", f"{rate:,.0f}",
                f"{rate / cell.ranks:,.1f}", *(share if each.low < each.high else ["100", "", ""]),
                str(len(cell.rates)),
            ])  # fmt: skip
    return rows


def lines(cells: Sequence[Cell]) -> list[str]:
    """What it means, in words."""
    told = [f"{kind}: {meaning}" for kind, meaning in KINDS.items()]
    for kind in KINDS:
        known = efficiencies(cells, kind)
        if len(known) > 1:
            fewest, most = min(known), max(known)
            each = known[most]
            told.append(
                f"{kind}: {count(most, 'rank')} do {most / fewest * each.value:.2f} times the work "
                f"of {fewest}: {100 * each.value:.1f} % ({100 * each.low:.1f} to "
                f"{100 * each.high:.1f})"
            )
    told += [
        f"{count(cell.ranks, 'rank')} with {cell.global_batch} images: not measured: {cell.failed}"
        for cell in cells
        if cell.failed is not None
    ]
    return told


def _page(cells: Sequence[Cell], base: Arm) -> str:
    from harness.results.page import plots, plots_speed, render  # matplotlib is an extra

    drawn, bars = [], []
    for place, kind in enumerate(KINDS):
        known = efficiencies(cells, kind)
        ranks = np.array(list(known), dtype=float)
        drawn.append(Line(ranks, np.array([100 * each.value for each in known.values()]), place))
        bars += [
            Line(np.array([n, n], dtype=float), 100 * np.array([each.low, each.high]), place)
            for n, each in known.items()
        ]
    picture = plots_speed.scaling(
        "efficiency over ranks, percent", [*drawn, *bars], drawn, x="ranks", y="%"
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
