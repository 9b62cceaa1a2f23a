"""Progress displays: bars on a terminal, plain lines elsewhere; a function called in threads."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

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

from harness.system.console import out

S = TypeVar("S")
T = TypeVar("T")
PERIOD_S = 5.0
AT_ONCE = 4096
"""Items submitted to the threads at once, so that a million items do not fill a queue."""


def track(items: Iterable[T], *, total: int, what: str, unit: str | None = None) -> Iterator[T]:
    """Yield the items and show progress; the first plain line comes after two seconds.

    Args:
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


def in_parallel(
    do: Callable[[S], T], items: Sequence[S], *, threads: int, what: str, unit: str | None = None
) -> Iterator[T]:
    """Yield the result of `do` for each item, in order; after an error no further item starts."""

    def results() -> Iterator[T]:
        with ThreadPoolExecutor(threads) as pool:
            for first in range(0, len(items), AT_ONCE):
                yield from pool.map(do, items[first : first + AT_ONCE])

    return track(results(), total=len(items), what=what, unit=unit)
