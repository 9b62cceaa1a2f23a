"""Write files atomically and durably: completely or not at all, even after a crash."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


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


def _part(path: Path) -> Path:
    # With the pid, as two ranks may write the same file at once.
    return path.with_name(f".{path.name}.{os.getpid()}.part")
