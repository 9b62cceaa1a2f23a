"""Dataset: images on disk with the size and label of each, from an index."""

from __future__ import annotations

import hashlib
import resource
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.data.files import PACK_NAME, Bytes, ShardFiles, TreeFiles, class_folders, shard_paths
from harness.data.index import Arrays, key_of, load_or_build
from harness.errors import BadInput
from harness.system import pagecache

Read = Literal["mmap", "pread"]

_COLUMNS = ("labels", "width", "height")
_CACHE_SAMPLE = 64  # images by which the cached share is estimated: a run waits for it at its start


@dataclass(frozen=True, eq=False)
class Dataset:
    """A folder of images: a tree with one folder per class, or tar shards.

    Arrays have one entry per image, ordered by class, then name, in either form, so that the same
    images give the same batches.
    """

    root: Path
    classes: list[str]
    named: bool  # whether classes have names; labels are then their places in sorted order
    labels: NDArray[np.int32] = field(repr=False)
    width: NDArray[np.int32] = field(repr=False)
    height: NDArray[np.int32] = field(repr=False)
    digest: str
    files: TreeFiles | ShardFiles = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size_bytes(self) -> NDArray[np.int64]:
        """The encoded bytes of each image [n]."""
        return self.files.size_bytes

    def where(self, sample: int) -> str:
        """Return the path of a sample (and its offset in a shard), for a message."""
        return self.files.where(sample)

    def facts(self) -> dict[str, Any]:
        """Return path, form, number, size and cached share of the images, for a run's record."""
        return {
            "root": str(self.root),
            "kind": "folder tree" if isinstance(self.files, TreeFiles) else "tar shards",
            "images": len(self),
            "index": str(self.files.index),
            "kb_per_image": float(self.size_bytes.mean()) / 1e3,
            "cached_pct": self.cached_pct(),
        }

    def cached_pct(self) -> float | None:
        """Return the share of the images in the page cache, estimated from some of them."""
        samples = np.linspace(0, len(self) - 1, min(_CACHE_SAMPLE, len(self))).astype(int)
        return pagecache.cached_pct(self.files.extent(sample) for sample in samples.tolist())

    def part(self, ids: NDArray[np.int64], what: str) -> Dataset:
        """Return a subset, by sorted ids; all classes stay. `what` goes into the digest."""
        digest = hashlib.sha256(f"{self.digest} {what}".encode() + ids.astype(np.int64).tobytes())
        columns = {name: getattr(self, name)[ids] for name in _COLUMNS}
        files = self.files.part(ids)
        return replace(self, files=files, digest=digest.hexdigest()[:16], **columns)

    def content(self, sample: int) -> bytes:
        """Return the encoded bytes of a sample."""
        return self.files.read(sample).tobytes()

    def reader(self, read: Read, *, soon: bool = False) -> Callable[[int], Bytes]:
        """Return a function from a sample to its encoded bytes; see `reader_of`."""
        return reader_of(self.files, read, soon=soon)


def reader_of(
    files: TreeFiles | ShardFiles, read: Read, *, soon: bool = False
) -> Callable[[int], Bytes]:
    """Return a function from the number of an image to its encoded bytes.

    Args:
        read: `mmap` returns a view, paged in when decoded; `pread` reads into memory.
        soon: start to page mapped bytes in at the call, without waiting for them.
    """
    if read == "pread":
        return files.read
    return lambda sample: files.mapped(sample, soon=soon)


def open_folder(root: Path) -> Dataset:
    """Return the dataset of a folder, tree or shards; its index is built if missing or stale.

    Raises:
        BadInput: a missing, empty or flat folder, an empty class, a header that does not parse, or
            a shard that is missing, truncated or not completely packed.
    """
    if (root / PACK_NAME).exists():
        from harness.data import manifest

        manifest.check_whole(root)
    paths = shard_paths(root)
    return _open_shards(root, paths) if paths else _open_tree(root)


def key_of_shards(paths: list[Path]) -> str:
    """Return a hash that changes when a shard is added, removed or written."""
    return key_of([(path.name, (s := path.stat()).st_size, s.st_mtime_ns) for path in paths])


def _open_tree(root: Path) -> Dataset:
    folders = class_folders(root)

    def build() -> Arrays:
        from harness.data.indexing import build_tree

        return build_tree(root, folders)

    # The key changes when a file is added, removed or renamed.
    key = key_of([(folder.name, folder.stat().st_mtime_ns) for folder in folders])
    index, arrays = load_or_build(root, key, build, lambda old: "older than the images")
    classes, labels = [folder.name for folder in folders], arrays["labels"]
    files = TreeFiles(root, classes, labels, arrays["names"], arrays["size_bytes"], index)
    return _dataset(root, classes, True, arrays, files)


def _open_shards(root: Path, paths: list[Path]) -> Dataset:
    def build() -> Arrays:
        from harness.data.indexing import build_shards

        return build_shards(root, paths)

    def stale(old: Arrays) -> str:
        present = {path.name for path in paths}
        for name in map(str, old.get("shards", ())):
            if name not in present:
                raise BadInput(
                    f"{root / name}: is missing, the index of {root} lists it; copy it again, or "
                    "remove the index to do without it"
                )
        return "older than the shards"

    index, arrays = load_or_build(root, key_of_shards(paths), build, stale)
    files = ShardFiles(
        paths, arrays["shard_bytes"], arrays["shard"], arrays["offset"], arrays["size_bytes"], index
    )
    classes = [str(name) for name in arrays["classes"]]
    return _dataset(root, classes, bool(arrays["named"]), arrays, files)


def _dataset(
    root: Path, classes: list[str], named: bool, arrays: Arrays, files: TreeFiles | ShardFiles
) -> Dataset:
    columns = {name: arrays[name] for name in _COLUMNS}
    return Dataset(root, classes, named, digest=str(arrays["digest"]), files=files, **columns)


def undecodable(dataset: Dataset, sample: int, reason: object) -> str:
    """Return the message about an image that a loader could not decode."""
    return (
        f"{dataset.where(sample)}: sample {sample} does not decode ({reason}); remove or replace "
        f"it, or find all such by harness data check --decode {dataset.root}"
    )


def allow_open_files() -> None:
    """Raise this process's limit of open files to its maximum: each mapped image holds one open."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))


def same_classes(train: Dataset, val: Dataset) -> int:
    """Check that training and validation set have the same classes; return their number.

    Raises:
        BadInput: they differ; the message names the first class or label that one of them lacks.
    """
    if not train.named and not val.named:
        return max(len(train.classes), len(val.classes))
    for have, lack in ((train, val), (val, train)):
        if have.named and lack.named:
            if missing := sorted(set(have.classes) - set(lack.classes)):
                raise BadInput(
                    f"{lack.root}: has no class folder {missing[0]}, which {have.root} has "
                    f"({len(missing)} such); labels would not match"
                )
        elif len(have.classes) > len(lack.classes):
            last = int(np.argmax(have.labels))
            raise BadInput(
                f"{have.where(last)}: label {have.labels[last]} is outside of the "
                f"{len(lack.classes)} classes of {lack.root}, which count from 0"
            )
    return len(val.classes)
