"""Files that are whole or not there, also if the machine stops in between."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from harness.errors import BadInput

_LIBC = ctypes.CDLL(None, use_errno=True)


def write_atomic(path: Path, fill: Callable[[Path], Any]) -> None:
    """Have a file written under a temporary name, force it to the disk, give it its name.

    Raises:
        OSError: it cannot be written; nothing is left.
    """
    try:
        written(path, fill).replace(path)
        fsync(path.parent)
    finally:
        discard(path)


def written(path: Path, fill: Callable[[Path], Any]) -> Path:
    """The same without the last part: what is whole, and waits for its name."""
    fill(part := _part(path))
    fsync(part)
    return part


def discard(path: Path) -> None:
    """Remove what was begun for `path` and has not got its name."""
    with suppress(OSError):
        _part(path).unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Return once a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Return once a folder and all that is in it are on the disk.

    With what others have written to the same file system: thousands of small files, each waited
    for by itself, would take minutes on a slow disk.

    Raises:
        OSError: the disk has not taken all of it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if _LIBC.syncfs(descriptor):
            raise OSError(number := ctypes.get_errno(), os.strerror(number), str(folder))
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(root: Path) -> Iterator[Path]:
    """A folder to fill under a temporary name, which gets its own at the end of the block.

    Nothing is left behind half-filled.

    Raises:
        BadInput: the folder exists already, or cannot be written.
    """
    if root.exists():
        raise BadInput(f"{root}: exists already; give a new folder")
    part = root.with_name(f"{root.name}.part-{os.getpid()}")
    try:
        part.mkdir(parents=True)
        yield part
        part.replace(root)
    except OSError as error:
        reason = error.strerror or error
        raise BadInput(f"{root}: {reason}; give a folder that can be written") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _part(path: Path) -> Path:
    # The pid: two ranks may say at once how the run stands.
    return path.with_name(f".{path.name}.{os.getpid()}.part")
