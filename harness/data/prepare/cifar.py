"""CIFAR-10 and CIFAR-100 as folders of PNG files: lossless, as the papers' pixels are."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from harness.errors import BadInput
from harness.system.console import out, track
from harness.system.files import new_folder

SETS = {"cifar10": CIFAR10, "cifar100": CIFAR100}
_THREADS = 4


def get(name: str, root: Path, archive: Path | None = None) -> None:
    """Write `train` and `test`, one folder per class, from torchvision's download.

    If this fails, no partial folder is left.

    Args:
        name: one of SETS.
        root: a new folder.
        archive: the set's .tar.gz, if it has been downloaded already.

    Raises:
        BadInput: the folder exists, the archive is a wrong one, or the download fails.
    """
    with new_folder(root) as part, TemporaryDirectory(dir=part) as unpacked:
        _unpack(SETS[name], Path(unpacked), archive)
        for split in ("train", "test"):
            data = SETS[name](unpacked, train=split == "train")
            _write(part / split, data.data, [data.classes[i] for i in data.targets])


def _unpack(kind: type[CIFAR10], folder: Path, archive: Path | None) -> None:
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


def _write(folder: Path, images: NDArray[np.uint8], names: list[str]) -> None:
    for name in set(names):
        (folder / name).mkdir(parents=True)

    def save(number: int) -> None:
        Image.fromarray(images[number]).save(folder / names[number] / f"{number:05d}.png")

    with ThreadPoolExecutor(_THREADS) as pool:
        saved = pool.map(save, range(len(names)))
        for _ in track(saved, total=len(names), what=f"writing {folder.name}"):
            pass
