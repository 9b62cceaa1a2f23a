"""Pack images into WebDataset tar shards, with the same bytes for any number of workers and kills.

The shard and position of each image are planned before the first image is read. A shard gets its
name once it is complete and on the disk, and is then listed in pack.json; a killed pack resumes
from there.
"""

import errno
import hashlib
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from threading import Event

from filelock import FileLock, Timeout
from PIL import Image

from harness.data import manifest, picture, stream
from harness.data.prepare.sources import Source
from harness.errors import BadInput, RunFailed
from harness.system.console import count, out
from harness.system.files import write_atomic
from harness.system.progress import track

_LOCK = ".pack.lock"
_FREE_BYTES = 64 * 2**20
DEFAULT_QUALITY = 90


@dataclass(frozen=True)
class Encoding:
    """How images are made smaller; by default not at all."""

    shorter_px: int | None = None  # maximum of the shorter side; the ratio is kept
    longer_px: int | None = None
    quality: int | None = None  # of all JPEGs; by default 90 for those that are resized

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height to which an image of this size is resized."""
        scale = 1.0
        if self.shorter_px is not None:
            scale = min(scale, self.shorter_px / min(width, height))
        if self.longer_px is not None:
            scale = min(scale, self.longer_px / max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))


@dataclass(frozen=True)
class Packing:
    """The options of packing; the bytes of the shards depend on all of them."""

    shard_images: int
    seed: int | None  # of the order in the shards; None keeps the order of classes
    encoding: Encoding


def pack(source: Source, dest: Path, how: Packing, workers: int) -> manifest.Manifest:
    """Write the shards of one split into a folder of their own, or resume a killed pack.

    Raises:
        BadInput: the folder holds something else, or shards with other options; an image cannot be
            read; the disk is too small.
        RunFailed: the disk fills up meanwhile; finished shards stay.
    """
    _refuse_duplicate_names(source)
    try:
        dest.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{dest}: {error.strerror}; give a folder that can be written") from None
    with _exclusive(dest):
        packed = _begun(source, dest, how)
        if packed.finished:
            return packed
        for part in dest.glob(".*.part"):  # from a pack that was killed
            part.unlink()
        todo = {name: ids for name, ids in _plan(source, how).items() if name not in packed.shards}
        _check_room(source, dest, how, todo)
        if packed.shards:
            out.print(f"{dest}: {count(len(packed.shards), 'shard')} there, {len(todo)} to go")
        try:
            for name, shard in _written(source, dest, how, todo, workers):
                packed = packed.model_copy(update={"shards": packed.shards | {name: shard}})
                manifest.write(dest, packed)
            shards = {name: packed.shards[name] for name in sorted(packed.shards)}
            packed = packed.model_copy(update={"shards": shards, "finished": True})
            manifest.write(dest, packed)
        except OSError as error:
            room = "; make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise RunFailed(
                f"{dest}: {error.strerror} after {count(len(packed.shards), 'shard')}{room}, and "
                "give the same command again: it goes on from there"
            ) from None
    return packed


@contextmanager
def _exclusive(dest: Path) -> Iterator[None]:
    lock = FileLock(dest / _LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise BadInput(f"{dest}: another process packs into it; wait for it, or end it") from None
    try:
        yield
    finally:
        if (packed := manifest.read(dest)) and packed.finished:
            # Safe only now: a process that still has the old lock file open finds a finished pack.
            (dest / _LOCK).unlink()
        lock.release()


def _begun(source: Source, dest: Path, how: Packing) -> manifest.Manifest:
    """Return the folder's manifest, new or of an earlier pack of the same images and options."""
    options = {"shard_images": how.shard_images, "seed": how.seed, **asdict(how.encoding)}
    fresh = manifest.Manifest(
        source=source.kind, digest=source.digest, images=len(source), options=options
    )
    if (packed := manifest.read(dest)) is None:
        if others := sorted(set(os.listdir(dest)) - {_LOCK}):
            raise BadInput(f"{dest}: holds {others[0]} already; give a new folder")
        manifest.write(dest, fresh)
        return fresh
    differ = [
        f"{key} {packed.options.get(key)}, now {value}"
        for key, value in fresh.options.items()
        if packed.options.get(key) != value
    ]
    if packed.digest != fresh.digest:
        differ.append(f"{packed.images:,} other images, now {fresh.images:,} of {source.root}")
    if differ:
        raise BadInput(
            f"{dest}: was begun with {'; '.join(differ)}; give the same again, or a new folder"
        )
    return packed


def _refuse_duplicate_names(source: Source) -> None:
    """Refuse images of one name: consecutive ones in a shard would be read as one sample."""
    seen: dict[str, int] = {}
    for image, name in enumerate(source.names):
        if (other := seen.setdefault(name, image)) != image:
            raise BadInput(
                f"{source.where(image)}: {source.where(other)} is called {name} too; a shard knows "
                "images by their names: rename one"
            )


def _plan(source: Source, how: Packing) -> dict[str, Sequence[int]]:
    size = len(source)
    ids = list(range(size)) if how.seed is None else stream.order(how.seed, 0, size).tolist()
    return {
        f"{source.split or 'images'}-{number:06d}.tar": ids[first : first + how.shard_images]
        for number, first in enumerate(range(0, size, how.shard_images))
    }


def _check_room(source: Source, dest: Path, how: Packing, todo: dict[str, Sequence[int]]) -> None:
    if (sizes := source.sizes) is None or how.encoding != Encoding():
        return  # the size of re-encoded images is not known before
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
    stop = Event()
    with ThreadPoolExecutor(workers, thread_name_prefix="pack") as pool:
        jobs = {
            pool.submit(_write, source, ids, dest / name, how.encoding, stop): name
            for name, ids in todo.items()
        }
        done = as_completed(jobs)
        try:
            for job in track(done, total=len(jobs), what=f"packing {dest}", unit="shards"):
                yield jobs[job], job.result()
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _write(
    source: Source, ids: Sequence[int], path: Path, encoding: Encoding, stop: Event
) -> manifest.Shard:
    def fill(part: Path) -> None:
        with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
            for image in ids:
                if stop.is_set():
                    raise RunFailed("stopped")
                suffix, content = encoded(source.read(image), encoding, source.where(image))
                _add(tar, source, image, suffix, content)
                _add(tar, source, image, "cls", b"%d" % source.labels[image])

    write_atomic(path, fill)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return manifest.Shard(images=len(ids), bytes=path.stat().st_size, sha256=digest)


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


def encoded(content: bytes, how: Encoding, where: str) -> tuple[str, bytes]:
    """Return the suffix (by content) and the bytes of an image as it is packed.

    PNG stays PNG, which is lossless. Re-encoding drops transparency, and EXIF, whose rotation is
    never applied.

    Raises:
        BadInput: it is neither JPEG nor PNG, or does not decode.
    """
    try:
        header = picture.header(BytesIO(content))
        size, suffix = header[:2], "png" if header.png else "jpg"
        target = how.size_of(*size)
        if target == size and (how.quality is None or suffix == "png"):
            return suffix, content
        pixels = picture.decoded(content)
        if suffix == "jpg":
            pixels = pixels.convert("RGB")
        if target != size:
            pixels = pixels.resize(target, Image.Resampling.LANCZOS)
        options = {} if suffix == "png" else {"quality": how.quality or DEFAULT_QUALITY}
        pixels.save(file := BytesIO(), "PNG" if suffix == "png" else "JPEG", **options)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{where}: {error}; remove or replace it, or find all such by harness data check"
        ) from None
    return suffix, file.getvalue()
