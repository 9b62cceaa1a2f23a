"""Source: the images of one split, to be read one by one; sources of trees and tar shards."""

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from harness.data import manifest
from harness.data.files import class_folders, shard_paths
from harness.data.indexing import class_names, images_in
from harness.data.webdataset import samples_of
from harness.errors import BadInput
from harness.system.progress import track

SPLITS = {"train": "train", "val": "val", "test": "val", "validation": "val"}
"""Names of folders that hold splits -> the split."""


class Place(NamedTuple):
    """Where an image lies."""

    label: int
    name: str  # `class/name` without suffix
    path: Path
    offset: int  # 0 if it is a file of its own, and not 0 in a tar
    size_bytes: int


@dataclass(frozen=True, eq=False)
class Source:
    """A split, its images ordered by class, then name."""

    root: Path
    kind: str  # a description such as `tar shards`
    split: str  # train or val; empty for a folder without splits
    classes: list[str]
    images: Sequence[Place] = field(repr=False)

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def names(self) -> list[str]:
        """`class/name` of each image, without suffix."""
        return [image.name for image in self.images]

    @cached_property
    def labels(self) -> list[int]:
        """The label of each image."""
        return [image.label for image in self.images]

    @property
    def sizes(self) -> list[int] | None:
        """Encoded bytes of each image; None if unknown before reading."""
        return [image.size_bytes for image in self.images]

    def where(self, number: int) -> str:
        """Return an image's place, for a message."""
        _, name, path, offset, _ = self.images[number]
        return f"{path}: offset {offset:,} ({name})" if offset else str(path)

    def read(self, number: int, most: int = sys.maxsize) -> bytes:
        """Return the encoded bytes of an image, or the first `most`; thread-safe.

        Raises:
            BadInput: it cannot be read, or ends before.
        """
        _, _, path, offset, size = self.images[number]
        try:
            with path.open("rb", buffering=0) as file:
                content = os.pread(file.fileno(), min(size, most), offset)
        except OSError as error:
            raise BadInput(f"{self.where(number)}: {error.strerror}") from None
        if len(content) != min(size, most):
            raise BadInput(f"{self.where(number)}: ends early; it is truncated")
        return content

    @property
    def digest(self) -> str:
        """The digest of names, labels and, if known, sizes."""
        digest = hashlib.sha256()
        for name, label in zip(self.names, self.labels, strict=True):
            digest.update(os.fsencode(name) + b"\0%d\n" % label)
        digest.update(repr(self.sizes).encode())
        return digest.hexdigest()[:16]


def of_files(
    root: Path, kind: str, split: str, classes: list[str], files: Sequence[tuple[int, str, Path]]
) -> Source:
    """Return a split whose images are files, given as label, name and path, as a source."""
    try:
        images = [Place(*file, 0, file[2].stat().st_size) for file in files]
    except OSError as error:
        raise BadInput(f"{error.filename}: {error.strerror}; remove or replace it") from None
    return Source(root, kind, split, classes, images)


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each split; empty if `root` has other visible folders than splits."""
    names = {entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != "."}
    if not names <= set(SPLITS) or not names & {"train", "val"}:
        return {}
    folders: dict[str, Path] = {}
    for name, split in SPLITS.items():  # in this order: `val` goes before `test`
        if name in names:
            folders.setdefault(split, root / name)
    return folders


def tree(folder: Path, split: str, kind: str = "folder tree") -> Source:
    """Return a tree of one split as a source."""
    folders = class_folders(folder)
    files = [
        (label, f"{path.name}/{os.path.splitext(name)[0]}", path / name)
        for label, path in enumerate(track(folders, total=len(folders), what=f"listing {folder}"))
        for name in images_in(path)
    ]
    return of_files(folder, kind, split, [path.name for path in folders], files)


def packed(folder: Path, split: str) -> Source:
    """Return the shards of one split as a source, from their members' names; opens no image."""
    manifest.check_whole(folder)
    paths = shard_paths(folder)
    images = sorted(
        Place(member.label, member.key, path, member.offset, member.size_bytes)
        for path in track(paths, total=len(paths), what=f"listing {folder}")
        for member in samples_of(path, sized=False)
    )
    if not images:
        raise BadInput(f"{folder}: its shards hold no image with a .cls beside it")
    classes, _ = class_names([(image.name, image.label) for image in images])
    return Source(folder, "tar shards", split, classes, images)
