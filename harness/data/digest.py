"""Digests of the images of an epoch: sums modulo 2^64, so that ranks' digests can be added."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.data.augment import Ints
from harness.data.stream import Samples

_Uint64s = NDArray[np.uint64]


class Digest:
    """The digest of an epoch's images: `order` of their rows, `samples` of their ids alone."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Reset for a new epoch."""
        self.images = 0
        self.order = 0
        self.samples = 0

    def add(self, rows: Ints) -> None:
        """Add the images of a batch, without padding (`Samples.rows`, [n, 12])."""
        columns = rows.astype(np.uint64).T
        hashes = np.zeros(len(rows), dtype=np.uint64)
        for column in columns:
            hashes = _mix(hashes ^ column)
        self.images += len(rows)
        self.order = (self.order + int(np.sum(hashes, dtype=np.uint64))) % 2**64
        self.samples = (self.samples + digest_of(Samples.from_rows(rows).ids)) % 2**64

    def load_state_dict(self, words: Ints) -> None:
        """Restore what `words()` returned."""
        self.images, self.order, self.samples = words.view(np.uint64).tolist()

    def words(self) -> Ints:
        """Return [images, order, samples] as int64, to be summed over ranks (the sum wraps)."""
        sums = np.array([self.images, self.order, self.samples], dtype=np.uint64)
        return sums.view(np.int64)


def digest_of(ids: Ints) -> int:
    """Return the order-independent digest of a set of sample ids."""
    return int(np.sum(_mix(ids.astype(np.uint64)), dtype=np.uint64))


def hexadecimal(word: int) -> str:
    """Return a digest as 16 hex digits; a negative int64 is read as unsigned."""
    return f"{word % 2**64:016x}"


def _mix(x: _Uint64s) -> _Uint64s:
    """SplitMix64 (Steele et al. 2014): every bit of the input moves every bit of the output."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
