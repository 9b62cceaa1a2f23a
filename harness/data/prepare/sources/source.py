"""Source: the images of one split, named and labelled, to be read one by one."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from harness.errors import BadInput


class Place(NamedTuple):
    """Where an image lies: label, `class/name` without suffix, and the range of a file.

    The offset is 0 if it is a file of its own, and not 0 in a tar.
    """

    label: int
    name: str
    path: Path
    offset: int
    size_bytes: int


@dataclass(frozen=True, eq=False)
class Source:
    """A split, its images ordered by class, then name.

    Attributes:
        kind: a description such as `tar shards`.
        split: train or val; empty for a folder without splits.
    """

    root: Path
    kind: str
    split: str
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
