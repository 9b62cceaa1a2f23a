"""Progress of one long thing at a time: a bar on a terminal, a plain line per period elsewhere."""

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
from rich.text import Text

T = TypeVar("T")
PERIOD_S = 5.0

out = Console(soft_wrap=True, highlight=False, markup=False)
# Tables: a number that is wrapped cannot be read; on a narrow terminal the lines wrap instead.
wide = Console(width=max(out.width, 130), soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


def track(items: Iterable[T], *, total: int, what: str, unit: str | None = None) -> Iterator[T]:
    """Yield the items while showing how far they are; a plain line comes first after two seconds.

    Args:
        total: how many items there will be.
        what: what is being done, such as `indexing train`.
        unit: what the items are, to be told how many there are per second.
    """
    if out.is_terminal:
        # No markup: what is done may name a folder with brackets.
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
        """Of late, as rich tells it."""
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


def duration(seconds: float) -> str:
    """Seconds as a person reads them: `8 s`, `3 min 20 s`, `2 h 05 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def count(number: int, what: str) -> str:
    """A number of things in words: `1 rank`, `8 ranks`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
