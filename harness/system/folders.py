"""Write whole folders: completely or not at all, and durably."""

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import BadInput

_LIBC = ctypes.CDLL(None, use_errno=True)


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
