"""torchvision's data sets that are pixels, not files: they become lossless PNG."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.data.prepare.sources.source import Source
from harness.errors import BadInput

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

FOLDERS = {"cifar-10-batches-py": "CIFAR10", "cifar-100-python": "CIFAR100"}
"""What torchvision's downloader leaves, and its name for the set."""


def find(root: Path) -> list[Source]:
    """Both splits of CIFAR-10 or CIFAR-100.

    Raises:
        BadInput: a file of it is missing or damaged.
    """
    for folder, name in FOLDERS.items():
        if (root / folder).is_dir():
            # Only here, since it takes seconds to import torch.
            from torchvision import datasets

            kind: type[CIFAR10] = getattr(datasets, name)
            return [_split(root, kind, train=train) for train in (True, False)]
    return []


def _split(root: Path, kind: type[CIFAR10], *, train: bool) -> Source:
    try:
        data = kind(str(root), train=train)
    except RuntimeError as error:
        raise BadInput(f"{root}: {str(error).split('.')[0]}; download {kind.__name__} again"
                       ) from None  # fmt: skip
    # As in a tree: by the sorted names of the classes.
    classes = sorted(data.classes)
    label_of = [classes.index(name) for name in data.classes]
    ordered = sorted(
        (label_of[target], f"{data.classes[target]}/{number:05d}", number)
        for number, target in enumerate(data.targets)
    )
    numbers = [number for *_, number in ordered]
    return Source(
        root=root,
        kind=f"torchvision's {kind.__name__}",
        split="train" if train else "val",
        classes=classes,
        names=[name for _, name, _ in ordered],
        labels=[label for label, *_ in ordered],
        sizes=None,
        read=lambda image, most: _png(data.data[numbers[image]])[:most],
        where=lambda image: f"{root}: image {numbers[image]} of {'train' if train else 'test'}",
    )


def _png(pixels: NDArray[np.uint8]) -> bytes:
    Image.fromarray(pixels).save(file := BytesIO(), format="PNG")
    return file.getvalue()
