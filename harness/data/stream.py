"""Stream: which samples, in which order, cropped and flipped how. Pure functions, numpy only.

Everything is a function of (seed, epoch, position in the global epoch): no state, nothing to save.
Randomness is numpy's counter-based Philox, one key for each (seed, epoch, purpose), advanced to the
sample's position, so a rank computes only its own slice. Only raw words and float64 `random` are
drawn: a sample then owns a fixed number of words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.augment import WORDS, Floats, Ints, Law

PADDING = -1
"""Label of the images that fill up the last validation batch: they are never counted."""

_PURPOSES = {"order": 0, "augment": 1, "colour": 2, "hold out": 3}
_WORDS_PER_BLOCK = 4  # Philox's counter, and so `advance`, counts blocks of four 64-bit words


@dataclass(frozen=True)
class Samples:
    """A contiguous piece of an epoch: which images, and the geometry of each.

    An image is made by decoding `window` (x, y, w, h in source pixels), resizing it to `resized`
    (w, h), cutting the output's square at `cut` (x, y; black outside), and mirroring where `flip`.
    Where the law says so, `colour` is then added to R, G and B (laws.COLOUR_UNITS to a full one).
    All arrays have one row per image.
    """

    positions: Ints
    ids: Ints
    labels: Ints
    window: Ints
    resized: Ints
    cut: Ints
    flip: Ints
    colour: Ints | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self) -> Ints:
        """All of it as one table [n, 12], or with colour [n, 15], which travels with the batch."""
        columns = (self.positions[:, None], self.ids[:, None], self.labels[:, None], self.window,
                   self.resized, self.cut, self.flip[:, None])  # fmt: skip
        colour = () if self.colour is None else (self.colour,)
        return np.concatenate((*columns, *colour), axis=1)

    @staticmethod
    def from_rows(rows: Ints) -> Samples:
        """The inverse of `rows`."""
        return Samples(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3:7], rows[:, 7:9],
                       rows[:, 9:11], rows[:, 11],
                       rows[:, 12:15] if rows.shape[1] > 12 else None)  # fmt: skip


def draws(seed: int, epoch: int, purpose: str, first: int, count: int, words: int) -> Floats:
    """Uniform float64 words [count, words] of the samples at positions first, first + 1, ...

    `words` must be a multiple of 4. Always from a fresh generator: after a partial draw `advance`
    would count from the middle of a block.
    """
    bits = _philox(seed, epoch, purpose)
    bits.advance(first * words // _WORDS_PER_BLOCK)
    return np.random.Generator(bits).random((count, words))


@lru_cache(maxsize=2)
def order(seed: int, epoch: int, size: int) -> Ints:
    """One permutation of the dataset for an epoch: sample id at each position [size].

    By a stable sort of raw words rather than `Generator.permutation`, whose bits numpy may change.
    """
    words = _philox(seed, epoch, "order").random_raw(size)
    ids = np.argsort(words, kind="stable")
    ids.setflags(write=False)
    return ids


def held_out(size: int, count: int) -> tuple[Ints, Ints]:
    """Ids of a dataset that stay for training, and `count` that are held out; both rise.

    The same for every run, whatever its seed: runs are compared on the same images.
    """
    shuffled = np.argsort(_philox(0, 0, "hold out").random_raw(size), kind="stable")
    return np.sort(shuffled[count:]), np.sort(shuffled[:count])


@dataclass(frozen=True)
class Stream:
    """The samples of a dataset under a law, as every rank computes them for itself."""

    seed: int
    labels: NDArray[Any]
    width: NDArray[Any]
    height: NDArray[Any]
    law: Law = field(repr=False)

    def shuffled(self, epoch: int, first: int, count: int) -> Samples:
        """Positions first ... first + count of the shuffled epoch."""
        ids = order(self.seed, epoch, len(self.labels))[first : first + count]
        u = draws(self.seed, epoch, "augment", first, count, WORDS)
        colour = None
        if self.law.colour is not None:
            colour = self.law.colour(draws(self.seed, epoch, "colour", first, count, 4))
        return self._samples(np.arange(first, first + count), ids, u, colour)

    def in_order(self, first: int, count: int) -> Samples:
        """Positions first ... first + count unshuffled; those past the end are padding.

        A law of several views gives them one after the other, image by image.
        """
        positions = np.arange(first, first + count)
        real = positions < len(self.labels)
        samples = self._samples(positions, np.where(real, positions, 0), np.zeros((count, WORDS)))
        samples.labels[~real.repeat(self.law.views)] = PADDING
        return samples

    def _samples(
        self, positions: Ints, ids: Ints, u: Floats, colour: Ints | None = None
    ) -> Samples:
        width, height = self.width[ids].astype(np.int64), self.height[ids].astype(np.int64)
        geometry, views = self.law.of(u, width, height), self.law.views
        labels = self.labels[ids].astype(np.int64)
        return Samples(positions.repeat(views), ids.repeat(views), labels.repeat(views),
                       geometry.window, geometry.resized, geometry.cut, geometry.flip,
                       colour)  # fmt: skip


@dataclass(frozen=True)
class Split:
    """How a global batch is cut: ranks take contiguous slices, cut into micro-batches."""

    global_batch: int
    local_batch: int
    accumulate: int
    world_size: int

    def first(self, step: int, rank: int, micro: int) -> int:
        """Position of the first image of a micro-batch within the epoch."""
        in_step = rank * self.accumulate + micro
        return step * self.global_batch + in_step * self.local_batch


def train_samples(
    stream: Stream, split: Split, rank: int, *, epoch: int, step: int, epochs: int
) -> Iterator[Samples]:
    """A rank's micro-batches from (epoch, step) to the end of training, without ragged tails."""
    steps_per_epoch = len(stream.labels) // split.global_batch
    for each_epoch in range(epoch, epochs):
        for each_step in range(step if each_epoch == epoch else 0, steps_per_epoch):
            for micro in range(split.accumulate):
                first = split.first(each_step, rank, micro)
                yield stream.shuffled(each_epoch, first, split.local_batch)


def eval_samples(stream: Stream, local_batch: int, rank: int, world_size: int) -> Iterator[Samples]:
    """A rank's batches of validation: equally many on each rank, filled up with padding."""
    batches = -(-len(stream.labels) // (local_batch * world_size))
    for batch in range(rank * batches, (rank + 1) * batches):
        yield stream.in_order(batch * local_batch, local_batch)


def _philox(seed: int, epoch: int, purpose: str) -> np.random.Philox:
    key = np.array([seed, epoch << 8 | _PURPOSES[purpose]], dtype=np.uint64)
    return np.random.Philox(key=key)
