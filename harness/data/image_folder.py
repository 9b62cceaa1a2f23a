"""An ImageFolder tree: one folder per class, one file per image."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.headers import SUFFIXES, is_image, size_px
from harness.data.index import INDEX_VERSION, Arrays, Bytes, digest_of
from harness.errors import BadInput, RunFailed
from harness.system.console import track
from harness.system.pagecache import Extent

_HEADER_THREADS = 16  # headers are read, not computed: threads hide a network disk's latency


@dataclass(frozen=True, eq=False)
class TreeFiles:
    """The files of a tree. Arrays have one entry per image, ordered by class, then name."""

    root: Path
    classes: list[str]
    labels: NDArray[np.int32] = field(repr=False)
    names: NDArray[Any] = field(repr=False)  # bytes, within the folder of the class
    size_bytes: NDArray[np.int64] = field(repr=False)
    index: Path

    def path(self, sample: int) -> Path:
        """Return the file of a sample."""
        return Path(self.where(sample))

    def where(self, sample: int) -> str:
        """Return the same as a string: joining Paths takes longer than opening the file."""
        name = os.fsdecode(bytes(self.names[sample]))
        return os.path.join(self.root, self.classes[self.labels[sample]], name)

    def extent(self, sample: int) -> Extent:
        """Return the same as a range of bytes."""
        return Extent(self.path(sample), 0, int(self.size_bytes[sample]))

    def part(self, ids: NDArray[np.int64]) -> TreeFiles:
        """Return the files of some samples."""
        return replace(
            self,
            labels=self.labels[ids],
            names=self.names[ids],
            size_bytes=self.size_bytes[ids],
        )

    def mapped(self, sample: int, *, soon: bool = False) -> Bytes:
        """Return the encoded bytes, mapped; `soon` starts to page them in before they are decoded.

        Raises:
            RunFailed: the file cannot be opened or mapped, or its size differs from the index.
        """
        with self._opened(sample) as descriptor:
            try:
                mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise RunFailed(
                    f"{self.where(sample)}: {error.strerror}; set --data.read pread"
                ) from None
        if soon:
            mapped.madvise(mmap.MADV_WILLNEED)
        return np.frombuffer(mapped, dtype=np.uint8)

    def read(self, sample: int) -> Bytes:
        """Return the encoded bytes, read into memory."""
        with self._opened(sample) as descriptor:
            read = os.read(descriptor, int(self.size_bytes[sample]))
        if len(read) != self.size_bytes[sample]:
            raise RunFailed(f"{self.where(sample)}: ends early; replace it")
        return np.frombuffer(read, dtype=np.uint8)

    @contextmanager
    def _opened(self, sample: int) -> Iterator[int]:
        try:
            descriptor = os.open(self.where(sample), os.O_RDONLY)
        except OSError as error:
            raise RunFailed(f"{self.where(sample)}: {error.strerror}") from None
        try:
            # Reading a map of a file that has shrunk would kill the process with SIGBUS.
            if os.fstat(descriptor).st_size != self.size_bytes[sample]:
                raise RunFailed(
                    f"{self.where(sample)}: its size changed since it was indexed; remove "
                    f"{self.index} and start again"
                )
            yield descriptor
        finally:
            os.close(descriptor)


def class_folders(root: Path) -> list[Path]:
    """Return the class folders of a tree, in the order of their labels.

    Raises:
        BadInput: the folder is missing, empty or flat.
    """
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise BadInput(
            f"{root}: {error.strerror}; give a folder with one folder per class, or of tar shards"
        ) from None
    folders = [Path(e.path) for e in entries if e.is_dir() and not e.name.startswith(".")]
    if folders:
        return folders
    if any(is_image(e.name) for e in entries):
        raise BadInput(
            f"{root}: images lie flat in it, without class folders; move each into a folder named "
            "after its class (for ImageNet's validation images: by the labels of the devkit)"
        )
    raise BadInput(f"{root}: is empty; give a folder with one folder of images per class")


def images_in(folder: Path) -> list[str]:
    """Return the names of the images in a class folder, in the order of the dataset.

    They are sorted by the name without suffix first, as that is what a shard keeps.
    """
    names = [entry.name for entry in os.scandir(folder) if is_image(entry.name)]
    return sorted(names, key=os.path.splitext)


def state_of(folders: Iterable[Path]) -> str:
    """Return a hash that changes when a file is added, removed or renamed."""
    state = [(folder.name, folder.stat().st_mtime_ns) for folder in folders]
    return hashlib.sha256(json.dumps([INDEX_VERSION, state]).encode()).hexdigest()


def build(root: Path, folders: list[Path]) -> Arrays:
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
    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        measured = track(pool.map(_measure, paths), total=len(paths), what=f"indexing {root}")
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
    """Return whether a supposed class folder holds folders or shards instead of images."""
    return any(
        entry.is_dir() or entry.name.endswith(".tar")
        for entry in os.scandir(folder)
        if not entry.name.startswith(".")
    )


def _measure(path: Path) -> tuple[int, int, int]:
    """Return width and height in px, and size in bytes."""
    try:
        return (*size_px(path), path.stat().st_size)
    except ValueError as error:
        raise BadInput(f"{path}: {error}; remove or replace it, or find all by harness data check "
                       f"{path.parent.parent}") from None  # fmt: skip
