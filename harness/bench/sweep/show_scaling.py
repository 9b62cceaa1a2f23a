"""Print scaling as a table, and write it as scaling.json and as a page."""

from collections.abc import Sequence
from dataclasses import asdict, astuple, replace
from pathlib import Path

import numpy as np

from harness.bench.output import make_folder, write_both
from harness.bench.sweep.scaling import Cell, Kind, cells_of, efficiencies, measure, threads_of_each
from harness.bench.sweep.variant import Variant
from harness.bench.turns import end_of
from harness.config import load
from harness.errors import RunFailed
from harness.results.page.series import Line
from harness.system.console import count, out, right_table, wide

KINDS: dict[Kind, str] = {
    "weak": "each rank has the same local batch",
    "strong": "the global batch is the same",
}
HEAD = ("ranks", "", "global batch", "images/s", "per rank", "efficiency %", "from", "to", "starts")


def run(
    base: Variant, ranks: Sequence[int], *, minutes: float, folder: Path, per_node: int
) -> None:
    """Measure, print, and write both files; `per_node` ranks share a node's cores.

    Raises:
        BadInput: the config cannot be run here, or the folder cannot be written.
        RunFailed: nothing could be measured.
    """
    config, until = load.load(base.all_args), end_of(minutes)
    cells = cells_of(config, ranks)
    base = replace(base, flags=threads_of_each(config, min(max(ranks), per_node)))
    logs = make_folder(folder, "logs")
    out.print(
        f"{len(cells)} cells: {', '.join(str(n) for n in ranks)} ranks, weak and strong, in rounds "
        f"for about {minutes:g} minutes"
    )
    measure(base, cells, until=until, folder=logs)
    if not any(cell.rates and cell.failed is None for cell in cells):
        raise RunFailed(f"no number of ranks could be measured; see {logs}")
    show(cells, base, folder)


def show(cells: Sequence[Cell], base: Variant, folder: Path) -> None:
    """Print the cells, and write both files."""
    table = right_table(*HEAD)
    table.columns[1].justify = "left"
    for row in _rows(cells):
        table.add_row(*row)
    wide.print(table)
    out.print("\n".join(report := lines(cells)))
    content = {
        "words": base.all_args,
        "cells": [asdict(cell) for cell in cells],
        "efficiency": {
            kind: {str(n): asdict(value) for n, value in efficiencies(cells, kind).items()}
            for kind in KINDS
        },
        "lines": report,
    }
    write_both(folder / "scaling", content, lambda: _page(cells, base))


def _rows(cells: Sequence[Cell]) -> list[list[str]]:
    rows = []
    for kind in KINDS:
        cell_of = {cell.ranks: cell for cell in cells if kind in cell.kinds}
        for number, (ranks, efficiency) in enumerate(efficiencies(cells, kind).items()):
            cell, rate = cell_of[ranks], cell_of[ranks].images_per_second
            percent = [f"{100 * each:.1f}" if each else "" for each in astuple(efficiency)]
            rows.append([
                str(ranks), kind, f"{cell.global_batch:,}", f"{rate:,.0f}", f"{rate / ranks:,.1f}",
                *(percent if number else ["100", "", ""]), str(len(cell.rates)),
            ])  # fmt: skip
    return rows


def lines(cells: Sequence[Cell]) -> list[str]:
    """Return the report: what the kinds mean, the efficiency of each, and what failed."""
    report = [f"{kind}: {meaning}" for kind, meaning in KINDS.items()]
    for kind in KINDS:
        known = efficiencies(cells, kind)
        if len(known) > 1:
            fewest, most = min(known), max(known)
            value, low, high = astuple(known[most])
            interval = f" ({100 * low:.1f} to {100 * high:.1f})" if low and high else ""
            report.append(
                f"{kind}: {count(most, 'rank')} do {most / fewest * value:.2f} times the work of "
                f"{fewest}: {100 * value:.1f} %{interval}"
            )
    if any(len(cell.rates) == 1 for cell in cells):
        report.append("intervals are not known after one round; give more --minutes")
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
        if not (known := efficiencies(cells, kind)):
            continue
        ranks = np.array(list(known), dtype=float)
        curves.append(Line(ranks, np.array([100 * e.value for e in known.values()]), color))
        bars += [
            Line(np.array([n, n], dtype=float), 100 * np.array([e.low, e.high]), color)
            for n, e in known.items()
            if e.low is not None
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
    args = " ".join(base.all_args)
    page = render.Page("Scaling", args, "scaling", {"": [figure]}, {"": table}, lines(cells))
    return render.render(page)
