"""Batches of a few laws of windows, by DALI and by Pillow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from trainings import here

from harness.data import augment
from harness.data.batch import Batch
from harness.data.dali import DaliBatches
from harness.data.dataset import Dataset, Read
from harness.data.stream import Augmentation, Samples, Stream
from harness.data.torch_loader import TorchBatches

CPU = torch.device("cpu")
PX = 64
RESIZED = augment.resized_crop((0.08, 1.0), (3 / 4, 4 / 3), PX, flip=True)
CENTRE = augment.center_crop(72, PX)
PADDED = augment.pad_crop(4, 32, flip=True)


def samples_of(
    dataset: Dataset, law: Augmentation, batch: int, epochs: int = 1
) -> Iterator[Samples]:
    images = Stream(0, dataset.labels, dataset.width, dataset.height, law)
    for epoch in range(epochs):
        for first in range(0, len(dataset) - batch + 1, batch):
            yield images.shuffled(epoch, first, batch)


def dali(
    dataset: Dataset, law: Augmentation, batch: int = 10, px: int = PX, *, depth: int = 2,
    read: Read = "mmap", samples: Iterator[Samples] | None = None, decode: str = "cpu",
    device: torch.device | None = None, ahead: int = 2,
) -> DaliBatches:  # fmt: skip
    return DaliBatches(
        dataset, samples or samples_of(dataset, law, batch), law.steps, local_batch=batch,
        out_px=px, device=device or here({}).device, decode=decode, read=read,
        read_ahead_batches=ahead, threads=2, prefetch=depth,
    )  # fmt: skip


def in_pillow(dataset: Dataset, law: Augmentation, batch: int = 10, px: int = PX) -> list[Batch]:
    arm = TorchBatches(
        dataset, samples_of(dataset, law, batch), law.steps, out_px=px, device=CPU, threads=0,
        prefetch=2,
    )  # fmt: skip
    return list(arm)


def pixels(batches: Any) -> np.ndarray:
    return np.concatenate([batch.images.cpu().numpy() for batch in batches])
