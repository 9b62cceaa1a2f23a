"""Read WebDataset tars: list the images and labels of an uncompressed shard from its headers.

A sample is two members of one name: `class/name.jpg` (or `.jpeg`, `.png`) and `class/name.cls`, the
label in ASCII. Other members are ignored. Any tool may have written the tar.
"""

import tarfile
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from harness.data import manifest, picture
from harness.errors import BadInput

IMAGES = ("jpg", "jpeg", "png")


class Member(NamedTuple):
    """A sample of a shard: key, label, image size in px, and the image's place in bytes."""

    key: str
    label: int
    width: int
    height: int
    size_bytes: int
    offset: int


def samples_of(path: Path, *, sized: bool = True) -> Iterator[Member]:
    """Yield the samples of a shard in its order, from its headers.

    Args:
        sized: open each image for its width and height; else they are 0.

    Raises:
        BadInput: the shard is truncated or no tar, a sample has no label, or a header does not
            parse; the message names file and offset.
    """
    with opened(path) as tar:
        try:
            for key, parts in _grouped(tar):
                yield _sample(path, tar, key, parts, sized=sized)
        except tarfile.TarError as error:
            raise BadInput(
                f"{path}: offset {tar.offset:,}: {error}; copy the shard again"
            ) from None
        check_end(path, tar)


def opened(path: Path) -> tarfile.TarFile:
    """Open a tar whose members can be read in place.

    Raises:
        BadInput: it cannot be read, is no tar, or is compressed and so has no offsets.
    """
    try:
        return tarfile.open(path, "r:")
    except (OSError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or f"is no uncompressed tar ({error})"
        raise BadInput(f"{path}: {reason}; replace it") from None


def check_end(path: Path, tar: tarfile.TarFile) -> None:
    """Check that a tar ends where tarfile stopped reading; raise BadInput if not.

    tarfile takes a damaged or truncated header for the end; a complete tar ends with zero blocks.
    """
    with path.open("rb") as file:
        file.seek(tar.offset)
        block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise BadInput(f"{path}: truncated at offset {tar.offset:,}; copy it again")
    if any(block):
        raise BadInput(f"{path}: offset {tar.offset:,}: is no tar header; copy it again")


def _grouped(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Yield consecutive members of one name as {suffix: member}: WebDataset's rule."""

    def named() -> Iterator[tuple[str, str, tarfile.TarInfo]]:
        for member in tar:
            folder, _, base = member.name.removeprefix("./").rpartition("/")
            stem, _, suffix = base.partition(".")
            if member.isfile() and stem:  # no folders; no macOS's `._name` and other hidden ones
                yield f"{folder}/{stem}" if folder else stem, suffix.lower(), member

    for key, members in groupby(named(), key=itemgetter(0)):
        yield key, {suffix: member for _, suffix, member in members}


def _sample(
    path: Path, tar: tarfile.TarFile, key: str, parts: dict[str, tarfile.TarInfo], *, sized: bool
) -> Member:
    image = next((parts[suffix] for suffix in IMAGES if suffix in parts), None)
    if image is None:
        first = next(iter(parts.values()))
        raise BadInput(
            f"{path}: offset {first.offset_data:,} ({first.name}): no .jpg or .png belongs to it"
        )
    where = f"{path}: offset {image.offset_data:,} ({image.name})"
    if "cls" not in parts:
        raise BadInput(f"{where}: no label belongs to it, {key}.cls is missing")
    text = cast(Any, tar.extractfile(parts["cls"])).read(32)
    try:
        label = int(text)
        if label < 0:
            raise ValueError
    except ValueError:
        raise BadInput(f"{where}: its label, {key}.cls, is no class number: {text!r}") from None
    try:
        width, height = size_px(cast(Any, tar.extractfile(image))) if sized else (0, 0)
    except ValueError as error:
        raise BadInput(f"{where}: {error}; harness data check lists all such") from None
    return Member(manifest.unescaped(key), label, width, height, image.size, image.offset_data)


def size_px(image: Path | IO[bytes]) -> tuple[int, int]:
    """Return width and height from the header, without EXIF rotation.

    Raises:
        ValueError: the file cannot be read, or has no header of a JPEG or PNG; the message says so.
    """
    try:
        if isinstance(image, Path):
            with image.open("rb") as file:
                return picture.header(file)[:2]
        return picture.header(image)[:2]
    except OSError as error:
        raise ValueError(error.strerror or error) from None
