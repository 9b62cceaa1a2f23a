"""Long columns of rows made short enough for a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from harness.results.measured import Column

POINTS = 200
"""More than a picture has room for."""
ROWS_OF_A_BIN = 10
"""Below that many, a 5th and a 95th percentile say nothing."""


class Line(NamedTuple):
    """Points of one run."""

    x: Column
    y: Column
    cell: int


class Band(NamedTuple):
    """Where the rows of a cell lie: 5th to 95th percentile."""

    x: Column
    low: Column
    high: Column
    cell: int


def line(x: Column, y: Column, cell: int, most: int = POINTS) -> Line | None:
    """The known points, each the mean of some neighbours if they are many; none if none is."""
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if not len(x):
        return None
    if len(x) > most:
        cuts = np.linspace(0, len(x), most + 1).astype(int)
        sizes, starts = np.diff(cuts), cuts[:-1]
        x, y = np.add.reduceat(x, starts) / sizes, np.add.reduceat(y, starts) / sizes
    return Line(x, y, cell)


def band(columns: Sequence[tuple[Column, Column]], cell: int, most: int = POINTS) -> Band | None:
    """The band of all rows of a cell; none if they are too few for one.

    Args:
        columns: x and y of each run.
    """
    x, y = (np.concatenate(part) for part in zip(*columns, strict=True))
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    bins = min(len(x) // ROWS_OF_A_BIN, most)
    if bins < 2:
        return None
    edges = np.linspace(x.min(), x.max(), bins + 1)
    place = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, bins - 1)
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    groups = np.split(y[order], starts[1:])
    low, high = np.array([np.percentile(group, (5, 95)) for group in groups]).T
    middle = ((edges[:-1] + edges[1:]) / 2)[place[order][starts]]
    # To both ends, not only to the middle of the outer bins.
    around = np.concatenate([edges[:1], middle, edges[-1:]])
    return Band(around, np.pad(low, 1, mode="edge"), np.pad(high, 1, mode="edge"), cell)
