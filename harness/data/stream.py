"""Stream: which samples, in which order, cropped and flipped how. Pure functions, numpy only.

Everything is a function of (seed, epoch, position in the global epoch): no state, nothing to save.
Randomness is numpy's counter-based Philox, one key for each (seed, epoch, purpose), advanced to the
sample's position, so a rank computes only its own slice. Only raw words and float64 `random` are
drawn: a sample then owns a fixed number of words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

PADDING = -1
"""Label of the images that fill up the last validation batch: they are never counted."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_PURPOSES = {"order": 0, "augment": 1}
_WORDS_PER_BLOCK = 4  # Philox's counter, and so `advance`, counts blocks of four 64-bit words
_TRIES = 10
_WORDS = 24  # of one sample: ten tries of (area, ratio), position x and y, flip, one spare


@dataclass(frozen=True)
class Samples:
    """A contiguous piece of an epoch: which images, and the geometry of each.

    An image is made by decoding `window` (x, y, w, h in source pixels), resizing it to `resized`
    (w, h), cutting the output's square at `cut` (x, y; black outside), and mirroring where `flip`.
    All arrays have one row per image.
    """

    positions: Ints
    ids: Ints
    labels: Ints
    window: Ints
    resized: Ints
    cut: Ints
    flip: Ints

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self) -> Ints:
        """All of it as one table [n, 12], which travels with the batch."""
        columns = (self.positions[:, None], self.ids[:, None], self.labels[:, None], self.window,
                   self.resized, self.cut, self.flip[:, None])  # fmt: skip
        return np.concatenate(columns, axis=1)

    @staticmethod
    def from_rows(rows: Ints) -> Samples:
        """The inverse of `rows`."""
        return Samples(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3:7], rows[:, 7:9],
                       rows[:, 9:11], rows[:, 11])  # fmt: skip


@dataclass(frozen=True)
class Geometry:
    """Windows, sizes, cuts and flips of n images."""

    window: Ints
    resized: Ints
    cut: Ints
    flip: Ints


@dataclass(frozen=True)
class Steps:
    """Which steps the images need under a law of augmentation."""

    window: bool = False  # decode a window only, else the whole image
    resize: bool = False
    cut: bool = False  # cut the output's square out of it, padding where it leaves the image


@dataclass(frozen=True)
class Law:
    """A law of augmentation: (uniform words [n, 24], widths [n], heights [n]) -> Geometry."""

    of: Callable[[Floats, Ints, Ints], Geometry]
    steps: Steps


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


def resized_crop(
    area: tuple[float, float], ratio: tuple[float, float], out_px: int, *, flip: bool
) -> Law:
    """torchvision's RandomResizedCrop: ten tries of (area, log ratio), else the centre."""

    def law(u: Floats, width: Ints, height: Ints) -> Geometry:
        tries = u[:, : 2 * _TRIES].reshape(-1, _TRIES, 2)
        wanted = (width * height)[:, None] * (area[0] + (area[1] - area[0]) * tries[..., 0])
        low, high = np.log(ratio[0]), np.log(ratio[1])
        aspect = np.exp(low + (high - low) * tries[..., 1])
        w = np.rint(np.sqrt(wanted * aspect)).astype(np.int64)
        h = np.rint(np.sqrt(wanted / aspect)).astype(np.int64)
        fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
        first = np.argmax(fits, axis=1)
        each = np.arange(len(u))
        w_fallback, h_fallback = _widest(width, height, ratio)
        found = fits[each, first]
        w = np.where(found, w[each, first], w_fallback)
        h = np.where(found, h[each, first], h_fallback)
        x = np.where(found, _uniform_int(u[:, 20], width - w + 1), (width - w) // 2)
        y = np.where(found, _uniform_int(u[:, 21], height - h + 1), (height - h) // 2)
        side = np.full((len(u), 2), out_px, dtype=np.int64)
        window = np.stack([x, y, w, h], axis=1)
        return Geometry(window, side, np.zeros_like(side), _coin(u[:, 22], flip))

    return Law(law, Steps(window=True, resize=True))


def pad_crop(pad_px: int, out_px: int, *, flip: bool) -> Law:
    """The CIFAR papers' law: zeros around the image, then a random square (He et al. 2015, 4.2)."""

    def law(u: Floats, width: Ints, height: Ints) -> Geometry:
        x = _uniform_int(u[:, 20], width + 2 * pad_px - out_px + 1) - pad_px
        y = _uniform_int(u[:, 21], height + 2 * pad_px - out_px + 1) - pad_px
        size = np.stack([width, height], axis=1)
        cut = np.stack([x, y], axis=1)
        return Geometry(_whole(width, height), size, cut, _coin(u[:, 22], flip))

    return Law(law, Steps(cut=True))


def centre_crop(resize_px: int, out_px: int) -> Law:
    """torchvision's Resize(resize_px), unless 0, then CenterCrop(out_px): validation."""

    def law(u: Floats, width: Ints, height: Ints) -> Geometry:
        size = np.stack([width, height], axis=1)
        if resize_px:
            shorter = size.min(axis=1, keepdims=True)
            size = np.where(size == shorter, resize_px, size * resize_px // shorter)
        spare = size - out_px
        cut = np.where(spare >= 0, np.rint(spare / 2).astype(np.int64), -(-spare // 2))
        return Geometry(_whole(width, height), size, cut, np.zeros(len(width), dtype=np.int64))

    return Law(law, Steps(resize=resize_px > 0, cut=True))


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
        u = draws(self.seed, epoch, "augment", first, count, _WORDS)
        return self._samples(np.arange(first, first + count), ids, u)

    def in_order(self, first: int, count: int) -> Samples:
        """Positions first ... first + count unshuffled; those past the end are padding."""
        positions = np.arange(first, first + count)
        real = positions < len(self.labels)
        samples = self._samples(positions, np.where(real, positions, 0), np.zeros((count, _WORDS)))
        samples.labels[~real] = PADDING
        return samples

    def _samples(self, positions: Ints, ids: Ints, u: Floats) -> Samples:
        width, height = self.width[ids].astype(np.int64), self.height[ids].astype(np.int64)
        geometry = self.law.of(u, width, height)
        labels = self.labels[ids].astype(np.int64)
        return Samples(positions, ids, labels, geometry.window, geometry.resized, geometry.cut,
                       geometry.flip)  # fmt: skip


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


def _uniform_int(u: Floats, bound: Ints) -> Ints:
    return np.minimum((u * bound).astype(np.int64), bound - 1)


def _coin(u: Floats, flip: bool) -> Ints:
    return ((u < 0.5) & flip).astype(np.int64)


def _whole(width: Ints, height: Ints) -> Ints:
    zero = np.zeros_like(width)
    return np.stack([zero, zero, width, height], axis=1)


def _widest(width: Ints, height: Ints, ratio: tuple[float, float]) -> tuple[Ints, Ints]:
    aspect = width / height
    w = np.where(aspect > ratio[1], np.rint(height * ratio[1]).astype(np.int64), width)
    h = np.where(aspect < ratio[0], np.rint(width / ratio[0]).astype(np.int64), height)
    return w, h
