"""Read-ahead: the order is known, so the next batches' bytes are read before they are due."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from harness.data.index import Bytes
from harness.data.stream import Samples

THREADS = 8
"""Threads that mostly wait for the disk."""
_CHUNK = 64  # images per task of a thread: smaller tasks cost more than they hide


def read_ahead(
    samples: Iterator[Samples], read: Callable[[int], Bytes], batches: int
) -> Iterator[tuple[Samples, list[Bytes]]]:
    """Yield each batch of samples with its encoded bytes, which are read `batches` ahead.

    Args:
        read: returns the bytes of a sample, or a map whose pages the kernel then reads.
        batches: with 0, a batch is read when it is due, in the caller's thread.

    Raises:
        RunFailed: from `read`, when the batch is due.
    """
    if not batches:
        for batch in samples:
            yield batch, [read(sample) for sample in batch.ids.tolist()]
        return

    def read_chunk(ids: list[int]) -> list[Bytes]:
        return [read(sample) for sample in ids]

    def due() -> tuple[Samples, list[Bytes]]:
        batch, parts = waiting.popleft()
        return batch, [encoded for part in parts for encoded in part.result()]

    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="read-ahead")
    waiting: deque[tuple[Samples, list[Future[list[Bytes]]]]] = deque()
    try:
        for batch in samples:
            ids = batch.ids.tolist()
            starts = range(0, len(ids), _CHUNK)
            parts = [pool.submit(read_chunk, ids[k : k + _CHUNK]) for k in starts]
            waiting.append((batch, parts))
            if len(waiting) > batches:
                yield due()
        while waiting:
            yield due()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
