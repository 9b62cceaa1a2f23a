"""Console output: progress bars on a terminal, plain progress lines elsewhere; numbers as text."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

T = TypeVar("T")
PERIOD_S = 5.0

out = Console(soft_wrap=True, highlight=False, markup=False)
# For tables: on a narrow terminal lines wrap rather than cells, so that numbers stay readable.
wide = Console(width=max(out.width, 130), soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


def track(items: Iterable[T], *, total: int, what: str, unit: str | None = None) -> Iterator[T]:
    """Yield the items and show progress; the first plain line comes after two seconds.

    Args:
        total: the number of items.
        what: a description such as `indexing train`.
        unit: what an item is, to show the rate too.
    """
    if out.is_terminal:
        # No markup: the description may hold a folder name with brackets.
        described = TextColumn("{task.description}", markup=False)
        columns = (described, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        rate = [_Rate(unit)] if unit else []
        with Progress(*columns, *rate, console=out, transient=True) as bar:
            yield from bar.track(items, total=total, description=what)
    else:
        yield from _lines(items, total, what, unit)


class _Rate(ProgressColumn):
    """Items per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """Return the recent rate, as rich estimates it."""
        return Text(f"{task.speed or 0:,.0f} {self._unit}/s")


def _lines(items: Iterable[T], total: int, what: str, unit: str | None) -> Iterator[T]:
    started = time.monotonic()
    next_line = started + 2.0
    for done, item in enumerate(items):
        now = time.monotonic()
        if now >= next_line:
            rate = max(done, 1) / (now - started)
            speed = f", {rate:,.0f} {unit}/s" if unit else ""
            out.print(f"{what}: {done:,} of {total:,}{speed}, {(total - done) / rate:.0f} s left")
            next_line = now + PERIOD_S
        yield item


def right_table(*head: str) -> Table:
    """Return an empty table with these headings, whose columns but the first are right-aligned."""
    table = Table(*head)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def duration(seconds: float) -> str:
    """Format seconds for people: `8 s`, `3 min 20 s`, `2 h 05 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def count(number: int, what: str) -> str:
    """Format a number with its noun, singular or plural: `1 rank`, `8 ranks`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
