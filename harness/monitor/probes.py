"""Probes: what one part of this machine can do, measured alone. Numbers in, numbers out.

`harness doctor` judges by them before a run; nothing here judges, prints or knows a config.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from harness.distributed import World
from harness.system import pagecache
from harness.system.pagecache import Extent

MIB = 2**20
FIRST_BUCKET_BYTES = MIB  # DDP closes its first bucket early, so that communication starts early


def write_speed(folder: Path, size_mib: int, *, limit_s: float) -> float:
    """Bytes per second of writing a file in `folder` and forcing it to the disk.

    No more is written once `limit_s` seconds are over. The file has no name, so that nothing is
    left of it, whatever happens.

    Raises:
        OSError: it cannot be written there.
    """
    block = os.urandom(MIB)  # a disk that compresses gets nothing to compress
    written = 0
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        began = time.perf_counter()
        while written < size_mib * MIB and time.perf_counter() - began < limit_s:
            written += file.write(block)
        os.fsync(file.fileno())
        return written / (time.perf_counter() - began)


@dataclass(frozen=True)
class Reading:
    """What reading files came to.

    Attributes:
        cached_pct: share of the files that still lay in memory; None where that cannot be told.
    """

    files: int
    size_bytes: int
    seconds: float
    cached_pct: float | None


def read_speed(
    read: Callable[[int], Any],
    extents: Sequence[Extent],
    *,
    threads: int,
    limit_s: float,
    cold: bool = True,
) -> Reading:
    """Read images in the given order, until all are read or `limit_s` seconds are over.

    Args:
        read: gives the bytes of the n-th image as an array; mapped ones are paged in here.
        extents: where they lie.
        cold: the kernel is first asked to drop what it holds of them; a file server's cache stays.
    """
    if cold:
        pagecache.drop(extents)
    cached_pct = pagecache.cached_pct(extents[:64])
    began = time.perf_counter()
    numbers = iter(range(len(extents)))

    def worker(_: int) -> tuple[int, int]:
        files = size = 0
        for number in numbers:
            size += len(np.array(read(number)))  # a copy: each page is touched
            files += 1
            if time.perf_counter() - began >= limit_s:
                break
        return files, size

    with ThreadPoolExecutor(threads) as pool:
        done = list(pool.map(worker, range(threads)))
    seconds = time.perf_counter() - began
    return Reading(sum(n for n, _ in done), sum(size for _, size in done), seconds, cached_pct)


def matmul_flops(device: torch.device, dtype: torch.dtype, *, limit_s: float = 0.5) -> float:
    """Floating point operations per second of a matrix product, the quickest of many.

    What else runs can only make one slower, so that the quickest comes nearest to what is possible.
    """
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best_s = float("inf")
    until = _now(device) + limit_s
    while (began := _now(device)) < until:
        left @ right
        best_s = min(best_s, _now(device) - began)
    return 2 * side**3 / best_s


def copy_speed(device: torch.device, *, limit_s: float = 0.5) -> float:
    """Bytes per second of memory, read and written, in a copy within it; the quickest of many.

    The tensors are larger than caches. On a GPU several copies are timed as one: to wait for one
    takes a tenth of its time.
    """
    copies = 16 if device.type == "cuda" else 1
    source = torch.ones(256 * MIB, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best_s = float("inf")
    until = _now(device) + limit_s
    while (began := _now(device)) < until:
        for _ in range(copies):
            target.copy_(source)
        best_s = min(best_s, (_now(device) - began) / copies)
    return 2 * source.numel() / best_s


def bucket_bytes(parameters: Iterable[torch.Tensor], bucket_mb: float) -> list[int]:
    """Sizes of DDP's gradient buckets in the order of their all-reduce, once it has rebuilt them.

    Gradients come in about the reverse order of the parameters; a bucket is closed when it has
    reached its size.
    """
    sizes, limit = [0], float(FIRST_BUCKET_BYTES)
    for parameter in reversed(list(parameters)):
        if sizes[-1] >= limit:
            sizes.append(0)
            limit = bucket_mb * MIB
        sizes[-1] += parameter.numel() * parameter.element_size()
    return sizes


def all_reduce_s(world: World, size_bytes: int, *, limit_s: float) -> float:
    """Seconds of one all-reduce of float32 over all ranks, median; a collective call.

    The slowest rank's median, the same on every rank.
    """
    tensor = torch.ones(max(1, size_bytes // 4), device=world.device)

    def once() -> float:
        began = _now(world.device)
        world.sum_(tensor)
        return _now(world.device) - began

    once()  # connections are made, buffers registered
    repeats = world.from_main(int(min(50, max(3, limit_s / once()))))
    tensor.zero_()  # sums of sums would overflow
    mine = statistics.median(once() for _ in range(repeats))
    return float(max(world.gather(mine)))


def bus_bandwidth(size_bytes: int, seconds: float, ranks: int) -> float:
    """Bytes per second over the slowest link that an all-reduce needs, as nccl-tests count it."""
    return 2 * (ranks - 1) / ranks * size_bytes / seconds


def clock_offsets(world: World, *, trips: int = 20) -> list[tuple[float, float]]:
    """How far each rank's wall clock is ahead of rank 0's, and how sure that is; s, on every rank.

    Rank 0 asks each rank for the time; the quickest of `trips` round trips counts, and the answer
    was given at some moment of it. A collective call.
    """
    group: Any = dist.new_group(backend="gloo")  # small messages between hosts, not GPUs
    found = [(0.0, 0.0)]
    told = torch.zeros(1, dtype=torch.int64)
    for other in range(1, world.size):
        if world.is_main:
            found.append(min((_ask(other, told, group) for _ in range(trips)), key=lambda x: x[1]))
        elif world.rank == other:
            for _ in range(trips):
                dist.recv(told, src=0, group=group)
                dist.send(torch.tensor([wall_clock_ns()]), dst=0, group=group)
    return list(world.from_main(found))


def wall_clock_ns() -> int:
    """This host's time of day."""
    return time.time_ns()


def _ask(other: int, told: torch.Tensor, group: Any) -> tuple[float, float]:
    before_ns, began = wall_clock_ns(), time.perf_counter()
    dist.send(told, dst=other, group=group)
    dist.recv(told, src=other, group=group)
    half_s = (time.perf_counter() - began) / 2
    return (int(told) - before_ns) / 1e9 - half_s, half_s


def _now(device: torch.device) -> float:
    """The time when all is done that the device was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
