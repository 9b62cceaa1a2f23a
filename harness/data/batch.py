"""Batch: the contract between every data source and the train loop."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from harness.data.augment import Ints
from harness.data.stream import Samples


@dataclass(frozen=True)
class Batch:
    """One micro-batch of static shape."""

    images: torch.Tensor  # uint8 [n, 3, px, px] on the device, channels_last: a view of NHWC
    labels: torch.Tensor  # int64 [n] on the device; `stream.PADDING` where validation is padded
    rows: Ints  # int64 [n, 12], or [n, 15] with color, on the host: `stream.Samples.rows`

    @property
    def samples(self) -> Samples:
        """The rows' columns by name."""
        return Samples.from_rows(self.rows)


class Batches(Protocol):
    """A finite or endless iterator of batches that owns threads or processes."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def close(self) -> None:
        """Stop the threads or processes."""


def as_nchw(images: torch.Tensor) -> torch.Tensor:
    """Return [n, h, w, 3] as [n, 3, h, w] in channels_last: a view, without a copy."""
    return images.permute(0, 3, 1, 2)


def started(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Make the first batch now: the loader's start counts as start-up, not as a slow step."""
    return itertools.chain([next(batches)], batches)
