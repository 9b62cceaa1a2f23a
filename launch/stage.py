"""Copy the images to the node's own disk before training: once per node, under srun.

python launch/stage.py FOLDER [--flags-to FILE] [CONFIG.yaml] [--section.key value ...]

Each folder of images becomes FOLDER/<name>-<hash of its path>, complete or not there at all. A copy
that is there is checked, and completed if need be; one that was cut short goes on. The flags that
point to the copies are printed, or written to FILE, one word a line.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

# Run as a file, a checkout needs no installation of itself.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness.config import Config, load
from harness.errors import BadInput, HarnessError, RunFailed
from harness.system.console import count, out
from harness.system.parallel import in_parallel

THREADS = 16
"""A network disk answers many at once, each slowly."""
CHUNK_BYTES = 4 * 2**20
VERIFY_S = 10.0
"""How long a copy is read to compare digests: all of a small one, a random part of a large one."""
MANIFEST = ".stage-manifest"


class Entry(NamedTuple):
    """A file below the folder of images, as the source has it."""

    path: str
    size: int
    mtime_ns: int


Known = dict[str, tuple[Entry, str]]
"""What a copy holds: for each path the file as it was copied, and the digest of its bytes."""


def stage(source: Path, root: Path) -> Path:
    """The copy of a folder of images below `root`, made or completed if need be.

    Raises:
        BadInput: the source cannot be read, or the disk is too small.
        RunFailed: the source changes meanwhile, or the disk gives back other bytes.
    """
    tag = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:8]
    target = root / f"{source.resolve().name}-{tag}"
    part = root / f".{target.name}.part"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{target.name}.lock"):  # jobs that share the node make one copy
        folders, entries = _listed(source)
        if target.exists() and not (wrong := _wrong(target, entries)):
            out.print(f"{target}: {count(len(entries), 'file')} there already")
            return target
        if target.exists():
            out.print(f"{target}: {count(len(wrong), 'file')} differ from {source}")
            target.rename(part)
        for folder in folders:
            (part / folder).mkdir(parents=True, exist_ok=True)
        known = _copied(source, part, entries)
        _remove_others(part, set(folders), known)
        for folder in reversed(folders):  # what keys the index; each after what lies in it
            told = (source / folder).stat()
            os.utime(part / folder, ns=(told.st_atime_ns, told.st_mtime_ns))
        if wrong := _wrong(part, entries):
            raise RunFailed(f"{part / wrong[0].path}: the disk gives back other bytes than written")
        part.rename(target)
    return target


def _listed(source: Path) -> tuple[list[str], list[Entry]]:
    """Folders, each before those in it, and files."""
    folders, entries = ["."], list[Entry]()
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            level = ["."]
            while level:
                found = pool.map(lambda folder: _scan(source, folder), level)
                level = []
                for inner, files in found:
                    level += inner
                    entries += files
                folders += level
    except OSError as error:
        raise BadInput(f"{error.filename}: {error.strerror}; cannot be staged") from None
    return folders, entries


def _scan(source: Path, folder: str) -> tuple[list[str], list[Entry]]:
    inner, files = [], []
    with os.scandir(source / folder) as entries:
        for entry in entries:
            path = os.path.normpath(f"{folder}/{entry.name}")
            if entry.is_dir():
                inner.append(path)
            elif entry.is_file() and not entry.name.endswith((".lock", ".part.npz")):
                told = entry.stat()
                files.append(Entry(path, told.st_size, told.st_mtime_ns))
    return inner, files


def _copied(source: Path, part: Path, entries: list[Entry]) -> Known:
    """Copy what is not there yet; the manifest is written last."""
    known = _known(part)
    missing = [entry for entry in entries if not _is_there(part, entry, known)]
    needed, free = sum(entry.size for entry in missing), shutil.disk_usage(part).free
    if needed > 0.98 * free:
        raise BadInput(
            f"{part.parent}: {free / 2**30:.1f} GiB free, and {source} needs {needed / 2**30:.1f}; "
            "make room, or stage nothing"
        )
    began = time.monotonic()

    def copy(entry: Entry) -> str:
        # Has its name and its time once it is whole: all that is known if staging was cut short.
        if entry.path not in known and _same(part / entry.path, entry):
            return _digest(part / entry.path)
        return _copy(source / entry.path, part / entry.path, entry)

    digests = list(in_parallel(copy, missing, threads=THREADS, what=f"copying {source}"))
    known |= {e.path: (e, digest) for e, digest in zip(missing, digests, strict=True)}
    known = {entry.path: known[entry.path] for entry in entries}
    lines = (f"{d}\t{e.size}\t{e.mtime_ns}\t{e.path}\n" for e, d in known.values())
    (part / MANIFEST).write_text("".join(lines), errors="surrogateescape")
    rate = needed / 2**20 / max(time.monotonic() - began, 1e-3)
    out.print(f"{source}: {count(len(missing), 'file')} copied, {rate:,.0f} MiB/s")
    return known


def _copy(source: Path, target: Path, entry: Entry) -> str:
    """Copy a file; its digest, taken from what was read."""
    beside = target.with_name(f".{target.name}.part")
    digest, size = hashlib.blake2b(digest_size=16), 0
    try:
        with source.open("rb") as reads, beside.open("wb") as writes:
            while chunk := reads.read(CHUNK_BYTES):
                digest.update(chunk)
                writes.write(chunk)
                size += len(chunk)
    except OSError as error:
        raise RunFailed(f"{error.filename or target}: {error.strerror}; not staged") from None
    if size != entry.size:
        raise RunFailed(f"{source}: changes while it is copied; stage again when it is at rest")
    os.utime(beside, ns=(entry.mtime_ns, entry.mtime_ns))
    beside.replace(target)
    return digest.hexdigest()


def _wrong(copy: Path, entries: list[Entry]) -> list[Entry]:
    """What a copy lacks or has otherwise: by size and time for all, by digest for VERIFY_S."""
    known = _known(copy)
    wrong = [entry for entry in entries if not _is_there(copy, entry, known)]
    wrong_paths = {entry.path for entry in wrong}
    order = [entry for entry in entries if entry.path not in wrong_paths]
    random.shuffle(order)
    latest, read = time.monotonic() + VERIFY_S, 0

    def differs(entry: Entry) -> bool | None:
        if time.monotonic() > latest:
            return None
        return _digest(copy / entry.path) != known[entry.path][1]

    answers = in_parallel(differs, order, threads=THREADS, what=f"checking {copy}")
    for entry, answer in zip(order, answers, strict=True):
        read += answer is not None
        if answer:
            (copy / entry.path).unlink()  # as if it had never been copied
            wrong.append(entry)
    if not wrong:
        out.print(f"{copy}: all sizes agree, and the digests of {count(read, 'file')}")
    return wrong


def _is_there(copy: Path, entry: Entry, known: Known) -> bool:
    return entry.path in known and known[entry.path][0] == entry and _same(copy / entry.path, entry)


def _same(path: Path, entry: Entry) -> bool:
    try:
        told = path.stat()
    except OSError:
        return False
    return (told.st_size, told.st_mtime_ns) == (entry.size, entry.mtime_ns)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _known(copy: Path) -> Known:
    try:
        text = (copy / MANIFEST).read_text(errors="surrogateescape")
    except OSError:
        return {}
    known = {}
    for line in text.splitlines():
        digest, size, mtime_ns, path = line.split("\t", 3)
        known[path] = (Entry(path, int(size), int(mtime_ns)), digest)
    return known


def _remove_others(part: Path, folders: set[str], known: Known) -> None:
    """What the source has no more."""
    inside, entries = _listed(part)
    for entry in entries:
        if entry.path not in known and entry.path != MANIFEST:
            (part / entry.path).unlink()
    for folder in reversed(inside):
        if folder not in folders:
            (part / folder).rmdir()


def _folders_of(config: Config) -> dict[str, Path]:
    """The flag of each folder of images that the run reads from a disk."""
    if config.data.source == "synthetic":
        return {}
    given = {"--data.train": config.data.train, "--data.val": config.data.val}
    return {flag: Path(name) for flag, name in given.items() if name and name != "demo"}


def main() -> None:
    """Stage, and say with which flags to train on the copies."""
    words = sys.argv[1:]
    try:
        if not words or words[0].startswith("-"):
            raise BadInput("name the folder to copy to: python launch/stage.py FOLDER ...")
        root, words, flags_to = Path(words[0]), words[1:], None
        if words[:1] == ["--flags-to"]:
            flags_to, words = Path(words[1]), words[2:]
        folders = _folders_of(load.load(words, prog="python launch/stage.py FOLDER"))
        copies = {path: stage(path, root) for path in set(folders.values())}
        flags = [word for flag, path in folders.items() for word in (flag, str(copies[path]))]
    except HarnessError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_code)
    # The same on each node: one of them tells.
    if flags_to is None:
        print(*flags)
    elif os.environ.get("SLURM_NODEID", "0") == "0":
        flags_to.write_text("".join(f"{word}\n" for word in flags))


if __name__ == "__main__":
    main()
