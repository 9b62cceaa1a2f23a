"""Files: the encoded images of a dataset, in a tree or in tar shards, and reading them ahead."""

from __future__ import annotations

import mmap
import os
import tarfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.data.stream import Samples
from harness.errors import BadInput, RunFailed
from harness.system.pagecache import Extent

Bytes = NDArray[np.uint8]
_BLOCK, _PAGE = tarfile.BLOCKSIZE, mmap.PAGESIZE
SUFFIXES = (".jpg", ".jpeg", ".png")
PACK_NAME = "pack.json"  # in which `harness data pack` lists its shards; see manifest.py

READ_AHEAD_THREADS = 8  # they mostly wait for the disk
_CHUNK = 64  # images per task of a thread: smaller tasks cost more than they hide


def is_image(name: str) -> bool:
    """Return whether a file is an image, by its suffix; macOS's `._name.jpg` files are not."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


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


def shard_paths(root: Path) -> list[Path]:
    """Return the shards in a folder, sorted by name; empty if there are none."""
    try:
        names = sorted(e.name for e in os.scandir(root) if e.name.endswith(".tar"))
    except OSError:
        return []
    return [root / name for name in names if not name.startswith(".")]


@dataclass(frozen=True, eq=False)
class TreeFiles:
    """The files of a tree. Arrays have one entry per image, ordered by class, then name."""

    root: Path
    classes: list[str]
    labels: NDArray[np.int32] = field(repr=False)
    names: NDArray[Any] = field(repr=False)  # bytes, within the folder of the class
    size_bytes: NDArray[np.int64] = field(repr=False)
    index: Path

    def where(self, sample: int) -> str:
        """Return the path of a sample, a string: joining Paths takes longer than opening it."""
        name = os.fsdecode(bytes(self.names[sample]))
        return os.path.join(self.root, self.classes[self.labels[sample]], name)

    def extent(self, sample: int) -> Extent:
        """Return the same as a range of bytes."""
        return Extent(Path(self.where(sample)), 0, int(self.size_bytes[sample]))

    def part(self, ids: NDArray[np.int64]) -> TreeFiles:
        """Return the files of some samples."""
        return replace(
            self, labels=self.labels[ids], names=self.names[ids], size_bytes=self.size_bytes[ids]
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


class _Shard(NamedTuple):
    bytes: Bytes
    map: mmap.mmap
    file: FileIO


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
                file.seek(offset - _BLOCK)
                name = f" ({tarfile.TarInfo.frombuf(file.read(_BLOCK), 'utf-8', 'replace').name})"
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
            self, shard=self.shard[ids], offset=self.offset[ids], size_bytes=self.size_bytes[ids]
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
        if (opened := self._opened.get(number)) is not None:
            return opened  # since its first use
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
        shard = _Shard(np.frombuffer(mapped, dtype=np.uint8), mapped, file)
        return self._opened.setdefault(number, shard)


def read_ahead(
    samples: Iterator[Samples], read: Callable[[int], Bytes], batches: int
) -> Iterator[tuple[Samples, list[Bytes]]]:
    """Yield each batch of samples with its encoded bytes, which are read `batches` ahead.

    Args:
        read: returns the bytes of a sample, or a map whose pages the kernel then reads.
        batches: with 0, a batch is read when it is due, in the caller's thread.

    Raises:
        RunFailed: from `read`, when the batch is due.
    """

    def read_all(ids: list[int]) -> list[Bytes]:
        return [read(sample) for sample in ids]

    if not batches:
        yield from ((batch, read_all(batch.ids.tolist())) for batch in samples)
        return

    def due() -> tuple[Samples, list[Bytes]]:
        batch, parts = waiting.popleft()
        return batch, [encoded for part in parts for encoded in part.result()]

    pool = ThreadPoolExecutor(READ_AHEAD_THREADS, thread_name_prefix="read-ahead")
    waiting: deque[tuple[Samples, list[Future[list[Bytes]]]]] = deque()
    try:
        for batch in samples:
            ids = batch.ids.tolist()
            chunks = [ids[first : first + _CHUNK] for first in range(0, len(ids), _CHUNK)]
            waiting.append((batch, [pool.submit(read_all, chunk) for chunk in chunks]))
            if len(waiting) > batches:
                yield due()
        while waiting:
            yield due()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
