"""Batches from torch's DataLoader: the same stream and crops as DALI's, decoded by Pillow.

This is the baseline for DALI, and the way to run where DALI has no wheel.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils import data

from harness.data import picture
from harness.data.augment import Ints, Steps
from harness.data.batch import Batch, as_nchw
from harness.data.dataset import Dataset, undecodable
from harness.data.stream import Samples
from harness.errors import MORE_SHM, RunFailed
from harness.system.process import leave_to_parent

_Item = tuple[NDArray[np.uint8], Ints] | str  # pixels and row, or an error about the image


class TorchBatches:
    """An iterator of a stream's batches from a torch DataLoader.

    Arguments and errors are those of `dali.DaliBatches`; `threads` are worker processes here.
    """

    def __init__(
        self,
        dataset: Dataset,
        samples: Iterator[Samples],
        steps: Steps,
        *,
        out_px: int,
        device: torch.device,
        threads: int,
        prefetch: int,
    ) -> None:
        self._device = device
        loader: data.DataLoader[_Item] = data.DataLoader(
            _Images(dataset, steps, out_px),
            batch_sampler=(batch.rows() for batch in samples),  # type: ignore[misc]
            num_workers=threads,
            # Without it, from Python 3.14 on, the index of all images is sent to each worker.
            multiprocessing_context="fork" if threads else None,
            prefetch_factor=prefetch if threads else None,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
            worker_init_fn=lambda _: leave_to_parent(),
        )
        try:
            self._batches = iter(loader)
        except OSError as error:
            raise RunFailed(
                f"data.threads: no {threads} workers: {error.strerror}; {MORE_SHM}"
            ) from error

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        if isinstance(batch, str):
            raise RunFailed(batch)
        images, rows = batch
        labels = torch.from_numpy(Samples.from_rows(rows).labels)
        images, labels = (x.to(self._device, non_blocking=True) for x in (images, labels))
        return Batch(as_nchw(images), labels, rows)

    def close(self) -> None:
        """Stop the worker processes."""
        del self._batches


class _Images(data.Dataset[_Item]):
    """A map from a row of `Samples.rows` to the image [px, px, 3] and the row."""

    def __init__(self, dataset: Dataset, steps: Steps, out_px: int) -> None:
        self._dataset, self._steps, self._out_px = dataset, steps, out_px

    def __getitem__(self, row: Ints) -> _Item:
        one = Samples.from_rows(row[None])
        try:
            image = decoded(self._dataset, int(one.ids[0]))
        except RunFailed as error:
            # Not raised: the DataLoader would wrap it in the traceback of its worker.
            return str(error)
        if self._steps.window:
            x, y, w, h = one.window[0].tolist()
            image = image.crop((x, y, x + w, y + h))
        if self._steps.resize:
            image = image.resize(tuple(one.resized[0].tolist()), Image.Resampling.BILINEAR)
        if self._steps.cut:
            x, y = one.cut[0].tolist()
            image = image.crop((x, y, x + self._out_px, y + self._out_px))
        if one.flip[0]:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(image), row


def decoded(dataset: Dataset, sample: int) -> Image.Image:
    """Return an image as Pillow decodes it, in RGB; raise RunFailed if it does not decode."""
    try:
        return picture.decoded(dataset.content(sample)).convert("RGB")
    except ValueError as error:
        raise RunFailed(undecodable(dataset, sample, error)) from None


def _collate(items: list[_Item]) -> tuple[torch.Tensor, Ints] | str:
    for item in items:
        if isinstance(item, str):
            return item
    images, rows = zip(*items, strict=True)
    batch = torch.from_numpy(np.stack(images))
    if data.get_worker_info() is not None:
        try:
            # Not left to the thread that sends it: there an error is printed, and the batch lost.
            batch.share_memory_()
        except RuntimeError as error:
            return f"data.source: torchvision: {str(error).splitlines()[0]}; {MORE_SHM}"
    return batch, np.stack(rows)
