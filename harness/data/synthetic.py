"""Synthetic batches: random pixels, generated once, to measure training without data loading."""

from collections.abc import Iterator

import torch

from harness.data.batch import Batch, as_nchw
from harness.data.stream import Samples


class SyntheticBatches:
    """Batches with the same random images each time; labels and rows come from the stream."""

    def __init__(
        self, samples: Iterator[Samples], *, local_batch: int, out_px: int, device: torch.device
    ) -> None:
        self._samples, self._device = samples, device
        generator = torch.Generator().manual_seed(0)
        shape = (local_batch, out_px, out_px, 3)
        pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        self._images = as_nchw(pixels.to(device))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        samples = next(self._samples)
        labels = torch.from_numpy(samples.labels).to(self._device, non_blocking=True)
        return Batch(images=self._images, labels=labels, rows=samples.rows())

    def close(self) -> None:
        """Do nothing: there are no threads."""
