"""Build the index of a tree or of tar shards: list the images, and read their headers."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.files import SUFFIXES, is_image
from harness.data.index import Arrays
from harness.data.webdataset import IMAGES, samples_of, size_px
from harness.errors import BadInput
from harness.system.progress import in_parallel

_HEADER_THREADS = 16  # headers are read, not computed: threads hide a network disk's latency
_SHARD_THREADS = 8


def images_in(folder: Path) -> list[str]:
    """Return the names of the images in a class folder, in the order of the dataset.

    They are sorted by the name without suffix first, as that is what a shard keeps.
    """
    names = [entry.name for entry in os.scandir(folder) if is_image(entry.name)]
    return sorted(names, key=os.path.splitext)


def build_tree(root: Path, folders: list[Path]) -> Arrays:
    """Build the index of a tree from the images' headers.

    Raises:
        BadInput: a class has no images, or a header does not parse.
    """
    names: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        images = images_in(folder)
        if not images and _is_split(folder):
            raise BadInput(f"{root}: its images lie deeper; give {folder}, or what else it holds")
        if not images:
            raise BadInput(f"{folder}: holds no {', '.join(SUFFIXES)} file; remove it or fill it")
        names += images
        labels += [label] * len(images)
    paths = [folders[label] / name for label, name in zip(labels, names, strict=True)]
    measured = in_parallel(_measure, paths, threads=_HEADER_THREADS, what=f"indexing {root}")
    sizes = np.array(list(measured), dtype=np.int64)
    keys = [os.fsencode(f"{path.parent.name}/{path.stem}") for path in paths]
    arrays: Arrays = {
        "labels": np.array(labels, dtype=np.int32),
        "width": sizes[:, 0].astype(np.int32),
        "height": sizes[:, 1].astype(np.int32),
        "size_bytes": sizes[:, 2],
    }
    digest = digest_of([folder.name for folder in folders], keys, list(arrays.values()))
    return arrays | {"names": np.array([os.fsencode(name) for name in names]), "digest": digest}


def _is_split(folder: Path) -> bool:
    return any(
        entry.is_dir() or entry.name.endswith(".tar")
        for entry in os.scandir(folder)
        if not entry.name.startswith(".")
    )


def _measure(path: Path) -> tuple[int, int, int]:
    try:
        return (*size_px(path), path.stat().st_size)
    except ValueError as error:
        raise BadInput(f"{path}: {error}; remove or replace it, or find all by harness data check "
                       f"{path.parent.parent}") from None  # fmt: skip


def build_shards(root: Path, paths: Sequence[Path]) -> Arrays:
    """Build the index of shards from their members' headers.

    Raises:
        BadInput: a shard is truncated or no tar, a sample has no label, or a header does not
            parse; the message names shard and offset.
    """
    listings = in_parallel(
        lambda path: list(samples_of(path)), paths, threads=_SHARD_THREADS, what=f"indexing {root}"
    )
    members = sorted(
        (member.label, member.key, shard, member)
        for shard, listing in enumerate(listings)
        for member in listing
    )
    if not members:
        raise BadInput(f"{root}: its shards hold no {', '.join(IMAGES)} with a .cls beside it")
    table = np.array([member[1:] for *_, member in members], dtype=np.int64)
    classes, named = class_names([(key, label) for label, key, *_ in members])
    arrays: Arrays = {
        "labels": table[:, 0].astype(np.int32),
        "width": table[:, 1].astype(np.int32),
        "height": table[:, 2].astype(np.int32),
        "size_bytes": table[:, 3].copy(),
    }
    keys = [os.fsencode(key) for _, key, *_ in members]
    return arrays | {
        "digest": digest_of(classes, keys, list(arrays.values())),
        "offset": table[:, 4].copy(),
        "shard": np.array([shard for *_, shard, _ in members], dtype=np.int32),
        "shards": np.array([path.name for path in paths]),
        "shard_bytes": np.array([path.stat().st_size for path in paths], dtype=np.int64),
        "classes": np.array(classes),
        "named": np.array(named),
    }


def digest_of(
    classes: Sequence[str], keys: Sequence[bytes], arrays: Sequence[NDArray[Any]]
) -> NDArray[Any]:
    """Return 16 hex digits of classes, keys (`class/name`), labels and sizes, in either form."""
    digest = hashlib.sha256(json.dumps(list(classes)).encode())
    for array in (np.array(keys), *arrays):
        digest.update(array.tobytes())
    return np.array(digest.hexdigest()[:16])


def class_names(samples: Sequence[tuple[str, int]]) -> tuple[list[str], bool]:
    """Return the names of the classes, and whether they are more than the labels' numbers.

    They are if each label has a folder of its own in the keys, as in packed shards.
    """
    folders = {(label, os.path.dirname(key)) for key, label in samples}
    labels, names = zip(*sorted(folders), strict=True)
    if labels == tuple(range(len(labels))) and all(names) and len(set(names)) == len(names):
        return list(names), True
    return [str(label) for label in range(labels[-1] + 1)], False
