"""Reduce long columns of rows to as many points as a picture can show."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from harness.results.measured import Column

MOST_POINTS = 200
ROWS_OF_A_BIN = 10
"""Fewer rows than this have no meaningful 5th and 95th percentile."""


class Line(NamedTuple):
    """Points of one run; `cell` is the number of its cell."""

    x: Column
    y: Column
    cell: int


Band = tuple[Column, Column, Column, int]
"""x, the 5th and the 95th percentile of the rows of a cell over x, and the number of the cell."""


def line(x: Column, y: Column, cell: int, most: int = MOST_POINTS) -> Line | None:
    """Return the finite points, averaged over neighbors if there are many; None if none is."""
    x, y = _finite(x, y)
    if not len(x):
        return None
    if len(x) > most:
        cuts = np.linspace(0, len(x), most + 1).astype(int)
        sizes, starts = np.diff(cuts), cuts[:-1]
        x, y = np.add.reduceat(x, starts) / sizes, np.add.reduceat(y, starts) / sizes
    return Line(x, y, cell)


def band(columns: Sequence[tuple[Column, Column]], cell: int) -> Band | None:
    """Return the band of all rows of a cell, given x and y of each run; None if too few."""
    x, y = _finite(*(np.concatenate(part) for part in zip(*columns, strict=True)))
    bins = min(len(x) // ROWS_OF_A_BIN, MOST_POINTS)
    if bins < 2:
        return None
    edges = np.linspace(x.min(), x.max(), bins + 1)
    bin_of = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, bins - 1)
    order = np.argsort(bin_of, kind="stable")
    starts = np.flatnonzero(np.diff(bin_of[order], prepend=-1))
    groups = np.split(y[order], starts[1:])
    low, high = np.array([np.percentile(group, (5, 95)) for group in groups]).T
    middle = ((edges[:-1] + edges[1:]) / 2)[bin_of[order][starts]]
    # Extend the band from the middle of the outer bins to both ends.
    extended = np.concatenate([edges[:1], middle, edges[-1:]])
    return extended, np.pad(low, 1, mode="edge"), np.pad(high, 1, mode="edge"), cell


def _finite(x: Column, y: Column) -> tuple[Column, Column]:
    known = np.isfinite(x) & np.isfinite(y)
    return x[known], y[known]
