"""Build the figures of a page from runs; None where the runs lack what a figure shows."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from harness.results.measured import Column, Measured
from harness.results.page.plots import ACCOUNTS, bars, cell_color, curves, histogram
from harness.results.page.plots_speed import scaling
from harness.results.page.render import Figure, Swatch, Table
from harness.results.page.series import Line, band, line
from harness.results.stats.compare import Cell, Comparison
from harness.results.stats.metrics import steady_rate
from harness.system.console import count, duration

UNITS_S = (("h", 3600), ("min", 60), ("s", 1))
LIKE = ("model", "source", "device", "precision", "compiled")
"""Fields of a Result that must agree if runs with different ranks are one scaling curve."""


def accuracies(cells: Sequence[Cell], comparisons: Sequence[Comparison]) -> list[Figure]:
    """Return top-1 over epochs and over training time."""
    levels = {
        f"{finding.base.mean:g} published": finding.base.mean
        for comparison in comparisons
        for finding in comparison.findings
        if finding.published and finding.metric.name == "top1"
    }
    scored = [
        (number, run.val)
        for number, run in numbered_runs(cells)
        if run.result["source"] != "synthetic" and np.isfinite(run.val["val_top1_pct"]).any()
    ]
    unit, unit_s = _unit(val["train_s"] for _, val in scored)
    figures = []
    for title, x, column, scale in (
        ("Accuracy over epochs", "epochs", "epoch", 1),
        ("Accuracy over training time", f"training time, {unit}", "train_s", unit_s),
    ):
        values = ((val[column] / scale, val["val_top1_pct"], number) for number, val in scored)
        if lines := _lines(values):
            picture = curves(
                f"{title}. {_last(cells, lines)}", lines, x=x, y="validation top-1, %",
                y_range=_late_range(lines, levels.values()), levels=levels,
            )  # fmt: skip
            figures.append(Figure(title, picture, _legend(cells)))
    return figures


def rates(cells: Sequence[Cell]) -> Figure | None:
    """Return images per second over training time."""
    unit, unit_s = _unit(run.train["train_s"] for _, run in numbered_runs(cells))
    columns = [
        [(run.train["train_s"] / unit_s, run.train["images_per_second"]) for run in cell.runs]
        for cell in cells
    ]
    # Fewer points than in other lines, as the band shows the variation.
    lines = _lines((*xy, number, 80) for number, c in enumerate(columns) for xy in c)
    if not lines:
        return None
    bands = [row for number, c in enumerate(columns) if (row := band(c, number))]
    shown = np.concatenate([row.y for row in lines] + [y for b in bands for y in b[1:3]])
    picture = curves(
        f"Images per second over training time. {_last(cells, lines)}", lines, bands,
        x=f"training time, {unit}", y="images/s", y_range=_typical_range(shown),
    )  # fmt: skip
    note = "A line per run. The band holds 90 % of a side's log periods: 5th to 95th percentile."
    return Figure("Throughput over training time", picture, _legend(cells), note)


def step_times(cells: Sequence[Cell]) -> Figure | None:
    """Return the distribution of step times."""
    groups, rows, labels = [], [], []
    for number, cell in enumerate(cells):
        medians = np.concatenate([run.train["step_ms_p50"] for run in cell.runs])
        medians = medians[np.isfinite(medians)]
        if len(medians):
            all_ms = [_mean_of(cell.runs, f"step_ms_{name}") for name in ("p50", "p95", "p99")]
            groups.append((medians, all_ms[0], all_ms[1], number))
            shown = [None if math.isnan(ms) else f"{ms:,.1f}" for ms in all_ms]
            rows.append([Swatch(cell_color(number), cell.label), *shown])
            labels.append(f"{cell.label}: median {all_ms[0]:.1f} ms")
    if not groups:
        return None
    label = f"Distribution of step times. {'; '.join(labels)}"
    note = (
        "Above, the median step of each log period. Below, all steps after the warm-up on rank 0: "
        "a point at the median, a line to the 95th percentile."
    )
    numbers = Table(("all steps, ms", "p50", "p95", "p99"), rows, right=(1, 2, 3))
    picture = histogram(label, groups, x="step time, ms")
    return Figure("Step time", picture, _legend(cells), note, numbers)


def times(cells: Sequence[Cell]) -> Figure | None:
    """Return how each run spent its wall time."""
    accounts = ((number, run, _accounts(run.result)) for number, run in numbered_runs(cells))
    known = [item for item in accounts if item[-1]]
    if not known:
        return None
    shown = known[:40]
    unit, unit_s = _unit([np.array([sum(parts.values()) for _, _, parts in shown])])
    rows = [
        (
            run.name, duration(sum(parts.values())), {k: s / unit_s for k, s in parts.items()},
            number if len(cells) > 1 else None,
        )
        for number, run, parts in shown
    ]  # fmt: skip
    totals = "; ".join(f"{name}: {total}" for name, total, _, _ in rows)
    picture = bars(f"Where the time went. {totals}", rows, x=f"wall time, {unit}")
    more = f" The first {len(shown)} of {len(known)} runs." if len(known) > len(shown) else ""
    used = {name for _, _, parts in shown for name in parts}
    legend = [Swatch(color, name) for name, color in ACCOUNTS.items() if name in used]
    return Figure("Where the time went", picture, legend, f"Rank 0, all attempts.{more}")


def efficiency(cells: Sequence[Cell]) -> Figure | None:
    """Return throughput per rank relative to the fewest ranks; None if all have the same."""
    kinds = defaultdict(list)
    for number, run in numbered_runs(cells):
        if rate := steady_rate(run):
            ranks = int(run.result["world_size"])
            kinds[tuple(run.result[name] for name in LIKE)].append((number, ranks, rate / ranks))
    lines: list[Line] = []
    points, labels = [], []
    for runs in kinds.values():
        sizes = sorted({ranks for _, ranks, _ in runs})
        if len(sizes) > 1:
            means = [np.mean([rate for _, r, rate in runs if r == size]) for size in sizes]
            shares = 100 * np.array(means) / means[0]
            lines.append(Line(np.array(sizes), shares, len(lines)))
            points += [
                Line(np.array([ranks]), np.array([100 * rate / means[0]]), number)
                for number, ranks, rate in runs
            ]
            pairs = zip(sizes, shares, strict=True)
            labels += [f"{count(size, 'rank')} {share:.1f} %" for size, share in pairs]
    if not lines:
        return None
    label = f"Scaling efficiency: {', '.join(labels)}"
    y = "images/s per rank, % of the fewest ranks'"
    picture = scaling(label, lines, points, x="ranks", y=y)
    note = "A point per run. Lines join runs of one model, image source, device and precision."
    return Figure("Scaling efficiency", picture, _legend(cells), note)


def _legend(cells: Sequence[Cell]) -> list[Swatch]:
    named = cells if len(cells) > 1 else ()
    return [Swatch(cell_color(number), cell.label) for number, cell in enumerate(named)]


def numbered_runs(cells: Sequence[Cell]) -> list[tuple[int, Measured]]:
    """Return all runs, each with the number of its cell, which sets its color."""
    return [(number, run) for number, cell in enumerate(cells) for run in cell.runs]


def _lines(rows: Iterable[tuple[Any, ...]]) -> list[Line]:
    return [item for row in rows if (item := line(*row))]


def _unit(times_s: Iterable[Column]) -> tuple[str, int]:
    """Return the largest unit, and its seconds, of which the times have at least two."""
    longest_s = max((np.fmax.reduce(column, initial=0) for column in times_s), default=0)
    return next(((name, s) for name, s in UNITS_S if longest_s >= 2 * s), UNITS_S[-1])


def _last(cells: Sequence[Cell], lines: Sequence[Line]) -> str:
    ends = defaultdict(list)
    for row in lines:
        ends[row.cell].append(float(row.y[-1]))
    return "; ".join(
        f"{cells[number].label} ends at {min(values):,.4g}"
        + (f" to {max(values):,.4g}" if len(values) > 1 else "")
        for number, values in ends.items()
    )


def _late_range(lines: Sequence[Line], levels: Iterable[float]) -> tuple[float, float]:
    """Return a y range without the steep first quarter, so that the end is easy to read."""
    end = max(row.x[-1] for row in lines)
    late = [float(y) for row in lines for y in (*row.y[row.x >= end / 4], row.y[-1])]
    shown = [*late, *levels]
    pad = max((max(shown) - min(shown)) / 20, 0.2)
    return max(0.0, min(shown) - pad), min(100.0, max(shown) + pad)


def _typical_range(values: Column) -> tuple[float, float]:
    """Return a y range around the 1st to 99th percentile, so that outliers do not set it."""
    low, high = np.percentile(values, (1, 99))
    pad = max(0.15 * (high - low), high / 100)
    return max(0.0, float(low - pad)), float(high + pad)


def _mean_of(runs: Sequence[Measured], field: str) -> float:
    known = [value for run in runs if (value := run.result.get(field)) is not None]
    return fmean(known) if known else math.nan


def _accounts(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds of each part, with training split into compute and wait for data."""
    accounts = result.get("accounts_s") or {}
    spent = {name.replace("_", "-"): float(s) for name, s in accounts.items()}
    train = spent.get("train", 0.0)
    wait = train * (result.get("data_wait_pct") or 0.0) / 100
    spent |= {"compute": train - wait, "wait for data": wait}
    return {name: spent[name] for name in ACCOUNTS if spent.get(name)}
