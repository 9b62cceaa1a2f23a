"""The torchvision arm: the same stream and windows, decoded by Pillow in DataLoader workers.

The baseline that DALI is measured against, and the way to run where DALI has no wheel.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils import data

from harness.data.augment import Ints, Steps
from harness.data.batch import Batch, as_nchw
from harness.data.dataset import Dataset, undecodable
from harness.data.stream import Samples
from harness.errors import RunFailed
from harness.system.signals import leave_to_parent

_Item = tuple[NDArray[np.uint8], Ints] | str
"""Pixels and row, or what is wrong with the image."""


class TorchBatches:
    """Batches of a stream's samples from a torch DataLoader.

    Args and errors as `pipeline.DaliBatches`; `threads` are worker processes here.
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
            batch_sampler=(each.rows() for each in samples),  # type: ignore[misc]
            num_workers=threads,
            # Else, from Python 3.14 on, each worker would be sent the index of all images.
            multiprocessing_context="fork" if threads else None,
            prefetch_factor=prefetch if threads else None,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
            worker_init_fn=_begin_worker,
        )
        self._batches = iter(loader)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        made = next(self._batches)
        if isinstance(made, str):
            raise RunFailed(made)
        images, rows = made
        where = {"device": self._device, "non_blocking": True}
        images, labels = images.to(**where), rows[:, 2].to(**where)
        return Batch(images=as_nchw(images), labels=labels, rows=rows.numpy())

    def close(self) -> None:
        """Stop the worker processes."""
        del self._batches


def _begin_worker(number: int) -> None:
    leave_to_parent()


class _Images(data.Dataset[_Item]):
    """Indexed by a row of `Samples.rows`: the image as [px, px, 3], and the row."""

    def __init__(self, dataset: Dataset, steps: Steps, out_px: int) -> None:
        self._dataset, self._steps, self._out_px = dataset, steps, out_px

    def __getitem__(self, row: Ints) -> _Item:
        sample = int(row[1])
        try:
            with Image.open(BytesIO(self._dataset.content(sample))) as file:
                image = file.convert("RGB")
        except RunFailed as error:
            # Not raised: a DataLoader would wrap it into the traceback of its worker.
            return str(error)
        except (OSError, SyntaxError) as error:
            return undecodable(self._dataset, sample, error)
        return np.asarray(self._draw(image, Samples.from_rows(row[None]))), row

    def _draw(self, image: Image.Image, one: Samples) -> Image.Image:
        """Window, resize, cut and flip of one sample, in Pillow."""
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
        return image


def _collate(items: list[_Item]) -> tuple[torch.Tensor, torch.Tensor] | str:
    wrong = next((item for item in items if isinstance(item, str)), None)
    if wrong is not None:
        return wrong
    images, rows = zip(*items, strict=True)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(rows))
