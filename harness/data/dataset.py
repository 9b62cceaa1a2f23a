"""Dataset: images on disk with what the stream must know of each (size, label), from an index.

The index is built once by reading every header, and kept beside the data, or in the cache folder
where the data cannot be written. One process of a node builds it, the others wait for its lock.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import resource
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from platformdirs import user_cache_path

from harness.console import out, track
from harness.errors import BadInput, RunFailed

SUFFIXES = (".jpg", ".jpeg", ".png")
INDEX_VERSION = 1
_INDEX_NAME = ".harness-index.npz"
_HEADER_THREADS = 16  # headers are read, not computed: threads hide a network disk's latency

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Dataset:
    """An ImageFolder tree: one folder per class, labels by the sorted order of folder names.

    Arrays have one entry per image, ordered by class, then file name.
    """

    root: Path
    classes: list[str]
    names: NDArray[Any] = field(repr=False)  # bytes, relative to root
    labels: NDArray[np.int32] = field(repr=False)
    width: NDArray[np.int32] = field(repr=False)
    height: NDArray[np.int32] = field(repr=False)
    size_bytes: NDArray[np.int64] = field(repr=False)
    digest: str
    index: Path = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, ids: NDArray[np.int64], what: str) -> Dataset:
        """Some samples, by their rising ids; all classes stay. `what` goes into the digest."""
        told = hashlib.sha256(f"{self.digest} {what}".encode())
        told.update(ids.astype(np.int64).tobytes())
        return replace(
            self,
            names=self.names[ids],
            labels=self.labels[ids],
            width=self.width[ids],
            height=self.height[ids],
            size_bytes=self.size_bytes[ids],
            digest=told.hexdigest()[:16],
        )

    def path(self, sample: int) -> Path:
        """File of a sample."""
        return self.root / os.fsdecode(bytes(self.names[sample]))

    def read_mapped(self, sample: int) -> Bytes:
        """Encoded bytes of a sample, mapped: they are paged in where they are decoded."""
        with self._open(sample) as file:
            try:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise RunFailed(
                    f"{self.path(sample)}: {error.strerror}; set --data.read pread"
                ) from None
        return np.frombuffer(mapped, dtype=np.uint8)

    def read_whole(self, sample: int) -> Bytes:
        """Encoded bytes of a sample, read into memory."""
        with self._open(sample) as file:
            return np.fromfile(file, dtype=np.uint8)

    def _open(self, sample: int) -> Any:
        try:
            file = self.path(sample).open("rb")
        except OSError as error:
            raise RunFailed(f"{self.path(sample)}: {error.strerror}") from None
        # A mapped file that has shrunk would end the process with SIGBUS, not with an exception.
        if os.fstat(file.fileno()).st_size != self.size_bytes[sample]:
            file.close()
            raise RunFailed(
                f"{self.path(sample)}: its size changed since it was indexed; remove {self.index} "
                "and start again"
            )
        return file


def open_folder(root: Path) -> Dataset:
    """The dataset of a folder tree, from its index, which is built if missing or stale.

    Raises:
        BadInput: missing, empty or flat folder, empty class, header that does not parse.
    """
    folders = class_folders(root)
    key = _state_of(folders)
    # Whoever may write there has indexed it for those who may not; it is replaced whole, so that
    # reading needs no lock.
    index = beside(root)
    arrays = _load_index(index, key)
    if arrays is None:
        index = writable_index(root)
        with locked(index):
            arrays = _load_index(index, key)
            if arrays is None:
                if index.exists():
                    out.print(f"{index}: older than the images, building it again")
                arrays = _build(root, folders) | {"key": np.array(key)}
                _save_index(index, arrays)
    return Dataset(
        index=index,
        root=root,
        classes=[folder.name for folder in folders],
        names=arrays["names"],
        labels=arrays["labels"],
        width=arrays["width"],
        height=arrays["height"],
        size_bytes=arrays["size_bytes"],
        digest=str(arrays["digest"]),
    )


def allow_open_files() -> None:
    """Raise this process's limit as far as it may: each mapped image holds a file open."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def same_classes(train: Dataset, val: Dataset) -> None:
    """Refuse a training and a validation set with other class folders.

    Raises:
        BadInput: names the first folder that one of them lacks.
    """
    for have, lack in ((train, val), (val, train)):
        missing = sorted(set(have.classes) - set(lack.classes))
        if missing:
            raise BadInput(
                f"{lack.root}: has no class folder {missing[0]}, which {have.root} has "
                f"({len(missing)} such); labels would not match"
            )


