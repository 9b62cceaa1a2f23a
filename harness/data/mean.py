"""The mean image of a training set, which the CIFAR recipe of He et al. 2015 subtracts."""

from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import Dataset
from harness.data.index import index_in, locked, writable_index
from harness.data.torch_loader import decoded
from harness.errors import BadInput
from harness.system.files import write_atomic
from harness.system.progress import in_parallel

MeanImage = NDArray[np.float64]  # [px, px, 3], R, G, B of 0 to 255

_CHUNK, _THREADS = 1000, 4


def check_one_size(dataset: Dataset, px: int) -> None:
    """Check that all images have the side `px`, as a mean image needs.

    Raises:
        BadInput: an image has another size; the message names the first.
    """
    misfits = np.flatnonzero((dataset.width != px) | (dataset.height != px))
    if len(misfits):
        first = int(misfits[0])
        raise BadInput(
            f"{dataset.where(first)}: is {dataset.width[first]} x {dataset.height[first]} px; "
            f"data.mean_image needs all images to be data.image_px {px} x {px}"
        )


def mean_image(dataset: Dataset, px: int) -> MeanImage:
    """Return the mean of all images, from exact sums; it is computed once and stored by the index.

    Raises:
        RunFailed: an image does not decode.
    """
    # As with the index: a user who may write there computes it for all users.
    if (mean := _load(_path(index_in(dataset.root), dataset))) is not None:
        return mean
    path = _path(writable_index(dataset.root), dataset)
    with locked(path):
        if (mean := _load(path)) is None:
            mean = _compute(dataset, px)
            np.save(file := BytesIO(), mean)
            write_atomic(path, lambda part: part.write_bytes(file.getvalue()))
    return mean


def _path(index: Path, dataset: Dataset) -> Path:
    return index.with_name(f"{index.stem}-mean-{dataset.digest}.npy")


def _load(path: Path) -> MeanImage | None:
    try:
        mean: MeanImage = np.load(path)
        return mean
    except (OSError, ValueError, EOFError, BadZipFile):
        return None


def _compute(dataset: Dataset, px: int) -> MeanImage:
    zero = np.zeros((px, px, 3), dtype=np.int64)

    def sum_of(chunk: range) -> NDArray[np.int64]:
        pixels = (np.asarray(decoded(dataset, sample), dtype=np.int64) for sample in chunk)
        return sum(pixels, zero)

    samples = range(len(dataset))
    chunks = [samples[first : first + _CHUNK] for first in samples[::_CHUNK]]
    sums = in_parallel(sum_of, chunks, threads=_THREADS, what="mean image")
    return sum(sums, zero) / len(dataset)
