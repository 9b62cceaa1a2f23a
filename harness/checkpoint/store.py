"""Store: checkpoints as files. A checkpoint exists only once its manifest does.

checkpoints/step-000000120.pt     the state
checkpoints/step-000000120.json   written last: size and SHA-256 of the state; line 2: its own SHA
checkpoints/aside/                incomplete, damaged or discarded checkpoints
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.utils.serialization import config as serialization

from harness.system.files import discard, fsync, write_atomic, written

State = dict[str, Any]
ASIDE = "aside"


@dataclass(frozen=True)
class Found:
    """A valid checkpoint, loaded into host memory."""

    path: Path
    state: State


def publish(folder: Path, state: State, about: dict[str, Any]) -> Path:
    """Write a checkpoint and its manifest, `about` it, completely or not at all; return its path.

    Raises:
        OSError: the disk is full or the folder is missing; partial files are removed.
    """
    path = folder / f"step-{about['step']:09d}.pt"
    manifest = path.with_suffix(".json")
    digest = hashlib.sha256()
    try:
        # The CRC-32 of torch's zip takes a fifth of the time, and SHA-256 proves more.
        with serialization.patch("save.compute_crc32", False):  # type: ignore[attr-defined]
            complete = written(path, lambda part: _save(state, part, digest))
        size = complete.stat().st_size
        facts = about | {"file": path.name, "bytes": size, "sha256": digest.hexdigest()}
        line = json.dumps(facts).encode()
        proof = written(manifest, lambda part: part.write_bytes(line + _proof_of(line)))
        manifest.unlink(missing_ok=True)  # from an earlier attempt at this step
        complete.replace(path)
        proof.replace(manifest)
        fsync(folder)
    finally:
        discard(path)
        discard(manifest)
    return path


def save_atomic(value: Any, path: Path) -> None:
    """Write a file with `torch.save` completely, or not at all.

    Raises:
        OSError: it cannot be written; partial files are removed.
    """
    write_atomic(path, lambda part: _save(value, part))


def newest(folder: Path, say: Callable[[str], None]) -> Found | None:
    """Return the newest valid checkpoint; report invalid ones and move them aside."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)  # from a save that was killed
    for path in sorted(folder.glob("step-*.pt"), reverse=True):
        try:
            return Found(path, _load(path))
        except _Damaged as why:
            aside = _move_aside(path)
            say(f"{path}: {why}: not used, kept as {aside}")
    return None


def last_before(folder: Path, step: int) -> Path | None:
    """Return the newest checkpoint before `step`; move those of `step` or later aside."""
    for path in sorted(folder.glob("step-*.pt"), reverse=True):
        if path.name < f"step-{step:09d}.pt":
            return path
        _move_aside(path)
    return None


def prune(folder: Path, keep: int, keep_every_epochs: int) -> None:
    """Remove all but the newest `keep`, and one of every `keep_every_epochs` epochs."""
    for path in sorted(folder.glob("step-*.pt"), reverse=True)[keep:]:
        with suppress(_Damaged):
            epochs = _manifest(path)["epochs_done"]  # None: it lies within an epoch
            if keep_every_epochs and epochs and epochs % keep_every_epochs == 0:
                continue
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)


class _Damaged(Exception):
    """A checkpoint is not what its manifest says."""


def _load(path: Path) -> State:
    facts = _manifest(path)
    if path.stat().st_size != facts["bytes"]:
        raise _Damaged(f"{path.stat().st_size:,} bytes, not {facts['bytes']:,}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != facts["sha256"]:
        raise _Damaged("its SHA-256 is not that of the manifest")
    state: State = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _manifest(path: Path) -> dict[str, Any]:
    try:
        content = path.with_suffix(".json").read_bytes()
    except FileNotFoundError:
        raise _Damaged("has no manifest, so that it was never complete") from None
    line = content.partition(b"\n")[0]
    if content != line + _proof_of(line):
        raise _Damaged("its manifest is damaged")
    facts: dict[str, Any] = json.loads(line)
    return facts


def _move_aside(path: Path) -> Path:
    folder = path.parent / ASIDE
    folder.mkdir(exist_ok=True)
    aside = folder / f"{len(list(folder.glob('*.pt')))}-{path.name}"
    with suppress(FileNotFoundError):
        path.with_suffix(".json").replace(aside.with_suffix(".json"))
    return path.replace(aside)


class _Hashed:
    """A file that is hashed while it is written: torch.save writes it in order, without seeking."""

    def __init__(self, file: BinaryIO, digest: "hashlib._Hash") -> None:
        self._file, self._digest = file, digest

    def write(self, data: memoryview) -> int:
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _save(value: Any, part: Path, digest: "hashlib._Hash | None" = None) -> None:
    try:
        with part.open("wb") as file:
            torch.save(value, file if digest is None else _Hashed(file, digest))  # type: ignore[arg-type]
    except RuntimeError as error:
        # torch's writer raises this when the disk is full; the OSError is its context.
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def _proof_of(line: bytes) -> bytes:
    return f"\n{hashlib.sha256(line).hexdigest()}\n".encode()
