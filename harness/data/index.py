"""The index of a dataset: label, size and place of each image, read once and stored.

It lies in the data's folder, or in the cache folder if that cannot be written. One process per node
builds it; the others wait for its lock.
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from platformdirs import user_cache_path

from harness.errors import BadInput
from harness.system.console import duration, out

INDEX_VERSION = 2  # increased when the content of an index changes: older ones are rebuilt
INDEX_NAME = ".harness-index.npz"
_WORTH_SAYING_S = 2.0

Arrays = dict[str, NDArray[Any]]


def load_or_build(
    root: Path, key: str, build: Callable[[], Arrays], stale: Callable[[Arrays], str]
) -> tuple[Path, Arrays]:
    """Return the path and content of a folder's index; it is built if missing, damaged or stale.

    Args:
        key: of the state of the data; it changes when they do.
        stale: returns why an index with another key is stale, for a message; may raise BadInput.
    """
    # An index in the folder, by a user who may write there, serves all users. It is replaced
    # atomically, so that reading needs no lock.
    path = index_in(root)
    if (arrays := load(path)) is not None and arrays["key"] == key:
        return path, arrays
    path = writable_index(root)
    with locked(path):
        if (arrays := load(path)) is not None and arrays["key"] == key:
            return path, arrays
        if path.exists():
            why = stale(arrays) if arrays is not None else "not a complete index"
            out.print(f"{path}: {why}, building it again")
        began = time.monotonic()
        arrays = build() | {"key": np.array(key)}
        _save(path, arrays)
        if (took_s := time.monotonic() - began) > _WORTH_SAYING_S:
            images = len(arrays["labels"])
            out.print(f"{path}: index of {images:,} images, built in {duration(took_s)}")
    return path, arrays


def key_of(state: Any) -> str:
    """Return a hash of the state of a folder's data."""
    return hashlib.sha256(json.dumps([INDEX_VERSION, state]).encode()).hexdigest()


def cache_folder() -> Path:
    """Return the folder of this user's generated files: $HARNESS_CACHE or the system's cache.

    Raises:
        BadInput: it cannot be written.
    """
    folder = Path(os.environ.get("HARNESS_CACHE") or user_cache_path("imagenet-harness"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK) else "is not yours to write"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise BadInput(f"{folder}: {reason}; set HARNESS_CACHE to a folder you can write")
    return folder


def index_in(root: Path) -> Path:
    """Return the path of the index within the folder of the data."""
    return root / INDEX_NAME


def writable_index(root: Path) -> Path:
    """Return the same, or a path in the cache folder if the data's folder cannot be written."""
    if os.access(root, os.W_OK):
        return index_in(root)
    folder = cache_folder() / "index"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]}.npz"


@contextmanager
def locked(index: Path) -> Iterator[None]:
    """Hold an index's lock; remove the lock file at the end, to leave nothing in the data."""
    lock = index.with_suffix(".lock")
    with FileLock(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def load(path: Path) -> Arrays | None:
    """Return the index; None if it is missing or damaged."""
    try:
        with np.load(path) as file:
            arrays = dict(file)
        return arrays if "key" in arrays else None
    except (OSError, ValueError, EOFError, BadZipFile):
        return None


def _save(path: Path, arrays: Arrays) -> None:
    part = path.with_suffix(f".{uuid.uuid4().hex[:8]}.part.npz")
    try:
        np.savez(part, **arrays)  # type: ignore[arg-type]
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
