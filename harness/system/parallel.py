"""Many small things done by threads, with progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from harness.system.console import track

S = TypeVar("S")
T = TypeVar("T")
AT_ONCE = 4096
"""So many are begun before the first is answered: the rest of a million wait in no queue."""


def in_parallel(
    do: Callable[[S], T], items: Sequence[S], *, threads: int, what: str, unit: str | None = None
) -> Iterator[T]:
    """What it gives for each, in their order; if one fails, those that have not begun never do.

    Args:
        what, unit: as `track` has them.
    """

    def some_at_once() -> Iterator[T]:
        with ThreadPoolExecutor(threads) as pool:
            for first in range(0, len(items), AT_ONCE):
                yield from pool.map(do, items[first : first + AT_ONCE])

    return track(some_at_once(), total=len(items), what=what, unit=unit)
