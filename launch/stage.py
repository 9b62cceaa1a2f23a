"""Copy the images to the node's own disk before training: once per node, under srun.

python launch/stage.py FOLDER [--flags-to FILE] [CONFIG.yaml] [--section.key value ...]

By rsync, each folder of images becomes FOLDER/<name>-<hash of its path>, complete or not there at
all. A copy that is there is checked, and completed if need be; one that was cut short goes on. The
flags that point to the copies are printed, or written to FILE, one word a line.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from filelock import FileLock

# Run as a file, a checkout needs no installation of itself.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness.config import Config, load
from harness.errors import BadInput, HarnessError, RunFailed
from harness.system.console import count, out
from harness.system.parallel import in_parallel

THREADS = 16
"""A network disk answers many at once, each slowly: so many rsyncs, one per class or shard."""
VERIFY_S = 10.0
"""How long a copy is compared with the images: all of a few, some of many, picked at random."""
RSYNC = (
    *("rsync", "-rtL", "--whole-file", "--delete", "--chmod=ugo=rwX"),
    *("--exclude=*.lock", "--exclude=*.part.npz"),
)
"""Folders with all in them, times (they key the index), files instead of links to them."""


def stage(source: Path, root: Path) -> Path:
    """The copy of a folder of images below `root`, made or completed if need be.

    Raises:
        BadInput: the source cannot be read, the disk is too small, or there is no rsync.
        RunFailed: a copy cannot be written, or the disk gives back other bytes.
    """
    if shutil.which("rsync") is None:
        raise BadInput("rsync: not on this node; install it, or unset HARNESS_STAGE")
    tag = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:8]
    target = root / f"{source.resolve().name}-{tag}"
    part = root / f".{target.name}.part"
    try:
        inside = sorted(os.listdir(source))
    except OSError as error:
        raise BadInput(f"{error.filename}: {error.strerror}; cannot be staged") from None
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{target.name}.lock"):  # jobs that share the node make one copy
        if target.exists():
            for path in _differing(source, target):
                (target / path).unlink()  # as if it had never been copied
            if not (changes := _changes(source, target, inside)):
                out.print(f"{target}: there already")
                return target
            out.print(f"{target}: {count(len(changes), 'difference')} from {source}")
            target.rename(part)
        part.mkdir(exist_ok=True)
        _copy(source, part, inside)
        if wrong := _differing(source, part):
            raise RunFailed(f"{part / wrong[0]}: the disk gives back other bytes than written")
        part.rename(target)
    return target


def _changes(source: Path, copy: Path, names: Sequence[str]) -> list[int | None]:
    """Of each change that rsync would make, by sizes and times: bytes to copy, null if none are."""

    def look(name: str) -> list[str]:
        return _rsync(source, copy, name, "--dry-run", "--out-format=%i %l").splitlines()

    try:
        found = in_parallel(look, names, threads=THREADS, what=f"looking at {source}")
        changes = [line.split() for lines in found for line in lines]
    except RunFailed as error:
        raise BadInput(f"{error}; cannot be staged") from None
    return [int(size) if kind.startswith(">f") else None for kind, size in changes]


def _copy(source: Path, part: Path, names: Sequence[str]) -> None:
    sizes = [size for size in _changes(source, part, names) if size is not None]
    needed, free = sum(sizes), shutil.disk_usage(part).free
    if needed > 0.98 * free:
        raise BadInput(
            f"{part.parent}: {free / 2**30:.1f} GiB free, and {source} needs {needed / 2**30:.1f}; "
            "make room, or stage nothing"
        )
    began = time.monotonic()
    copy = partial(_rsync, source, part)
    list(in_parallel(copy, names, threads=THREADS, what=f"copying {source}"))
    # The folder itself loses what the source has no more; its time, a key of the index, is last.
    _rsync(source, part, "", "--no-recursive", "--dirs")
    rate = needed / 2**20 / max(time.monotonic() - began, 1e-3)
    out.print(f"{source}: {count(len(sizes), 'file')} copied, {rate:,.0f} MiB/s")


def _rsync(source: Path, copy: Path, name: str, *options: str) -> str:
    """Copy a file or folder of the source, or if nameless itself; what rsync prints.

    Raises:
        RunFailed: with the first line of what is wrong.
    """
    paths = [os.path.abspath(source / name) + ("" if name else "/"), f"{os.path.abspath(copy)}/"]
    command = [*RSYNC, *options, "--", *paths]
    done = subprocess.run(command, capture_output=True, text=True, errors="surrogateescape")
    if done.returncode:
        raise RunFailed(f"{paths[0]}: {done.stderr.strip().splitlines()[0]}")
    return done.stdout


def _differing(source: Path, copy: Path) -> list[str]:
    """Files that have other bytes than the source, of those read in VERIFY_S."""
    filecmp.clear_cache()  # it keeps its answers by size and time
    files = [os.path.relpath(os.path.join(folder, name), copy)
             for folder, _, names in os.walk(copy) for name in names]  # fmt: skip
    random.shuffle(files)
    latest = time.monotonic() + VERIFY_S

    def differs(path: str) -> bool | None:
        if time.monotonic() > latest:
            return None
        try:
            return not filecmp.cmp(source / path, copy / path, shallow=False)
        except OSError:
            return False  # one of them has it not: rsync will see to it

    answers = list(in_parallel(differs, files, threads=THREADS, what=f"checking {copy}"))
    read = sum(answer is not None for answer in answers)
    out.print(f"{copy}: the bytes of {count(read, 'file')} of {len(files):,} compared")
    return [path for path, answer in zip(files, answers, strict=True) if answer]


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
