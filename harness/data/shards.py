"""A folder of tar shards: its index, and its images, which are read in place."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.index import INDEX_VERSION, Arrays, Bytes, digest_of
from harness.data.webdataset import BLOCK, IMAGES, samples_of
from harness.errors import BadInput, RunFailed
from harness.system.console import track
from harness.system.pagecache import Extent

_THREADS = 8
_PAGE = mmap.PAGESIZE


@dataclass(frozen=True, eq=False)
class _Shard:
    """An open shard, mapped into memory."""

    path: Path
    bytes: Bytes
    map: mmap.mmap
    file: Any


@dataclass(frozen=True, eq=False)
class ShardFiles:
    """The samples of tar shards. Arrays have one entry per image, ordered by class, then name."""

    paths: list[Path]
    shard_bytes: NDArray[np.int64] = field(repr=False)
    shard: NDArray[np.int32] = field(repr=False)
    offset: NDArray[np.int64] = field(repr=False)
    size_bytes: NDArray[np.int64] = field(repr=False)
    index: Path
    _opened: dict[int, _Shard] = field(default_factory=dict, repr=False)

    def where(self, sample: int) -> str:
        """Return shard, offset and name of a sample, for a message."""
        path, offset = self.paths[self.shard[sample]], int(self.offset[sample])
        try:
            with path.open("rb") as file:
                file.seek(offset - BLOCK)
                name = f" ({tarfile.TarInfo.frombuf(file.read(BLOCK), 'utf-8', 'replace').name})"
        except (OSError, tarfile.TarError):
            name = ""
        return f"{path}: offset {offset:,}{name}"

    def extent(self, sample: int) -> Extent:
        """Return the same as a range of bytes."""
        path = self.paths[self.shard[sample]]
        return Extent(path, int(self.offset[sample]), int(self.size_bytes[sample]))

    def part(self, ids: NDArray[np.int64]) -> ShardFiles:
        """Return the files of some samples."""
        return replace(
            self,
            shard=self.shard[ids],
            offset=self.offset[ids],
            size_bytes=self.size_bytes[ids],
        )

    def mapped(self, sample: int, *, soon: bool = False) -> Bytes:
        """Return the encoded bytes, mapped; `soon` starts to page them in before they are decoded.

        Raises:
            RunFailed: the shard cannot be opened or mapped, or its size differs from the index.
        """
        shard = self._open(int(self.shard[sample]))
        offset, size = int(self.offset[sample]), int(self.size_bytes[sample])
        if soon:
            page = offset // _PAGE * _PAGE
            shard.map.madvise(mmap.MADV_WILLNEED, page, offset + size - page)
        return shard.bytes[offset : offset + size]

    def read(self, sample: int) -> Bytes:
        """Return the encoded bytes, read into memory."""
        shard = self._open(int(self.shard[sample]))
        offset, size = int(self.offset[sample]), int(self.size_bytes[sample])
        try:
            read = os.pread(shard.file.fileno(), size, offset)
        except OSError as error:
            raise RunFailed(f"{self.where(sample)}: {error.strerror}") from None
        if len(read) != size:
            raise RunFailed(f"{self.where(sample)}: ends early; copy the shard again")
        return np.frombuffer(read, dtype=np.uint8)

    def _open(self, number: int) -> _Shard:
        """Return a shard, which is opened at its first use and stays open."""
        if (opened := self._opened.get(number)) is not None:
            return opened
        path = self.paths[number]
        try:
            file = path.open("rb", buffering=0)
            size = os.fstat(file.fileno()).st_size
            # Reading a map of a file that has shrunk would kill the process with SIGBUS.
            if size != self.shard_bytes[number]:
                raise RunFailed(
                    f"{path}: has {size:,} bytes, {self.shard_bytes[number]:,} when it was "
                    f"indexed; copy it again, or remove {self.index} and start again"
                )
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise RunFailed(f"{path}: {error.strerror}") from None
        shard = _Shard(path, np.frombuffer(mapped, dtype=np.uint8), mapped, file)
        return self._opened.setdefault(number, shard)


def shard_paths(root: Path) -> list[Path]:
    """Return the shards in a folder, sorted by name; empty if there are none."""
    try:
        names = sorted(e.name for e in os.scandir(root) if e.name.endswith(".tar"))
    except OSError:
        return []
    return [root / name for name in names if not name.startswith(".")]


def state_of(paths: Sequence[Path]) -> str:
    """Return a hash that changes when a shard is added, removed or written."""
    state = [(path.name, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps([INDEX_VERSION, state]).encode()).hexdigest()


def stale(root: Path, paths: Sequence[Path], old: Arrays) -> str:
    """Return why an index does not fit these shards, for a message.

    Raises:
        BadInput: a shard that the index lists is missing.
    """
    present = {path.name for path in paths}
    for name in old.get("shards", ()):
        if str(name) not in present:
            raise BadInput(
                f"{root / str(name)}: is missing, the index of {root} lists it; copy it again, or "
                "remove the index to do without it"
            )
    return "older than the shards"


def build(root: Path, paths: Sequence[Path]) -> Arrays:
    """Build the index of shards from their members' headers.

    Raises:
        BadInput: a shard is truncated or no tar, a sample has no label, or a header does not
            parse; the message names shard and offset.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        scanned = pool.map(lambda path: list(samples_of(path)), paths)
        listings = list(track(scanned, total=len(paths), what=f"indexing {root}"))
    members = [
        (member.label, member.key, shard, member)
        for shard, listing in enumerate(listings)
        for member in listing
    ]
    if not members:
        raise BadInput(f"{root}: its shards hold no {', '.join(IMAGES)} with a .cls beside it")
    members.sort()
    ordered = [member for *_, member in members]
    table = np.array([member[1:] for member in ordered], dtype=np.int64)
    named = class_names([(member.key, member.label) for member in ordered])
    classes = named or [str(label) for label in range(int(table[:, 0].max()) + 1)]
    arrays: Arrays = {
        "labels": table[:, 0].astype(np.int32),
        "width": table[:, 1].astype(np.int32),
        "height": table[:, 2].astype(np.int32),
        "size_bytes": table[:, 3].copy(),
    }
    keys = [os.fsencode(member.key) for member in ordered]
    return arrays | {
        "digest": digest_of(classes, keys, list(arrays.values())),
        "offset": table[:, 4].copy(),
        "shard": np.array([shard for *_, shard, _ in members], dtype=np.int32),
        "shards": np.array([path.name for path in paths]),
        "shard_bytes": np.array([path.stat().st_size for path in paths], dtype=np.int64),
        "classes": np.array(classes),
        "named": np.array(named is not None),
    }


def class_names(samples: Sequence[tuple[str, int]]) -> list[str] | None:
    """Return the classes' names if each label has a folder of its own, as in packed shards.

    None if the labels are only numbers.
    """
    folder_of: dict[int, str] = {}
    for key, label in samples:
        folder = os.path.dirname(key)
        if not folder or folder_of.setdefault(label, folder) != folder:
            return None
    if sorted(folder_of) != list(range(len(folder_of))):
        return None
    names = [folder_of[label] for label in range(len(folder_of))]
    return names if len(set(names)) == len(names) else None
