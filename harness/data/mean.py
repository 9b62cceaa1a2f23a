"""The mean image of a training set, which the CIFAR recipe of He et al. 2015 subtracts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.data.dataset import Dataset, undecodable
from harness.data.index import beside, locked, writable_index
from harness.errors import BadInput, RunFailed
from harness.system.console import track
from harness.system.files import write_atomic

MeanImage = NDArray[np.float64]
"""[px, px, 3], R, G, B of 0 to 255."""

_CHUNK, _THREADS = 1000, 4


def check_one_size(dataset: Dataset, px: int) -> None:
    """Refuse a data set of which a mean image makes no sense.

    Raises:
        BadInput: names the first image of another size.
    """
    other = np.flatnonzero((dataset.width != px) | (dataset.height != px))
    if len(other):
        first = int(other[0])
        raise BadInput(
            f"{dataset.where(first)}: is {dataset.width[first]} x {dataset.height[first]} px; "
            f"data.mean_image needs all images to be data.image_px {px} x {px}"
        )


def mean_image(dataset: Dataset, px: int) -> MeanImage:
    """The mean of all images, computed once and kept beside the index, by exact sums.

    Raises:
        RunFailed: an image does not decode.
    """
    # As with the index: who may write there has computed it for those who may not.
    kept = _load(_path(beside(dataset.root), dataset))
    if kept is not None:
        return kept
    path = _path(writable_index(dataset.root), dataset)
    with locked(path):
        kept = _load(path)
        if kept is None:
            mean = kept = _compute(dataset, px)
            write_atomic(path, lambda part: _save(part, mean))
    return kept


def _path(index: Path, dataset: Dataset) -> Path:
    return index.with_name(f"{index.stem}-mean-{dataset.digest}.npy")


def _load(path: Path) -> MeanImage | None:
    try:
        kept: MeanImage = np.load(path)
    except (OSError, ValueError, EOFError, BadZipFile):
        return None
    return kept


def _save(path: Path, mean: MeanImage) -> None:
    with path.open("wb") as file:
        np.save(file, mean)


def _compute(dataset: Dataset, px: int) -> MeanImage:
    def sum_of(chunk: range) -> NDArray[np.int64]:
        total = np.zeros((px, px, 3), dtype=np.int64)
        for sample in chunk:
            total += _pixels(dataset, sample)
        return total

    everything = range(len(dataset))
    chunks = [everything[first : first + _CHUNK] for first in everything[::_CHUNK]]
    total = np.zeros((px, px, 3), dtype=np.int64)
    with ThreadPoolExecutor(_THREADS) as pool:
        sums = pool.map(sum_of, chunks)
        for each in track(sums, total=len(chunks), what="mean image"):
            total += each
    return total / len(dataset)


def _pixels(dataset: Dataset, sample: int) -> NDArray[np.uint8]:
    try:
        with Image.open(BytesIO(dataset.content(sample))) as file:
            return np.asarray(file.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise RunFailed(undecodable(dataset, sample, error)) from None
