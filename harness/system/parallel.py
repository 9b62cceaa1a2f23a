"""Call a function for many items in threads, with a progress display."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from harness.system.console import track

S = TypeVar("S")
T = TypeVar("T")
AT_ONCE = 4096
"""Items submitted to the threads at once, so that a million items do not fill a queue."""


def in_parallel(
    do: Callable[[S], T], items: Sequence[S], *, threads: int, what: str, unit: str | None = None
) -> Iterator[T]:
    """Yield the result of `do` for each item, in order; after an error no further item starts.

    Args:
        what, unit: as for `console.track`.
    """

    def results() -> Iterator[T]:
        with ThreadPoolExecutor(threads) as pool:
            for first in range(0, len(items), AT_ONCE):
                yield from pool.map(do, items[first : first + AT_ONCE])

    return track(results(), total=len(items), what=what, unit=unit)
