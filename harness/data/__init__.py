"""Data: from a config to batches, whichever source makes them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness import config as cfg
from harness.data import demo, stream
from harness.data.batch import Batch, Batches
from harness.data.dataset import Dataset, allow_open_files, open_folder, same_classes
from harness.data.stream import Law, Samples, Split, Stream
from harness.data.synthetic import SyntheticBatches
from harness.errors import BadInput
from harness.world import World

__all__ = ["Batch", "Batches", "Images", "Loader", "open_sets"]


@dataclass(frozen=True, eq=False)
class Images:
    """A training or validation set: its stream, and its files unless they are synthetic."""

    stream: Stream
    classes: int
    dataset: Dataset | None

    def __len__(self) -> int:
        return len(self.stream.labels)

    @property
    def digest(self) -> str:
        """Of names, sizes and labels."""
        return self.dataset.digest if self.dataset else "synthetic"


def open_sets(config: cfg.Config) -> tuple[Images | None, Images]:
    """The training set (none where weights are only scored) and the validation set.

    Raises:
        BadInput: a folder that cannot be trained on; names it and what to do.
    """
    data, seed = config.data, config.run.seed
    training = config.run.mode == "train"
    if data.source == "synthetic":
        if training and data.synthetic_images < config.train.global_batch:
            raise BadInput(
                f"data.synthetic_images: {data.synthetic_images:,} images are fewer than one "
                f"train.global_batch of {config.train.global_batch:,}"
            )
        train = _synthetic(data, data.synthetic_images, seed) if training else None
        return train, _synthetic(data, data.synthetic_val_images, seed)
    assert data.val is not None
    val = _open(data.val, "val")
    val_images = Images(_stream(val, eval_law(data), seed), len(val.classes), val)
    if not training:
        return None, val_images
    assert data.train is not None
    train_set = _open(data.train, "train")
    same_classes(train_set, val)
    if len(train_set) < config.train.global_batch:
        raise BadInput(
            f"{train_set.root}: {len(train_set):,} images are fewer than one train.global_batch "
            f"of {config.train.global_batch:,}; lower it"
        )
    _check_pad_crop(train_set, data)
    train_images = Images(_stream(train_set, train_law(data), seed), len(val.classes), train_set)
    return train_images, val_images


def train_law(data: cfg.Data) -> Law:
    """The law of augmentation that the config names."""
    if data.augment == "resized_crop":
        return stream.resized_crop(data.crop_area, data.crop_ratio, data.image_px, flip=data.flip)
    if data.augment == "pad_crop":
        return stream.pad_crop(data.pad_px, data.image_px, flip=data.flip)
    return eval_law(data)


def eval_law(data: cfg.Data) -> Law:
    """Resize the shorter side, cut the centre."""
    return stream.centre_crop(data.eval_resize_px, data.image_px)


def protocol(data: cfg.Data) -> str:
    """How validation images are shown, in words."""
    resize = f"shorter side to {data.eval_resize_px} px, " if data.eval_resize_px else ""
    return f"{resize}centre crop {data.image_px} px, single view"


@dataclass(frozen=True)
class Loader:
    """How batches are made on this rank: the resolved settings, one for both sets."""

    data: cfg.Data
    world: World
    decode: str
    threads: int

    @staticmethod
    def resolve(data: cfg.Data, world: World) -> Loader:
        """Settle `auto` and 0.

        Raises:
            BadInput: decoding on a GPU that is not there, DALI not installed.
        """
        if data.source == "dali" and not importlib.util.find_spec("nvidia.dali"):
            raise BadInput(
                "data.source: DALI is not installed here; install nvidia-dali-cuda120, or set "
                "--data.source torchvision"
            )
        if data.decode == "gpu" and not world.on_gpu:
            raise BadInput("data.decode: gpu was asked for, but this process has no GPU")
        allow_open_files()
        decode = data.decode
        if decode == "auto":
            decode = "gpu" if world.on_gpu and data.source == "dali" else "cpu"
        threads = data.threads or world.cores()
        return Loader(data, world, "none" if data.source == "synthetic" else decode, threads)

    def train(self, images: Images, split: Split, *, epoch: int, step: int, epochs: int) -> Batches:
        """This rank's micro-batches from (epoch, step) to the end of training."""
        samples = stream.train_samples(
            images.stream, split, self.world.rank, epoch=epoch, step=step, epochs=epochs
        )
        return self._batches(images, samples, split.local_batch)

    def eval(self, images: Images, local_batch: int) -> Batches:
        """This rank's batches of the validation set, again and again without end."""

        def endless() -> Iterator[Samples]:
            world = self.world
            while True:
                yield from stream.eval_samples(images.stream, local_batch, world.rank, world.size)

        return self._batches(images, endless(), local_batch)

    def _batches(self, images: Images, samples: Iterator[Samples], local_batch: int) -> Batches:
        steps, data, device = images.stream.law.steps, self.data, self.world.device
        common: dict[str, Any] = {"out_px": data.image_px, "device": device}
        if images.dataset is None:
            return SyntheticBatches(samples, local_batch=local_batch, **common)
        common |= {"threads": self.threads, "prefetch": data.prefetch_batches}
        if data.source == "torchvision":
            from harness.data.torch_loader import TorchBatches

            return TorchBatches(images.dataset, samples, steps, **common)
        # Imported here, since it takes a second and has no wheel on every system.
        from harness.data.pipeline import DaliBatches

        common |= {"local_batch": local_batch, "decode": self.decode, "read": data.read}
        return DaliBatches(images.dataset, samples, steps, **common)


def _open(folder: str, split: str) -> Dataset:
    return open_folder(demo.ensure(split) if folder == "demo" else Path(folder))


def _stream(dataset: Dataset, law: Law, seed: int) -> Stream:
    return Stream(seed, dataset.labels, dataset.width, dataset.height, law)


def _synthetic(data: cfg.Data, images: int, seed: int) -> Images:
    labels = np.arange(images, dtype=np.int32) % data.synthetic_classes
    side = np.full(images, data.image_px, dtype=np.int32)
    law = stream.centre_crop(0, data.image_px)
    return Images(Stream(seed, labels, side, side, law), data.synthetic_classes, None)


def _check_pad_crop(dataset: Dataset, data: cfg.Data) -> None:
    if data.augment != "pad_crop":
        return
    shorter = np.minimum(dataset.width, dataset.height)
    smallest = int(np.argmin(shorter))
    if shorter[smallest] + 2 * data.pad_px < data.image_px:
        raise BadInput(
            f"{dataset.path(smallest)}: {shorter[smallest]} px and data.pad_px {data.pad_px} on "
            f"each side are less than data.image_px {data.image_px}; use data.augment resized_crop"
        )