def cache_folder() -> Path:
    """Where this user's generated files go: $HARNESS_CACHE, or the system's cache folder.

    Raises:
        BadInput: it cannot be written.
    """
    given = os.environ.get("HARNESS_CACHE")
    folder = Path(given) if given else user_cache_path("imagenet-harness")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK) else "is not yours to write"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise BadInput(f"{folder}: {reason}; set HARNESS_CACHE to a folder you can write")
    return folder


def class_folders(root: Path) -> list[Path]:
    """The folders of a tree, one per class, in the order of their labels.

    Raises:
        BadInput: missing, empty or flat folder.
    """
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise BadInput(
            f"{root}: {error.strerror}; give a folder with one folder per class"
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


def is_image(name: str) -> bool:
    """By its suffix; macOS leaves a `._name.jpg` beside a `name.jpg`, which is none."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _state_of(folders: Iterable[Path]) -> str:
    """Changes whenever a file is added, removed or renamed: folders' names and times."""
    state = [(folder.name, folder.stat().st_mtime_ns) for folder in folders]
    return hashlib.sha256(json.dumps([INDEX_VERSION, state]).encode()).hexdigest()


def _build(root: Path, folders: list[Path]) -> dict[str, NDArray[Any]]:
    names: list[bytes] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        files = sorted(e.name for e in os.scandir(folder) if is_image(e.name))
        if not files:
            raise BadInput(f"{folder}: holds no {', '.join(SUFFIXES)} file; remove it or fill it")
        names += [os.fsencode(f"{folder.name}/{name}") for name in files]
        labels += [label] * len(files)
    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        measured = pool.map(_measure, (root / os.fsdecode(name) for name in names))
        shown = track(measured, total=len(names), what=f"indexing {root}")
        sizes = np.array(list(shown), dtype=np.int64)
    arrays: dict[str, NDArray[Any]] = {
        "names": np.array(names),
        "labels": np.array(labels, dtype=np.int32),
        "width": sizes[:, 0].astype(np.int32),
        "height": sizes[:, 1].astype(np.int32),
        "size_bytes": sizes[:, 2],
    }
    digest = hashlib.sha256(json.dumps([folder.name for folder in folders]).encode())
    for array in arrays.values():
        digest.update(array.tobytes())
    return arrays | {"digest": np.array(digest.hexdigest()[:16])}


def _measure(path: Path) -> tuple[int, int, int]:
    """Width and height in px as the header says (EXIF rotation ignored), and size in bytes."""
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            return (*image.size, path.stat().st_size)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "its header is not one of a JPEG or PNG"
        raise BadInput(f"{path}: {reason}; remove or replace it") from None


def beside(root: Path) -> Path:
    """Where the index of a folder lies if the folder can be written."""
    return root / _INDEX_NAME


def writable_index(root: Path) -> Path:
    """The same, or in the cache folder where it cannot."""
    if os.access(root, os.W_OK):
        return beside(root)
    folder = cache_folder() / "index"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}.npz"


@contextmanager
def locked(index: Path) -> Iterator[None]:
    """One builder at a time; the lock is taken away again, since users look into their data."""
    lock = index.with_suffix(".lock")
    with FileLock(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _load_index(path: Path, key: str) -> dict[str, NDArray[Any]] | None:
    """The index, unless it is missing, torn or older than the images."""
    try:
        with np.load(path) as file:
            arrays = dict(file)
        return arrays if arrays["key"] == key else None
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def _save_index(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    part = path.with_suffix(f".{uuid.uuid4().hex[:8]}.part.npz")
    try:
        np.savez(part, **arrays)  # type: ignore[arg-type]
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


READERS: dict[str, Callable[[Dataset, int], Bytes]] = {
    "mmap": Dataset.read_mapped,
    "pread": Dataset.read_whole,
}
