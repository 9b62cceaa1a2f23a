"""Pick some random images of a folder without reading all of it, for `harness doctor`."""

import os
import random
from pathlib import Path

import numpy as np

from harness.data.dataset import key_of_shards, open_folder
from harness.data.files import ShardFiles, TreeFiles, class_folders, is_image, shard_paths
from harness.data.index import index_in, load, writable_index
from harness.errors import BadInput

_MOST_FOLDERS = 50  # listing a class of ImageNet takes a file server longer than reading an image


def some_files(root: Path, most: int, seed: int) -> TreeFiles | ShardFiles | None:
    """Return at most `most` images of a tree or of shards, at random, in random order.

    No index is built; the result is None for shards without an index.

    Raises:
        BadInput: a missing, empty or flat folder, or no image in the class folders drawn.
    """
    draw = random.Random(seed)
    if not (paths := shard_paths(root)):
        return _of_tree(root, most, draw)
    indexes = map(load, (index_in(root), writable_index(root)))
    key = key_of_shards(paths)
    if not any(arrays is not None and arrays["key"] == key for arrays in indexes):
        return None
    dataset = open_folder(root)
    ids = draw.sample(range(len(dataset)), min(most, len(dataset)))
    return dataset.files.part(np.array(ids, dtype=np.int64))


def _of_tree(root: Path, most: int, draw: random.Random) -> TreeFiles:
    folders = class_folders(root)
    folders = draw.sample(folders, min(_MOST_FOLDERS, len(folders)))
    images = [
        (label, entry.name)
        for label, folder in enumerate(folders)
        for entry in os.scandir(folder)
        if is_image(entry.name)
    ]
    if not images:
        raise BadInput(f"{folders[0]}: holds no image; remove it or fill it")
    images = draw.sample(images, min(most, len(images)))
    labels = np.array([label for label, _ in images], dtype=np.int32)
    names = np.array([os.fsencode(name) for _, name in images])
    sizes = [(folders[label] / name).stat().st_size for label, name in images]
    classes = [folder.name for folder in folders]
    return TreeFiles(root, classes, labels, names, np.array(sizes, dtype=np.int64), index=root)
