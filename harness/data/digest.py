"""Digests: proof of what an epoch showed, as sums modulo 2^64 that ranks simply add up."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.data.augment import Ints

Words = NDArray[np.uint64]


class Digest:
    """Folds the images of an epoch, in any order and on any number of ranks, to two numbers."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.images = 0
        self.order = 0
        self.samples = 0

    def add(self, rows: Ints) -> None:
        """Fold the images that a batch really held (`Samples.rows`, [n, 12])."""
        words = rows.astype(np.uint64)
        mixed = np.zeros(len(words), dtype=np.uint64)
        for column in words.T:
            mixed = _mix(mixed ^ column)
        self.images += len(rows)
        self.order = (self.order + int(np.sum(mixed, dtype=np.uint64))) % 2**64
        self.samples = (self.samples + digest_of(rows[:, 1])) % 2**64

    def go_on(self, words: Ints) -> None:
        """Take up where `words` were taken."""
        self.images, self.order, self.samples = words.view(np.uint64).tolist()

    def words(self) -> Ints:
        """[images, order, samples] as int64, to be summed over ranks (the sum wraps)."""
        sums = np.array([self.images, self.order, self.samples], dtype=np.uint64)
        return sums.view(np.int64)


def digest_of(ids: Ints) -> int:
    """Order-independent digest of a set of sample ids."""
    return int(np.sum(_mix(ids.astype(np.uint64)), dtype=np.uint64))


def hexadecimal(word: int) -> str:
    """A digest, also one that int64 shows as negative, as 16 hex digits."""
    return f"{word % 2**64:016x}"


def _mix(x: Words) -> Words:
    """SplitMix64 (Steele et al. 2014): every bit of the input moves every bit of the output."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
