"""Stream: the order of the samples and the augmentation of each. Pure functions, numpy only.

Everything is a function of (seed, epoch, position in the global epoch): there is no state to save.
Random numbers come from numpy's counter-based Philox, with one key per (seed, epoch, purpose),
advanced to the sample's position, so that a rank computes only its own slice. Only `random_raw` and
float64 `random` are used, as they take a fixed number of 64-bit words per sample. Digests of the
images of an epoch are sums modulo 2^64, so that those of several ranks can be added.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.augment import WORDS, Augmentation, Floats, Ints

PADDING = -1  # label of the images that pad the last validation batch; they are never counted

_PURPOSES = {"order": 0, "augment": 1, "color": 2, "hold out": 3}
_WORDS_PER_BLOCK = 4  # Philox's `advance` counts blocks of four 64-bit words


@dataclass(frozen=True)
class Samples:
    """A contiguous piece of an epoch: the ids of its images, and the geometry of each.

    All arrays are int64 with one row per image. A loader decodes `window`, resizes it to `resized`,
    crops at `cut`, and mirrors as `flip` says: see `Geometry`. Then `color` is added to R, G and B.
    """

    positions: Ints
    ids: Ints
    labels: Ints
    window: Ints
    resized: Ints
    cut: Ints
    flip: Ints
    color: Ints | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self) -> Ints:
        """Return one table of all columns: [n, 12], or [n, 15] with color. Batches carry it."""
        columns = [getattr(self, name) for name in _WIDTHS]
        tables = [x.reshape(len(self), -1) for x in columns if x is not None]
        return np.concatenate(tables, axis=1)

    @staticmethod
    def from_rows(rows: Ints) -> Samples:
        """Return the samples of a table: the inverse of `rows`."""
        columns, end = {}, 0
        for name, width in _WIDTHS.items():
            begin, end = end, end + width
            if end <= rows.shape[1]:
                columns[name] = rows[:, begin] if width == 1 else rows[:, begin:end]
        return Samples(**columns)


_WIDTHS = {"positions": 1, "ids": 1, "labels": 1, "window": 4, "resized": 2, "cut": 2, "flip": 1,
           "color": 3}  # fmt: skip
"""Columns of a table, in their order; `color` may be missing."""


def blank_rows(images: int) -> Ints:
    """Return a table of zeros with all columns, as an example."""
    return np.zeros((images, sum(_WIDTHS.values())), dtype=np.int64)


def draws(seed: int, epoch: int, purpose: str, first: int, count: int, words: int) -> Floats:
    """Return uniform float64 numbers [count, words] for positions first, first + 1, ...

    `words` per sample must be a multiple of 4. The generator is always a fresh one: after a partial
    draw, `advance` would count from the middle of a block.
    """
    bits = _philox(seed, epoch, purpose)
    bits.advance(first * words // _WORDS_PER_BLOCK)
    return np.random.Generator(bits).random((count, words))


@lru_cache(maxsize=2)
def order(seed: int, epoch: int, size: int) -> Ints:
    """Return the permutation of the dataset for an epoch: the sample id at each position [size].

    It is a stable sort of raw random words: numpy may change the bits of `Generator.permutation`.
    """
    ids = np.argsort(_philox(seed, epoch, "order").random_raw(size), kind="stable")
    ids.setflags(write=False)
    return ids


def held_out(size: int, count: int) -> tuple[Ints, Ints]:
    """Return the ids that stay for training and the `count` that are held out, both sorted.

    They do not depend on the run's seed, so that runs are compared on the same images.
    """
    shuffled = np.argsort(_philox(0, 0, "hold out").random_raw(size), kind="stable")
    return np.sort(shuffled[count:]), np.sort(shuffled[:count])


@dataclass(frozen=True)
class Stream:
    """The samples of a dataset under an augmentation; every rank computes its own."""

    seed: int
    labels: NDArray[Any]
    width: NDArray[Any]
    height: NDArray[Any]
    law: Augmentation = field(repr=False)

    def shuffled(self, epoch: int, first: int, count: int) -> Samples:
        """Return the samples at positions [first, first + count) of the shuffled epoch."""
        ids = order(self.seed, epoch, len(self.labels))[first : first + count]
        u = draws(self.seed, epoch, "augment", first, count, WORDS)
        color = self.law.color and self.law.color(draws(self.seed, epoch, "color", first, count, 4))
        return self._samples(np.arange(first, first + count), ids, u, color)

    def in_order(self, first: int, count: int) -> Samples:
        """Return positions [first, first + count) unshuffled; those past the end are padding.

        An augmentation with several views yields all views of an image one after the other.
        """
        positions = np.arange(first, first + count)
        real = positions < len(self.labels)
        samples = self._samples(positions, np.where(real, positions, 0), np.zeros((count, WORDS)))
        samples.labels[~real.repeat(self.law.views)] = PADDING
        return samples

    def _samples(self, positions: Ints, ids: Ints, u: Floats, color: Ints | None = None) -> Samples:
        width, height = self.width[ids].astype(np.int64), self.height[ids].astype(np.int64)
        geometry, labels = self.law.of(u, width, height), self.labels[ids].astype(np.int64)
        positions, ids, labels = (x.repeat(self.law.views) for x in (positions, ids, labels))
        return Samples(positions, ids, labels, **vars(geometry), color=color)


@dataclass(frozen=True)
class Split:
    """How a global batch is split: contiguous slices per rank, each split into micro-batches."""

    global_batch: int
    local_batch: int
    accumulate: int
    world_size: int

    def first(self, step: int, rank: int, micro: int) -> int:
        """Return the position, within the epoch, of the first image of a micro-batch."""
        return step * self.global_batch + (rank * self.accumulate + micro) * self.local_batch


def train_samples(
    stream: Stream, split: Split, rank: int, *, epoch: int, step: int, epochs: int
) -> Iterator[Samples]:
    """Yield a rank's micro-batches from (epoch, step) to the end of training.

    The images at the end of an epoch that do not fill a global batch are dropped.
    """
    steps_per_epoch = len(stream.labels) // split.global_batch
    for current_epoch in range(epoch, epochs):
        for current_step in range(step if current_epoch == epoch else 0, steps_per_epoch):
            for micro in range(split.accumulate):
                first = split.first(current_step, rank, micro)
                yield stream.shuffled(current_epoch, first, split.local_batch)


def eval_samples(stream: Stream, local_batch: int, rank: int, world_size: int) -> Iterator[Samples]:
    """Yield a rank's validation batches: the same number on each rank, padded where needed."""
    batches = -(-len(stream.labels) // (local_batch * world_size))
    for batch in range(rank * batches, (rank + 1) * batches):
        yield stream.in_order(batch * local_batch, local_batch)


def _philox(seed: int, epoch: int, purpose: str) -> np.random.Philox:
    key = np.array([seed, epoch << 8 | _PURPOSES[purpose]], dtype=np.uint64)
    return np.random.Philox(key=key)


class Digest:
    """The digest of an epoch's images: `order` of their rows, `samples` of their ids alone."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Reset for a new epoch."""
        self.images = self.order = self.samples = 0

    def add(self, rows: Ints) -> None:
        """Add the images of a batch, without padding (`Samples.rows`, [n, 12])."""
        hashes = np.zeros(len(rows), dtype=np.uint64)
        for column in rows.astype(np.uint64).T:
            hashes = _mix(hashes ^ column)
        self.images += len(rows)
        self.order = (self.order + int(np.sum(hashes, dtype=np.uint64))) % 2**64
        self.samples = (self.samples + digest_of(Samples.from_rows(rows).ids)) % 2**64

    def load_state_dict(self, words: Ints) -> None:
        """Restore what `words()` returned."""
        self.images, self.order, self.samples = words.view(np.uint64).tolist()

    def words(self) -> Ints:
        """Return [images, order, samples] as int64, to be summed over ranks (the sum wraps)."""
        return np.array([self.images, self.order, self.samples], dtype=np.uint64).view(np.int64)


def digest_of(ids: Ints) -> int:
    """Return the order-independent digest of a set of sample ids."""
    return int(np.sum(_mix(ids.astype(np.uint64)), dtype=np.uint64))


def hexadecimal(word: int) -> str:
    """Return a digest as 16 hex digits; a negative int64 is read as unsigned."""
    return f"{word % 2**64:016x}"


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 (Steele et al. 2014): every bit of the input moves every bit of the output."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
