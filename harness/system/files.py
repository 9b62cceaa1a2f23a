"""Write files and folders atomically and durably: completely or not at all, even after a crash."""

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
    """Call `fill` with a temporary path, fsync that file, and rename it to `path`.

    Raises:
        OSError: it cannot be written; the temporary file is removed.
    """
    try:
        written(path, fill).replace(path)
        fsync(path.parent)
    finally:
        discard(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file in the same way, in UTF-8."""
    write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))


def written(path: Path, fill: Callable[[Path], Any]) -> Path:
    """Do as `write_atomic` does, without the rename; return the temporary path."""
    fill(part := _part(path))
    fsync(part)
    return part


def discard(path: Path) -> None:
    """Remove the temporary file of `path`, if it has not been renamed."""
    with suppress(OSError):
        _part(path).unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Force a folder and everything in it to the disk.

    It syncs the whole file system: thousands of small files, each synced by itself, would take
    minutes on a slow disk.

    Raises:
        OSError: not everything could be written to the disk.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if _LIBC.syncfs(descriptor):
            raise OSError(number := ctypes.get_errno(), os.strerror(number), str(folder))
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(root: Path) -> Iterator[Path]:
    """Yield a temporary folder, which is renamed to `root` at the end of the block.

    If the block fails, the temporary folder is removed.

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
    # With the pid, as two ranks may write the same file at once.
    return path.with_name(f".{path.name}.{os.getpid()}.part")
