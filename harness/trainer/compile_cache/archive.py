"""Archive: a folder of compiled graphs as one file, which is whole or not used.

compile/KEY-CHECKSUM.tar.gz     the name says what it must hold: one rename makes it, or nothing
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.system.files import discard, fsync, written
from harness.system.folders import sync_tree

ABOUT = "about.json"
_SUFFIX = ".tar.gz"
_LOCKS = "locks"  # inductor's, of processes that are gone


def names(folder: Path, key: str) -> list[Path]:
    """The archives of this key."""
    return sorted(folder.glob(f"{key}-*{_SUFFIX}"))


def pack(graphs: Path, folder: Path, key: str, facts: dict[str, Any]) -> Path:
    """Write all files of `graphs` into an archive, with the key's facts, in an older one's place.

    Raises:
        OSError: the disk is full, the folder gone; nothing is left, an older one stays.
    """
    folder.mkdir(exist_ok=True)
    draft = folder / f"{key}{_SUFFIX}"
    try:
        part = written(draft, lambda part: _fill(part, graphs, facts))
        path = folder / f"{key}-{_checksum(part)}{_SUFFIX}"
        older = [each for each in names(folder, key) if each != path]
        part.replace(path)
        fsync(folder)
    finally:
        discard(draft)
    for each in older:
        each.unlink(missing_ok=True)
    return path


def unpack(folder: Path, key: str, to: Path, say: Callable[[str], None]) -> Path | None:
    """Make the folder `to` of an archive of this key, and tell which; a damaged one is named.

    One process at a time may unpack to one place; none may pack meanwhile.

    Raises:
        OSError: it cannot be read, or there is no room for it; `to` is not there.
    """
    for cut_short in folder.glob(f".*{_SUFFIX}.*.part"):
        cut_short.unlink(missing_ok=True)
    for cut_short in to.parent.glob(f"{to.name}.*.unpacking"):
        shutil.rmtree(cut_short, ignore_errors=True)
    for path in names(folder, key):
        if path.name != f"{key}-{_checksum(path)}{_SUFFIX}":
            aside = path.with_name(f"{path.name}.damaged")
            with suppress(OSError):  # another node may have been faster
                path.replace(aside)
            say(f"{path}: is damaged: not used, kept as {aside}; compiling again")
            continue
        part = to.with_name(f"{to.name}.{os.getpid()}.unpacking")
        try:
            with tarfile.open(path) as archive:
                archive.extractall(part, filter="data")
            sync_tree(part)
            part.replace(to)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return path
    return None


def _fill(part: Path, graphs: Path, facts: dict[str, Any]) -> None:
    # The level: 7 MB become 1.8 in a tenth of a second, and hardly less at any other.
    with tarfile.open(part, "w:gz", compresslevel=1) as archive:
        text = json.dumps(facts, indent=2).encode()
        about = tarfile.TarInfo(ABOUT)
        about.size = len(text)
        archive.addfile(about, io.BytesIO(text))
        for path in sorted(graphs.rglob("*")):
            inside = path.relative_to(graphs)
            if path.is_file() and inside.parts[0] not in (_LOCKS, ABOUT):
                archive.add(path, str(inside))


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
