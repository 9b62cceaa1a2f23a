"""Probes: measure one part of this machine alone: disk, matrix products, memory, network, clocks.

They only return numbers; `harness doctor` judges these before a run.
"""

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


def write_speed(folder: Path, size_mib: int, *, limit_s: float) -> float:
    """Return the bytes per second of writing a file in `folder` and forcing it to the disk.

    Writing stops after `limit_s` seconds. The file has no name, so that nothing is left of it even
    after a kill. An OSError is raised if it cannot be written.
    """
    block = os.urandom(MIB)  # random bytes cannot be compressed by the disk
    written = 0
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        began = time.perf_counter()
        while written < size_mib * MIB and time.perf_counter() - began < limit_s:
            written += file.write(block)
        os.fsync(file.fileno())
        return written / (time.perf_counter() - began)


@dataclass(frozen=True)
class Reading:
    """The result of reading files."""

    files: int
    size_bytes: int
    seconds: float
    cached_pct: float | None  # share that was in the page cache before; None if unknown


def read_speed(
    read: Callable[[int], Any],
    extents: Sequence[Extent],
    *,
    threads: int,
    limit_s: float,
    cold: bool = True,
) -> Reading:
    """Read images in the given order, until all are read or `limit_s` seconds have passed.

    Args:
        read: returns the bytes of the n-th image as an array; mapped ones are paged in here.
        extents: the images' ranges of bytes.
        cold: first ask the kernel to drop them from its page cache; a file server's cache stays.
    """
    if cold:
        pagecache.drop(extents)
    cached_pct = pagecache.cached_pct(extents[:64])
    began = time.perf_counter()
    numbers = iter(range(len(extents)))

    def worker(_: int) -> tuple[int, int]:
        files = size = 0
        for number in numbers:
            size += len(np.array(read(number)))  # a copy, so that each page is read
            files += 1
            if time.perf_counter() - began >= limit_s:
                break
        return files, size

    with ThreadPoolExecutor(threads) as pool:
        done = list(pool.map(worker, range(threads)))
    seconds = time.perf_counter() - began
    return Reading(sum(n for n, _ in done), sum(size for _, size in done), seconds, cached_pct)


def matmul_flops(device: torch.device, dtype: torch.dtype, *, limit_s: float = 0.5) -> float:
    """Return the FLOP/s of the fastest of many matrix products: other load only slows them."""
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / _fastest_s(lambda: left @ right, device, limit_s)


def copy_speed(device: torch.device, *, limit_s: float = 0.5) -> float:
    """Return the bytes per second, read plus written, of the fastest of many copies in memory.

    The tensors are larger than caches. On a GPU several copies are timed together: waiting for one
    takes a tenth of its time.
    """
    copies = 16 if device.type == "cuda" else 1
    source = torch.ones(256 * MIB, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        for _ in range(copies):
            target.copy_(source)

    return 2 * source.numel() * copies / _fastest_s(copy, device, limit_s)


def _fastest_s(work: Callable[[], object], device: torch.device, limit_s: float) -> float:
    best_s = float("inf")
    until = _now(device) + limit_s
    while (began := _now(device)) < until:
        work()
        best_s = min(best_s, _now(device) - began)
    return best_s


def bucket_bytes(parameters: Iterable[torch.Tensor], bucket_mb: float) -> list[int]:
    """Return the sizes of DDP's rebuilt gradient buckets, in the order of their all-reduce.

    Gradients are ready in about the reverse order of the parameters; a bucket is closed once it has
    reached its size.
    """
    sizes, limit = [0], float(MIB)  # of the first one, so that communication starts early
    for parameter in reversed(list(parameters)):
        if sizes[-1] >= limit:
            sizes.append(0)
            limit = bucket_mb * MIB
        sizes[-1] += parameter.numel() * parameter.element_size()
    return sizes


def all_reduce_s(world: World, size_bytes: int, *, limit_s: float) -> float:
    """Return the slowest rank's median seconds of an all-reduce of float32; a collective call."""
    tensor = torch.ones(max(1, size_bytes // 4), device=world.device)

    def once() -> float:
        began = _now(world.device)
        world.sum_(tensor)
        return _now(world.device) - began

    once()  # the first call connects and registers buffers
    repeats = world.from_main(int(min(50, max(3, limit_s / once()))))
    tensor.zero_()  # repeated sums would overflow
    return float(max(world.gather(statistics.median(once() for _ in range(repeats)))))


def bus_bandwidth(size_bytes: int, seconds: float, ranks: int) -> float:
    """Return an all-reduce's bus bandwidth in bytes per second, as defined by nccl-tests."""
    return 2 * (ranks - 1) / ranks * size_bytes / seconds


def clock_offsets(world: World, *, trips: int = 20) -> list[tuple[float, float]]:
    """Return the offset of each rank's wall clock from rank 0's and its uncertainty, in seconds.

    Rank 0 asks each rank for its time; the fastest of `trips` round trips counts, and half of its
    duration is the uncertainty. A collective call; the result is the same on every rank.
    """
    group: Any = dist.new_group(backend="gloo")  # small messages between hosts, not GPUs
    offsets = [(0.0, 0.0)]
    time_ns = torch.zeros(1, dtype=torch.int64)
    for rank in range(1, world.size):
        if world.is_main:
            answers = (_round_trip(rank, time_ns, group) for _ in range(trips))
            offsets.append(min(answers, key=lambda answer: answer[1]))
        elif world.rank == rank:
            for _ in range(trips):
                dist.recv(time_ns, src=0, group=group)
                dist.send(torch.tensor([wall_clock_ns()]), dst=0, group=group)
    return list(world.from_main(offsets))


def wall_clock_ns() -> int:
    """Return this host's time of day in nanoseconds."""
    return time.time_ns()


def _round_trip(rank: int, time_ns: torch.Tensor, group: Any) -> tuple[float, float]:
    before_ns, began = wall_clock_ns(), time.perf_counter()
    dist.send(time_ns, dst=rank, group=group)
    dist.recv(time_ns, src=rank, group=group)
    half_s = (time.perf_counter() - began) / 2
    return (int(time_ns) - before_ns) / 1e9 - half_s, half_s


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # queued work counts
    return time.perf_counter()
