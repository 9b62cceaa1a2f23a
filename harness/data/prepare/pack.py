"""Pack images into WebDataset tar shards: the same bytes for any number of workers, kills or not.

Which image goes into which shard, and where, is settled before the first is read. A shard gets its
name when it is whole and on the disk; pack.json lists it then. What was killed goes on from there.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import repeat
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import IO, Any, cast

from filelock import FileLock, Timeout

from harness.data import manifest, stream
from harness.data.prepare.encode import Encoding, encoded
from harness.data.prepare.sources import Source
from harness.errors import BadInput, RunFailed
from harness.system.console import count, out, track
from harness.system.files import write_atomic

_LOCK = ".pack.lock"
_TICK = 25  # images between two words to the progress bar
_FREE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Packing:
    """How images are packed. All of it is in the bytes of the shards.

    Attributes:
        shard_images: images per shard.
        seed: of the order in the shards; None keeps the order of classes.
        encoding: what is done to an image.
    """

    shard_images: int
    seed: int | None
    encoding: Encoding

    def options(self) -> dict[str, int | str | None]:
        """As pack.json holds them."""
        return {"shard_images": self.shard_images, "seed": self.seed, **asdict(self.encoding)}


def pack(source: Source, dest: Path, how: Packing, workers: int) -> manifest.Manifest:
    """Write the shards of one split into a folder of their own, or go on with it.

    Raises:
        BadInput: the folder holds something else, or the same with other options; an image cannot
            be read; the disk is too small.
        RunFailed: the disk fills up meanwhile; what is finished stays.
    """
    _refuse_one_name(source)
    try:
        dest.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{dest}: {error.strerror}; give a folder that can be written") from None
    with _alone(dest):
        told = _begun(source, dest, how)
        if told.finished:
            return told
        for left in dest.glob(".*.part"):  # of an attempt that was killed
            left.unlink()
        todo = {name: ids for name, ids in _plan(source, how).items() if name not in told.shards}
        _check_room(source, dest, how, todo)
        if told.shards:
            out.print(f"{dest}: {count(len(told.shards), 'shard')} there, {len(todo)} to go")
        try:
            for name, shard in _written(source, dest, how, todo, workers):
                told = told.model_copy(update={"shards": told.shards | {name: shard}})
                manifest.write(dest, told)
            shards = {name: told.shards[name] for name in sorted(told.shards)}
            told = told.model_copy(update={"shards": shards, "finished": True})
            manifest.write(dest, told)
        except OSError as error:
            raise RunFailed(
                f"{dest}: {error.strerror} after {count(len(told.shards), 'shard')}"
                + ("; make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "")
                + ", and give the same command again: it goes on from there"
            ) from None
    return told


@contextmanager
def _alone(dest: Path) -> Iterator[None]:
    """One at a time packs into a folder."""
    lock = FileLock(dest / _LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise BadInput(f"{dest}: another process packs into it; wait for it, or end it") from None
    try:
        yield
    finally:
        if (told := manifest.read(dest)) and told.finished:
            # Whoever has it open already will find all finished; else a second one could begin.
            (dest / _LOCK).unlink()
        lock.release()


def _begun(source: Source, dest: Path, how: Packing) -> manifest.Manifest:
    """What is in the folder already, if it is of the same images and options."""
    fresh = manifest.Manifest(
        source=source.kind, digest=source.digest, images=len(source), options=how.options()
    )
    told = manifest.read(dest)
    if told is None:
        if others := sorted(set(os.listdir(dest)) - {_LOCK}):
            raise BadInput(f"{dest}: holds {others[0]} already; give a new folder")
        manifest.write(dest, fresh)
        return fresh
    differ = [
        f"{key} {told.options.get(key)}, now {value}"
        for key, value in fresh.options.items()
        if told.options.get(key) != value
    ]
    if told.digest != fresh.digest:
        differ.append(f"{told.images:,} other images, now {fresh.images:,} of {source.root}")
    if differ:
        raise BadInput(
            f"{dest}: was begun with {'; '.join(differ)}; give the same again, or a new folder"
        )
    return told


def _refuse_one_name(source: Source) -> None:
    """Two samples of one name that follow each other in a shard would be read as one."""
    seen: dict[str, int] = {}
    for image, name in enumerate(source.names):
        if (other := seen.setdefault(name, image)) != image:
            raise BadInput(
                f"{source.where(image)}: {source.where(other)} is called {name} too; a shard knows "
                "images by their names: rename one"
            )


def _plan(source: Source, how: Packing) -> dict[str, Sequence[int]]:
    """The images of each shard, by its name."""
    size = len(source)
    ids = list(range(size)) if how.seed is None else stream.order(how.seed, 0, size).tolist()
    cuts = range(0, size, how.shard_images)
    return {
        f"{source.split or 'images'}-{number:06d}.tar": ids[first : first + how.shard_images]
        for number, first in enumerate(cuts)
    }


def _check_room(source: Source, dest: Path, how: Packing, todo: dict[str, Sequence[int]]) -> None:
    """Refuse before any work what cannot fit; re-encoded images are smaller by nobody knows what.

    Raises:
        BadInput: says how much is needed.
    """
    if source.sizes is None or how.encoding.asked:
        return
    sizes = source.sizes
    needed = sum(sizes[image] + 2560 for ids in todo.values() for image in ids)
    free = shutil.disk_usage(dest).free
    if needed + _FREE_BYTES > free:
        raise BadInput(
            f"{dest}: {free / 2**30:,.1f} GiB free, and the shards need {needed / 2**30:,.1f}; "
            "make room, or give a folder on another disk"
        )


def _written(
    source: Source, dest: Path, how: Packing, todo: dict[str, Sequence[int]], workers: int
) -> Iterator[tuple[str, manifest.Shard]]:
    """Write the shards, several at once, with a bar that counts images."""
    work = _Work(source, how.encoding)
    finished: list[tuple[str, manifest.Shard]] = []
    total = sum(map(len, todo.values()))
    with ThreadPoolExecutor(workers, thread_name_prefix="pack") as pool:
        jobs = {pool.submit(work.write, ids, dest / name): name for name, ids in todo.items()}
        for job in jobs:
            job.add_done_callback(work.wake)
        try:
            ticks = work.ticks(jobs, finished)
            for _ in track(ticks, total=total, what=f"packing {dest}", unit="images"):
                while finished:
                    yield finished.pop(0)
            yield from finished
        finally:
            work.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


class _Work:
    """Shards being written: what the threads share."""

    def __init__(self, source: Source, encoding: Encoding) -> None:
        self.stop = Event()
        self._source, self._encoding = source, encoding
        self._packed: SimpleQueue[int] = SimpleQueue()

    def ticks(
        self, jobs: dict[Future[manifest.Shard], str], finished: list[tuple[str, manifest.Shard]]
    ) -> Iterator[None]:
        """Once per image that is packed; puts each shard that is done into `finished`."""
        left = dict(jobs)
        while left or not self._packed.empty():
            yield from repeat(None, self._packed.get())
            for job in [job for job in left if job.done()]:
                finished.append((left.pop(job), job.result()))

    def wake(self, job: Future[manifest.Shard]) -> None:
        """Have `ticks` look which shards are done."""
        self._packed.put(0)

    def write(self, ids: Sequence[int], path: Path) -> manifest.Shard:
        """Write a shard."""
        hashed = _Hashed()
        write_atomic(path, lambda part: self._fill(part, ids, hashed))
        return manifest.Shard(images=len(ids), bytes=hashed.bytes, sha256=hashed.sha256.hexdigest())

    def _fill(self, part: Path, ids: Sequence[int], hashed: _Hashed) -> None:
        source, since = self._source, 0
        # w|: as to a pipe, without going back.
        with part.open("wb") as hashed.file, tarfile.open(
            fileobj=cast(Any, hashed), mode="w|", format=tarfile.USTAR_FORMAT
        ) as tar:  # fmt: skip
            for image in ids:
                if self.stop.is_set():
                    raise RunFailed("stopped")
                where = source.where(image)
                suffix, content = encoded(source.whole(image), self._encoding, where)
                _add(tar, source, image, suffix, content)
                _add(tar, source, image, "cls", b"%d" % source.labels[image])
                if (since := since + 1) == _TICK:
                    self._packed.put(since)
                    since = 0
        self._packed.put(since)


def _add(tar: tarfile.TarFile, source: Source, image: int, suffix: str, content: bytes) -> None:
    folder, slash, stem = source.names[image].rpartition("/")
    member = tarfile.TarInfo(f"{folder}{slash}{manifest.escaped(stem)}.{suffix}")
    member.size, member.mode = len(content), 0o644
    try:
        tar.addfile(member, BytesIO(content))
    except ValueError:
        raise BadInput(
            f"{source.where(image)}: its name is longer than a tar can hold; rename it"
        ) from None


class _Hashed:
    """A file to write to, with the digest of what was written."""

    def __init__(self) -> None:
        self.file: IO[bytes]
        self.sha256: Any = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> int:
        """Write, and count."""
        self.sha256.update(data)
        self.bytes += len(data)
        return self.file.write(data)
