"""Copy the images to the node's own disk before training: run it once per node, under srun.

python launch/stage.py FOLDER [--flags-to FILE] [CONFIG.yaml] [--section.key value ...]

rsync copies each folder of images to FOLDER/<name>-<hash of its path>, which only appears when
complete. An existing copy is checked, and completed if necessary; an interrupted one is continued.
Prints the flags that point to the copies, or writes them to FILE, one argument per line.
"""

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

from harness.config import load
from harness.errors import BadInput, HarnessError, RunFailed, one_line
from harness.system.console import count, out
from harness.system.process import outlive_streams, require_output
from harness.system.progress import in_parallel

THREADS = 16
"""Number of parallel rsyncs, one per class or shard: single requests to a network disk are slow."""
VERIFY_S = 10.0
"""Time limit, s, for comparing files in random order; a large copy is only sampled."""
RSYNC = (
    *("rsync", "-rtL", "--whole-file", "--delete", "--chmod=ugo=rwX", "--modify-window=-1"),
    *("--exclude=*.lock", "--exclude=*.part.npz"),
)
"""Recursive, following links, with modification times to the nanosecond (keys of the index)."""


def stage(source: Path, root: Path) -> Path:
    """Return the copy of a folder of images below `root`; make or complete it if necessary.

    Raises:
        BadInput: the source cannot be read, the disk is too small, or rsync is missing.
        RunFailed: a copy cannot be written, or has other bytes than the source.
    """
    if shutil.which("rsync") is None:
        raise BadInput("rsync: not on this node; install it, or unset HARNESS_STAGE")
    tag = hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:8]
    target = root / f"{source.resolve().name}-{tag}"
    part = root / f".{target.name}.part"
    try:
        names = sorted(os.listdir(source))
    except OSError as error:
        raise BadInput(f"{error.filename}: {error.strerror}; cannot be staged") from None
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{target.name}.lock"):  # jobs on the same node share one copy
        if target.exists():
            for path in _differing(source, target):
                (target / path).unlink()  # rsync goes by size and time, and would keep it
            if not (changes := _changes(source, target, names)):
                out.print(f"{target}: already complete")
                return target
            out.print(f"{target}: {count(len(changes), 'difference')} from {source}")
            target.rename(part)
        part.mkdir(exist_ok=True)
        _copy(source, part, names)
        if wrong := _differing(source, part):
            raise RunFailed(f"{part / wrong[0]}: the disk gives back other bytes than written")
        part.rename(target)
    return target


def _changes(source: Path, copy: Path, names: Sequence[str]) -> list[int | None]:
    """Return, for each change that rsync would make, the bytes to copy; None if there are none."""
    look = partial(_rsync, ("--dry-run", "--out-format=%i %l"), source, copy)
    try:
        listed = [*in_parallel(look, names, threads=THREADS, what=f"looking at {source}")]
    except RunFailed as error:
        raise BadInput(f"{error}; cannot be staged") from None
    changes = (line.split() for lines in listed for line in lines.splitlines())
    return [int(size) if kind.startswith(">f") else None for kind, size in changes]


def _copy(source: Path, part: Path, names: Sequence[str]) -> None:
    sizes = [size for size in _changes(source, part, names) if size is not None]
    needed, free = sum(sizes), shutil.disk_usage(part).free
    if needed > 0.98 * free:
        raise BadInput(
            f"{part.parent}: {free / 2**30:.1f} GiB free, and {source} needs {needed / 2**30:.1f}; "
            "free some space, or unset HARNESS_STAGE"
        )
    began = time.monotonic()
    copy = partial(_rsync, (), source, part)
    list(in_parallel(copy, names, threads=THREADS, what=f"copying {source}"))
    # Then delete what the source no longer has, and set the folder's time, a key of the index.
    _rsync(("--no-recursive", "--dirs"), source, part, "")
    rate = needed / 2**20 / max(time.monotonic() - began, 1e-3)
    out.print(f"{source}: {count(len(sizes), 'file')} copied, {rate:,.0f} MiB/s")


def _rsync(options: tuple[str, ...], source: Path, copy: Path, name: str) -> str:
    """Copy a file or folder of the source, or all of it without a name; return rsync's output."""
    paths = [os.path.abspath(source / name) + ("" if name else "/"), f"{os.path.abspath(copy)}/"]
    command = [*RSYNC, *options, "--", *paths]
    done = subprocess.run(command, capture_output=True, text=True, errors="surrogateescape")
    if done.returncode:
        raise RunFailed(f"{paths[0]}: {done.stderr.strip().splitlines()[0]}")
    return done.stdout


def _differing(source: Path, copy: Path) -> list[str]:
    """Return files whose bytes differ from the source's, of those compared within VERIFY_S."""
    filecmp.clear_cache()  # it caches results by size and time
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
            return False  # missing on one side, which rsync will fix

    results = list(in_parallel(differs, files, threads=THREADS, what=f"checking {copy}"))
    compared = sum(result is not None for result in results)
    out.print(f"{copy}: the bytes of {count(compared, 'file')} of {len(files):,} compared")
    return [path for path, result in zip(files, results, strict=True) if result]


def main() -> None:
    """Stage the images, and print the flags for training on the copies."""
    outlive_streams()
    argv = sys.argv[1:]
    try:
        if not argv or argv[0].startswith("-"):
            raise BadInput("name the folder to copy to: python launch/stage.py FOLDER ...")
        root, argv, flags_to = Path(argv[0]), argv[1:], None
        if argv[:1] == ["--flags-to"]:
            flags_to, argv = Path(argv[1]), argv[2:]
        data = load.load(argv, prog="python launch/stage.py FOLDER").data
        given = {"--data.train": data.train, "--data.val": data.val}
        if data.source == "synthetic":
            given = {}
        folders = {flag: Path(name) for flag, name in given.items() if name and name != "demo"}
        copies = {path: stage(path, root) for path in set(folders.values())}
        flags = [part for flag, path in folders.items() for part in (flag, str(copies[path]))]
        # The flags are the same on each node, so that one node writes them.
        if flags_to is None:
            print(*flags)
            require_output()
        elif os.environ.get("SLURM_NODEID", "0") == "0":
            flags_to.write_bytes(os.fsencode("".join(f"{part}\n" for part in flags)))
    except HarnessError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
