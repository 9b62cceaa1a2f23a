"""Measure several things in turns, A B B A ..., so that drift of the machine affects all alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from harness.system.console import out, track, wide


@dataclass(frozen=True)
class Timed:
    """One of the things to compare: `turn` runs it once and returns images per second."""

    name: str
    turn: Callable[[], float]


def interleave(arms: Sequence[Timed], turns: int) -> dict[str, list[float]]:
    """Return images per second of each arm in each turn; every second turn has reversed order."""
    measured: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for turn in track(range(turns), total=turns, what="measuring"):
        for arm in arms if turn % 2 == 0 else reversed(arms):
            measured[arm.name].append(arm.turn())
    return measured


def report(measured: dict[str, list[float]], title: str) -> float:
    """Print each arm's rate and its ratio to the last arm; return the first arm's median ratio."""
    first, *_, base = measured
    table = Table("", "images/s, median", "least", "most", f"ratio to {base}", "from", "to")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, rates in measured.items():
        low, middle, high = np.quantile(ratios(measured, name, base), [0, 0.5, 1])
        table.add_row(
            name, f"{np.median(rates):,.1f}", f"{min(rates):,.1f}", f"{max(rates):,.1f}",
            f"{middle:.3f}", f"{low:.3f}", f"{high:.3f}",
        )  # fmt: skip
    out.print(title)
    wide.print(table)
    return float(np.median(ratios(measured, first, base)))


def ratios(measured: dict[str, list[float]], arm: str, base: str) -> NDArray[np.float64]:
    """Return the ratio of one arm's rate to another's, for each turn."""
    pairs = zip(measured[arm], measured[base], strict=True)
    return np.array([one / other for one, other in pairs])
