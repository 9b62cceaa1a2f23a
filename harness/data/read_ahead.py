"""Read-ahead: as the order is known, exactly the bytes that come next are asked for in time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from harness.data.index import Bytes
from harness.data.stream import Samples

THREADS = 8
"""They wait for a disk more than they compute."""
_AT_ONCE = 64  # images that a thread reads in a row: smaller pieces cost more than they hide


def read_ahead(
    samples: Iterator[Samples], read: Callable[[int], Bytes], batches: int
) -> Iterator[tuple[Samples, list[Bytes]]]:
    """Each batch of samples with its encoded bytes, which were asked for `batches` before.

    Args:
        read: gives the bytes of a sample, or a map whose pages the kernel then reads.
        batches: 0 reads a batch when it is wanted, in the caller's thread.

    Raises:
        RunFailed: as `read` does, when the batch is due.
    """
    if not batches:
        for each in samples:
            yield each, [read(sample) for sample in each.ids.tolist()]
        return

    def some(ids: list[int]) -> list[Bytes]:
        return [read(sample) for sample in ids]

    def due() -> tuple[Samples, list[Bytes]]:
        each, parts = waiting.popleft()
        return each, [encoded for part in parts for encoded in part.result()]

    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="read-ahead")
    waiting: deque[tuple[Samples, list[Future[list[Bytes]]]]] = deque()
    try:
        for each in samples:
            ids = each.ids.tolist()
            cut = range(0, len(ids), _AT_ONCE)
            waiting.append((each, [pool.submit(some, ids[k : k + _AT_ONCE]) for k in cut]))
            if len(waiting) > batches:
                yield due()
        while waiting:
            yield due()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
