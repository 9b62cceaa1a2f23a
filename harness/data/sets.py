"""The training and validation set that a config names: their files, stream and augmentation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock

from harness import config as cfg
from harness.data import augment, stream
from harness.data.augment import Augmentation
from harness.data.dataset import Dataset, open_folder, same_classes
from harness.data.index import cache_folder
from harness.data.stream import Stream
from harness.errors import BadInput

if TYPE_CHECKING:
    from harness.data.mean import MeanImage

DEMO_VERSION = 1  # increased when the demo set is drawn differently


@dataclass(frozen=True, eq=False)
class Images:
    """A training or validation set: its stream, and its dataset (None if synthetic)."""

    stream: Stream
    classes: int
    dataset: Dataset | None

    def __len__(self) -> int:
        return len(self.stream.labels)

    @property
    def digest(self) -> str:
        """The digest of names, sizes and labels."""
        return self.dataset.digest if self.dataset else "synthetic"


def open_sets(config: cfg.Config) -> tuple[Images | None, Images]:
    """Return the training set (None if weights are only evaluated) and the validation set.

    Raises:
        BadInput: a folder cannot be trained on; the message names it and says what to do.
    """
    data, seed = config.data, config.run.seed
    training = config.run.mode == "train"
    if data.source == "synthetic":
        if training and data.synthetic_images < config.train.global_batch:
            raise BadInput(
                f"data.synthetic_images: {data.synthetic_images:,} images are fewer than one "
                f"train.global_batch of {config.train.global_batch:,}"
            )
        val_images = _synthetic(data, data.synthetic_val_images, seed, augment.eval_law(config))
        if not training:
            return None, val_images
        law = augment.train_law(data.model_copy(update={"augment": "none", "eval_resize_px": 0}))
        return _synthetic(data, data.synthetic_images, seed, law), val_images
    train_part, val = _open_datasets(data)
    val_images = Images(_stream(val, augment.eval_law(config), seed), len(val.classes), val)
    if data.mean_image:
        from harness.data.mean import check_one_size

        for part in filter(None, (train_part, val)):
            check_one_size(part, data.image_px)
    if not training:
        return None, val_images
    assert train_part is not None
    classes = same_classes(train_part, val)
    if len(train_part) < config.train.global_batch:
        raise BadInput(
            f"{train_part.root}: {len(train_part):,} images are fewer than one train.global_batch "
            f"of {config.train.global_batch:,}; lower it"
        )
    _check_crops_fit(train_part, data)
    train_images = Images(_stream(train_part, augment.train_law(data), seed), classes, train_part)
    return train_images, replace(val_images, classes=classes)


def mean_of_training(data: cfg.Data) -> MeanImage | None:
    """Return the mean image of the training set, or None if `data.mean_image` is false."""
    if not data.mean_image:
        return None
    from harness.data.mean import mean_image

    train_part, _ = _open_datasets(data)
    assert train_part is not None, "rules.py asks for data.train"
    return mean_image(train_part, data.image_px)


def _open_datasets(data: cfg.Data) -> tuple[Dataset | None, Dataset]:
    """Return the training images, if any, and the validation images: a folder's, or held out."""
    train = _open(data.train, "train") if data.train else None
    if not data.holdout_images:
        assert data.val is not None
        return train, _open(data.val, "val")
    assert train is not None
    if data.holdout_images >= len(train):
        raise BadInput(
            f"data.holdout_images: {data.holdout_images:,} of the {len(train):,} images in "
            f"{train.root} leave none to train on; lower it"
        )
    kept, held_out = stream.held_out(len(train), data.holdout_images)
    return train.part(kept, "without those held out"), train.part(held_out, "held out")


def protocol(config: cfg.Config) -> str:
    """Return a description of how validation images are cropped, for results."""
    px, resize_px = config.data.image_px, config.data.eval_resize_px
    crops = f"centre crop {px} px, single view"
    if config.eval.views == "ten_crop":
        crops = f"10 crops {px} px (corners, centre, mirrored), mean of their probabilities"
    return f"shorter side to {resize_px} px, {crops}" if resize_px else crops


def _open(folder: str, split: str) -> Dataset:
    return open_folder(demo(split) if folder == "demo" else Path(folder))


def demo_folder() -> Path:
    """Return the folder of the demo set, which may not have been drawn yet."""
    return cache_folder() / f"demo-v{DEMO_VERSION}"


def demo(split: str) -> Path:
    """Return the folder of the demo set's `train` or `val`; it is drawn on first use."""
    root = demo_folder()
    with FileLock(root.with_suffix(".lock")):
        if not root.is_dir():
            from harness.data.demo import draw

            draw(root)
    return root / split


def _stream(dataset: Dataset, law: Augmentation, seed: int) -> Stream:
    return Stream(seed, dataset.labels, dataset.width, dataset.height, law)


def _synthetic(data: cfg.Data, images: int, seed: int, law: Augmentation) -> Images:
    labels = np.arange(images, dtype=np.int32) % data.synthetic_classes
    side = np.full(images, data.image_px, dtype=np.int32)
    return Images(Stream(seed, labels, side, side, law), data.synthetic_classes, None)


def _check_crops_fit(dataset: Dataset, data: cfg.Data) -> None:
    shorter = np.minimum(dataset.width, dataset.height)
    smallest = int(np.argmin(shorter))
    if data.augment == "pad_crop" and shorter[smallest] + 2 * data.pad_px < data.image_px:
        raise BadInput(
            f"{dataset.where(smallest)}: {shorter[smallest]} px and data.pad_px {data.pad_px} on "
            f"each side are less than data.image_px {data.image_px}; use data.augment resized_crop"
        )
