"""Source: the images of one split, named and labelled, to be read one by one."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import BadInput


@dataclass(frozen=True, eq=False)
class Source:
    """A split, its images ordered by class, then name.

    Attributes:
        kind: a description such as `tar shards`.
        split: train or val; empty for a folder without splits.
        names: `class/name` of each image, without suffix.
        sizes: encoded bytes of each image; None if unknown before reading.
        read: (image, most) -> its first `most` encoded bytes; thread-safe.
        where: image -> its place, for a message.
    """

    root: Path
    kind: str
    split: str
    classes: list[str]
    names: list[str] = field(repr=False)
    labels: list[int] = field(repr=False)
    sizes: list[int] | None = field(repr=False)
    read: Callable[[int, int], bytes] = field(repr=False)
    where: Callable[[int], str] = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def whole(self, image: int) -> bytes:
        """Return all encoded bytes of an image."""
        return self.read(image, sys.maxsize)

    @property
    def digest(self) -> str:
        """The digest of names, labels and, if known, sizes."""
        digest = hashlib.sha256()
        for name, label in zip(self.names, self.labels, strict=True):
            digest.update(os.fsencode(name) + b"\0%d\n" % label)
        digest.update(repr(self.sizes).encode())
        return digest.hexdigest()[:16]


def pread(path: Path, offset: int, size: int, what: str) -> bytes:
    """Return `size` bytes of a file from an offset on.

    Raises:
        BadInput: it cannot be read, or ends before; names `what`.
    """
    try:
        with path.open("rb", buffering=0) as file:
            read = os.pread(file.fileno(), size, offset)
    except OSError as error:
        raise BadInput(f"{what}: {error.strerror}") from None
    if len(read) != size:
        raise BadInput(f"{what}: ends early; it is truncated")
    return read
