"""Some files of a folder of images, without reading all of it: what `harness doctor` tries out."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np

from harness.data.dataset import Dataset, class_folders, is_image
from harness.errors import BadInput

_MOST_FOLDERS = 50  # listing a class of ImageNet takes a file server longer than reading an image


def some_files(root: Path, most: int, seed: int) -> Dataset:
    """At most `most` images of an ImageFolder tree, at random, in random order.

    Their sizes in px and their labels are not looked up, and are 0; no index is read or built.

    Raises:
        BadInput: missing, empty or flat folder, or no image in the folders that were looked into.
    """
    draw = random.Random(seed)
    folders = class_folders(root)
    folders = draw.sample(folders, min(_MOST_FOLDERS, len(folders)))
    names = [
        f"{folder.name}/{entry.name}"
        for folder in folders
        for entry in os.scandir(folder)
        if is_image(entry.name)
    ]
    if not names:
        raise BadInput(f"{folders[0]}: holds no image; remove it or fill it")
    names = draw.sample(names, min(most, len(names)))
    nothing = np.zeros(len(names), dtype=np.int32)
    return Dataset(
        root=root,
        classes=[],
        names=np.array([os.fsencode(name) for name in names]),
        labels=nothing,
        width=nothing,
        height=nothing,
        size_bytes=np.array([(root / name).stat().st_size for name in names], dtype=np.int64),
        digest="",
        index=root,
    )
