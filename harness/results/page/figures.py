"""The pictures of a page: what of the runs stands in each. None where the runs do not tell it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from harness.results.measured import Column, Measured
from harness.results.page.plots import ACCOUNTS, Bar, Hump, bars, cell_color, curves, humps
from harness.results.page.plots_speed import scaling
from harness.results.page.render import Figure, Swatch, Table
from harness.results.page.series import Line, band, line
from harness.results.stats.compare import Cell
from harness.results.stats.metrics import steady_rate
from harness.results.stats.reproduce import Reproduction
from harness.system.console import count, duration

T = TypeVar("T")
RATE_POINTS = 80
"""Fewer than of other lines: the band tells the rest."""
MOST_BARS = 40
UNITS_S = (("h", 3600), ("min", 60), ("s", 1))
LIKE = ("model", "source", "device", "precision", "compiled")
"""Results that are to agree where runs of several sizes are one scaling."""


def accuracies(cells: Sequence[Cell], published: Sequence[Reproduction]) -> list[Figure]:
    """Top-1 over epochs, and over training time."""
    levels = {
        f"{each.reference.value:g} published": each.reference.value
        for each in published
        if each.metric.name == "top1"
    }
    scored = [
        (number, run.val)
        for number, run in _runs(cells)
        if run.result["source"] != "synthetic" and np.isfinite(run.val["val_top1_pct"]).any()
    ]
    if not scored:
        return []
    unit, unit_s = _unit(max(float(np.nanmax(val["train_s"], initial=0)) for _, val in scored))
    found = []
    for title, x, column, scale in (
        ("Accuracy over epochs", "epochs", "epoch", 1),
        ("Accuracy over training time", f"training time, {unit}", "train_s", unit_s),
    ):
        lines = _known(
            line(val[column] / scale, val["val_top1_pct"], number) for number, val in scored
        )
        if lines:
            picture = curves(
                f"{title}. {_last(cells, lines)}", lines, x=x, y="validation top-1, %",
                y_range=_late(lines, levels.values()), levels=levels,
            )  # fmt: skip
            found.append(Figure(title, picture, _legend(cells)))
    return found


def rates(cells: Sequence[Cell]) -> Figure | None:
    """Images per second over training time."""
    told = [(number, _rows(run, "train_s", "images_per_second")) for number, run in _runs(cells)]
    told = [(number, rows) for number, rows in told if len(rows[0])]
    if not told:
        return None
    unit, unit_s = _unit(max(float(seconds.max()) for _, (seconds, _) in told))
    scaled = [(number, (seconds / unit_s, rate)) for number, (seconds, rate) in told]
    lines = _known(line(*rows, number, RATE_POINTS) for number, rows in scaled)
    bands = _known(
        band([rows for cell, rows in scaled if cell == number], number)
        for number in dict.fromkeys(number for number, _ in scaled)
    )
    drawn = np.concatenate([each.y for each in lines] + [part for b in bands for part in b[1:3]])
    picture = curves(
        f"Images per second over training time. {_last(cells, lines)}", lines, bands,
        x=f"training time, {unit}", y="images/s", y_range=_around(drawn),
    )  # fmt: skip
    note = "A line per run. The band holds 90 % of a side's log periods: 5th to 95th percentile."
    return Figure("Throughput over training time", picture, _legend(cells), note)


def step_times(cells: Sequence[Cell]) -> Figure | None:
    """How step times are spread."""
    groups, rows = [], []
    for number, cell in enumerate(cells):
        medians = np.concatenate([run.train["step_ms_p50"] for run in cell.runs])
        medians = medians[np.isfinite(medians)]
        p50, p95, p99 = (_mean_of(cell.runs, f"step_ms_{name}") for name in ("p50", "p95", "p99"))
        if len(medians):
            groups.append(Hump(medians, (p50, p95), number))
            rows.append([Swatch(cell_color(number), cell.label), *map(_ms, (p50, p95, p99))])
    if not groups:
        return None
    told = "; ".join(
        f"{cells[each.cell].label}: median {each.quantiles[0]:.1f} ms" for each in groups
    )
    picture = humps(f"Distribution of step times. {told}", groups, x="step time, ms")
    note = (
        "Above, the median step of each log period. Below, all steps after the warm-up on rank 0: "
        "a point at the median, a line to the 95th percentile."
    )
    numbers = Table(("all steps, ms", "p50", "p95", "p99"), rows, right=(1, 2, 3))
    return Figure("Step time", picture, _legend(cells), note, numbers)


def times(cells: Sequence[Cell]) -> Figure | None:
    """Where the time of each run went."""
    known = [(number, run, _accounts(run.result)) for number, run in _runs(cells)]
    told = [each for each in known if each[-1]]
    if not told:
        return None
    shown = told[:MOST_BARS]
    spent = [each for _, _, each in shown]
    unit, unit_s = _unit(max(sum(each.values()) for each in spent))
    rows = [
        Bar(
            run.name,
            duration(sum(each.values())),
            _scaled(each, unit_s),
            number if len(cells) > 1 else None,
        )
        for number, run, each in shown
    ]
    used = [name for name in ACCOUNTS if any(each.get(name) for each in spent)]
    said = "; ".join(f"{row.name}: {row.total}" for row in rows)
    picture = bars(f"Where the time went. {said}", rows, x=f"wall time, {unit}")
    note = "Rank 0, all attempts."
    if len(told) > len(shown):
        note += f" The first {len(shown)} of {len(told)} runs."
    legend = [Swatch(ACCOUNTS[name], name) for name in used]
    return Figure("Where the time went", picture, legend, note)


def efficiency(cells: Sequence[Cell]) -> Figure | None:
    """Throughput per rank beside that of the fewest ranks; none if all runs have as many."""
    kinds: dict[tuple[object, ...], list[tuple[int, int, float]]] = {}
    for number, run in _runs(cells):
        if rate := steady_rate(run):
            kind = tuple(run.result[name] for name in LIKE)
            ranks = int(run.result["world_size"])
            kinds.setdefault(kind, []).append((number, ranks, rate / ranks))
    lines, points = [], []
    for place, found in enumerate(
        each for each in kinds.values() if len({r for _, r, _ in each}) > 1
    ):
        sizes = sorted({ranks for _, ranks, _ in found})
        per_rank = [float(np.mean([rate for _, r, rate in found if r == size])) for size in sizes]
        lines.append(Line(np.array(sizes), 100 * np.array(per_rank) / per_rank[0], place))
        points += [
            Line(np.array([ranks]), np.array([100 * rate / per_rank[0]]), number)
            for number, ranks, rate in found
        ]
    if not lines:
        return None
    told = ", ".join(
        f"{count(int(size), 'rank')} {share:.1f} %"
        for each in lines
        for size, share in zip(each.x, each.y, strict=True)
    )
    picture = scaling(
        f"Scaling efficiency: {told}", lines, points, x="ranks",
        y="images/s per rank, % of the fewest ranks'",
    )  # fmt: skip
    note = "A point per run. Lines join runs of one model, image source, device and precision."
    return Figure("Scaling efficiency", picture, _legend(cells), note)


def _legend(cells: Sequence[Cell]) -> list[Swatch]:
    """One cell needs none: all is of it."""
    if len(cells) == 1:
        return []
    return [Swatch(cell_color(number), cell.label) for number, cell in enumerate(cells)]


def _runs(cells: Sequence[Cell]) -> list[tuple[int, Measured]]:
    return [(number, run) for number, cell in enumerate(cells) for run in cell.runs]


def _known(found: Iterable[T | None]) -> list[T]:
    return [each for each in found if each is not None]


def _unit(longest_s: float) -> tuple[str, int]:
    """The unit in which a time has two of it or more."""
    return next(((name, s) for name, s in UNITS_S if longest_s >= 2 * s), UNITS_S[-1])


def _rows(run: Measured, x: str, y: str) -> tuple[Column, Column]:
    known = np.isfinite(run.train[x]) & np.isfinite(run.train[y])
    return run.train[x][known], run.train[y][known]


def _last(cells: Sequence[Cell], lines: Sequence[Line]) -> str:
    """Where the lines of each cell end, in words."""
    ends: dict[int, list[float]] = {}
    for each in lines:
        ends.setdefault(each.cell, []).append(float(each.y[-1]))
    return "; ".join(
        f"{cells[number].label} ends at {min(values):,.4g}"
        + (f" to {max(values):,.4g}" if len(values) > 1 else "")
        for number, values in ends.items()
    )


def _late(lines: Sequence[Line], levels: Iterable[float]) -> tuple[float, float]:
    """A range in which the end can be read: without the first quarter, which climbs into it."""
    end = max(float(each.x[-1]) for each in lines)
    late = [float(y) for each in lines for x, y in zip(each.x, each.y, strict=True) if x >= end / 4]
    every = [*late, *(float(each.y[-1]) for each in lines), *levels]
    pad = max((max(every) - min(every)) / 20, 0.2)
    return max(0.0, min(every) - pad), min(100.0, max(every) + pad)


def _around(values: Column) -> tuple[float, float]:
    """A range that one slow moment does not squeeze: what is far off leaves the picture."""
    low, high = np.percentile(values, (1, 99))
    pad = max(0.15 * (high - low), high / 100)
    return max(0.0, float(low - pad)), float(high + pad)


def _mean_of(runs: Sequence[Measured], field: str) -> float:
    values = [run.result.get(field) for run in runs]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan


def _ms(value: float) -> str | None:
    return None if math.isnan(value) else f"{value:,.1f}"


def _accounts(result: Mapping[str, Any]) -> dict[str, float]:
    """Seconds in the words of the page; training is divided by what it waited for data."""
    spent = {
        name.replace("_", "-"): float(s) for name, s in (result.get("accounts_s") or {}).items()
    }
    train = spent.pop("train", 0.0)
    wait = train * (result.get("data_wait_pct") or 0.0) / 100
    spent |= {"compute": train - wait, "wait for data": wait}
    return {name: spent[name] for name in ACCOUNTS if spent.get(name)}


def _scaled(parts: Mapping[str, float], unit: float) -> dict[str, float]:
    return {name: value / unit for name, value in parts.items()}
