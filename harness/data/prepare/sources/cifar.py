"""CIFAR-10 and CIFAR-100 by torchvision: as a source of PNG, lossless as the papers' pixels are."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.data.prepare.sources.source import Place, Source
from harness.errors import BadInput
from harness.system.console import out
from harness.system.folders import new_folder
from harness.system.progress import in_parallel

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

FOLDERS = {"cifar-10-batches-py": "CIFAR10", "cifar-100-python": "CIFAR100"}
"""What torchvision's downloader leaves, and its name for the set."""
_THREADS = 4


@dataclass(frozen=True, eq=False)
class _Pixels(Source):
    """A source whose images are pixels [n, 32, 32, 3]; `offset` is the number of each."""

    pixels: NDArray[np.uint8] = field(repr=False)

    @property
    def sizes(self) -> None:
        """Unknown before encoding."""

    def where(self, number: int) -> str:
        image = self.images[number]
        split = "train" if self.split == "train" else "test"
        return f"{image.path}: image {image.offset} of {split}"

    def read(self, number: int, most: int = sys.maxsize) -> bytes:
        Image.fromarray(self.pixels[self.images[number].offset]).save(file := BytesIO(), "PNG")
        return file.getvalue()[:most]


def kind_of(name: str) -> type[CIFAR10]:
    """Return torchvision's class of a set, `cifar10` or `cifar100`."""
    from torchvision import datasets  # takes seconds, since it imports torch

    kind: type[CIFAR10] = getattr(datasets, name.upper())
    return kind


def find(root: Path) -> list[Source]:
    """Return both splits of CIFAR-10 or CIFAR-100.

    Raises:
        BadInput: a file of it is missing or damaged.
    """
    for folder, name in FOLDERS.items():
        if (root / folder).is_dir():
            return [_split(root, kind_of(name), train=train) for train in (True, False)]
    return []


def _split(root: Path, kind: type[CIFAR10], *, train: bool) -> Source:
    try:
        data = kind(str(root), train=train)
    except RuntimeError as error:
        what = str(error).split(".")[0]
        raise BadInput(f"{root}: {what}; download {kind.__name__} again") from None
    # As in a tree: by the sorted names of the classes.
    classes = sorted(data.classes)
    names = [data.classes[target] for target in data.targets]
    images = sorted(
        Place(classes.index(name), f"{name}/{number:05d}", root, number, 0)
        for number, name in enumerate(names)
    )
    what = f"torchvision's {kind.__name__}"
    return _Pixels(root, what, "train" if train else "val", classes, images, data.data)


def get(name: str, root: Path, archive: Path | None = None) -> None:
    """Write `train` and `test`, one folder per class, from torchvision's download or `archive`.

    If this fails, no partial folder is left.

    Raises:
        BadInput: the folder exists, the archive is a wrong one, or the download fails.
    """
    kind = kind_of(name)
    with new_folder(root) as part, TemporaryDirectory(dir=part) as unpacked:
        _unpack(kind, Path(unpacked), archive)
        for split in ("train", "test"):
            _write(_split(Path(unpacked), kind, train=split == "train"), part / split)


def _unpack(kind: type[CIFAR10], folder: Path, archive: Path | None) -> None:
    from torchvision.datasets.utils import check_integrity

    if archive is not None:
        if not archive.is_file():
            raise BadInput(f"{archive}: no such file; give the set's {kind.filename}")
        # Its content is unpickled, which can run code: accept only the authors' own file.
        if not check_integrity(str(archive), kind.tgz_md5):
            raise BadInput(
                f"{archive}: is not the whole {kind.filename}, whose MD5 is {kind.tgz_md5}"
            )
        (folder / kind.filename).symlink_to(archive.resolve())
    else:
        out.print(f"downloading {kind.url}")
    try:
        kind(folder, download=True)
    except (OSError, RuntimeError) as error:
        raise BadInput(
            f"{kind.url}: {getattr(error, 'reason', error)}; download it elsewhere and give it as "
            f"--archive {kind.filename}"
        ) from None


def _write(source: Source, folder: Path) -> None:
    for name in source.classes:
        (folder / name).mkdir(parents=True)

    def save(number: int) -> None:
        (folder / f"{source.names[number]}.png").write_bytes(source.read(number))

    numbers = range(len(source))
    for _ in in_parallel(save, numbers, threads=_THREADS, what=f"writing {folder.name}"):
        pass
