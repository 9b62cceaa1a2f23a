"""The kernel's page cache: measure which share of some files is in it, and drop it."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Extent(NamedTuple):
    """A range of bytes of a file."""

    path: Path
    offset: int
    size: int


def drop(extents: Iterable[Extent]) -> None:
    """Ask the kernel to drop these ranges from its page cache; a file server's cache stays.

    It keeps pages that a process maps, and pages that are not yet written to the disk.
    """
    for path, offset, size in extents:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            # Extended to page bounds: the kernel keeps pages of which only a part is given.
            first = offset // mmap.PAGESIZE * mmap.PAGESIZE
            last = -(-(offset + size) // mmap.PAGESIZE) * mmap.PAGESIZE
            os.posix_fadvise(descriptor, first, last - first, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def cached_pct(extents: Iterable[Extent]) -> float | None:
    """Return the share of these ranges in memory, in percent; None if it cannot be measured."""
    mincore = getattr(ctypes.CDLL(None), "mincore", None)
    if mincore is None:
        return None
    pages = held = 0
    for path, offset, size in extents:
        first = offset // mmap.PAGESIZE * mmap.PAGESIZE
        with path.open("rb") as file, suppress(OSError, ValueError):  # an empty file has no map
            view = np.memmap(file, np.uint8, "r", first, (offset + size - first,))
            flags = np.zeros(-(-len(view) // mmap.PAGESIZE), dtype=np.uint8)
            if mincore(view.ctypes, ctypes.c_size_t(len(view)), flags.ctypes):
                return None
            pages, held = pages + len(flags), held + int((flags & 1).sum())
    return 100 * held / pages if pages else None
