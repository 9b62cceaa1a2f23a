"""What DALI makes of the stream: the right pixels at any depth, or an error that names the file."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from trainings import here

from harness.data import laws
from harness.data.batch import Batch
from harness.data.dataset import Dataset, Read, open_folder
from harness.data.pipeline import DaliBatches
from harness.data.stream import Law, Samples, Stream
from harness.data.torch_loader import TorchBatches
from harness.errors import RunFailed

pytestmark = pytest.mark.gpu_too

CPU = torch.device("cpu")
PX = 64
RESIZED = laws.resized_crop((0.08, 1.0), (3 / 4, 4 / 3), PX, flip=True)
CENTRE = laws.centre_crop(72, PX)
PADDED = laws.pad_crop(4, 32, flip=True)


def samples_of(dataset: Dataset, law: Law, batch: int, epochs: int = 1) -> Iterator[Samples]:
    images = Stream(0, dataset.labels, dataset.width, dataset.height, law)
    for epoch in range(epochs):
        for first in range(0, len(dataset) - batch + 1, batch):
            yield images.shuffled(epoch, first, batch)


def dali(
    dataset: Dataset, law: Law, batch: int = 10, px: int = PX, *, depth: int = 2,
    read: Read = "mmap", samples: Iterator[Samples] | None = None, decode: str = "cpu",
    device: torch.device | None = None, ahead: int = 2,
) -> DaliBatches:  # fmt: skip
    return DaliBatches(
        dataset, samples or samples_of(dataset, law, batch), law.steps, local_batch=batch,
        out_px=px, device=device or here({}).device, decode=decode, read=read,
        read_ahead_batches=ahead, threads=2, prefetch=depth,
    )  # fmt: skip


def in_pillow(dataset: Dataset, law: Law, batch: int = 10, px: int = PX) -> list[Batch]:
    arm = TorchBatches(
        dataset, samples_of(dataset, law, batch), law.steps, out_px=px, device=CPU, threads=0,
        prefetch=2,
    )  # fmt: skip
    return list(arm)


def pixels(batches: Any) -> np.ndarray:
    return np.concatenate([batch.images.cpu().numpy() for batch in batches])


@pytest.mark.parametrize("law", [RESIZED, CENTRE], ids=["train", "eval"])
def test_dali_shows_what_pillow_shows(photos: Path, law: Law) -> None:
    """JPEG decoders may round differently; antialiased resizing must follow the same law.

    Without antialiasing the mean difference is ten times as large.
    """
    dataset = open_folder(photos)
    ours, theirs = list(dali(dataset, law)), in_pillow(dataset, law)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine.rows, other.rows)
        assert torch.equal(mine.labels.cpu(), other.labels)
    difference = np.abs(pixels(ours).astype(float) - pixels(theirs)).mean(axis=(1, 2, 3))
    assert difference.mean() < 0.35, "of 255"
    assert difference.max() < 0.6


def test_png_is_equal_to_the_last_bit(icons: Path) -> None:
    dataset = open_folder(icons)
    ours = pixels(dali(dataset, PADDED, px=32))
    np.testing.assert_array_equal(ours, pixels(in_pillow(dataset, PADDED, px=32)))
    assert (ours == 0).all(axis=1).any(), "some crop must reach over the edge into black"


def test_the_pixels_are_those_of_the_window(icons: Path) -> None:
    """Against the file itself, by plain array indexing."""
    dataset = open_folder(icons)
    for batch in dali(dataset, PADDED, px=32):
        for image, row in zip(batch.images.cpu(), batch.rows, strict=True):
            one = Samples.from_rows(row[None])
            whole = np.asarray(Image.open(dataset.where(int(one.ids[0]))).convert("RGB"))
            x, y = one.cut[0] + 4
            cut = np.pad(whole, ((4, 4), (4, 4), (0, 0)))[y : y + 32, x : x + 32]
            expected = cut[:, ::-1] if one.flip[0] else cut
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)
            assert one.labels[0] == dataset.labels[one.ids[0]]


def test_batches_are_channels_last_views(photos: Path) -> None:
    batch = next(dali(open_folder(photos), RESIZED))
    assert batch.images.shape == (10, 3, PX, PX)
    assert batch.images.stride() == (PX * PX * 3, 1, PX * 3, 3)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    again = batch.images.contiguous(memory_format=torch.channels_last)
    assert again.data_ptr() == batch.images.data_ptr(), "no byte may have to move"


def test_any_depth_and_way_of_reading_gives_the_same_bytes(photos: Path) -> None:
    """A buffer that is reused while DALI still reads it would show later batches' data."""
    dataset = open_folder(photos)

    def shown(**how: Any) -> np.ndarray:
        found = []
        for batch in dali(dataset, RESIZED, samples=samples_of(dataset, RESIZED, 10, 3), **how):
            found.append(batch.images.clone().cpu().numpy())
            # Dirty the heap, so that freed memory would not keep its old content by luck.
            _ = [np.full(50_000, 255, dtype=np.uint8) for _ in range(20)]
        return np.concatenate(found)

    alone = shown(depth=1, read="pread")
    for depth, read in itertools.product((1, 2, 4), ("mmap", "pread")):
        np.testing.assert_array_equal(shown(depth=depth, read=read), alone)


def test_batches_stay_valid_while_they_are_held(photos: Path) -> None:
    held = [(batch.images, batch.images.clone()) for batch in dali(open_folder(photos), RESIZED, 5)]
    assert len(held) == 20
    assert all(torch.equal(kept, copy) for kept, copy in held)


def test_a_pipeline_built_in_the_middle_goes_on_the_same(photos: Path) -> None:
    dataset = open_folder(photos)
    whole = pixels(dali(dataset, RESIZED))
    rest = itertools.islice(samples_of(dataset, RESIZED, 10), 3, None)
    np.testing.assert_array_equal(pixels(dali(dataset, RESIZED, samples=rest)), whole[30:])


def test_exif_rotation_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "class0").mkdir()
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)).resize((96, 64))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    image.save(tmp_path / "class0" / "a.jpg", exif=rotated, quality=95)
    dataset = open_folder(tmp_path)
    assert (dataset.width[0], dataset.height[0]) == (96, 64)
    law = laws.centre_crop(0, 64)
    ours = pixels(dali(dataset, law, batch=1)).astype(float)
    assert np.abs(ours - pixels(in_pillow(dataset, law, batch=1))).mean() < 0.5


@pytest.mark.parametrize("content", [b"\xff\xd8 no image at all", None], ids=["garbage", "cut"])
@pytest.mark.parametrize("arm", ["dali", "torchvision"])
def test_an_undecodable_image_is_named(tmp_path: Path, arm: str, content: bytes | None) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "class0").mkdir()
    for number in range(40):
        noise = Image.fromarray(rng.integers(0, 256, (80, 80, 3), dtype=np.uint8))
        noise.save(tmp_path / "class0" / f"{number:02d}.jpg")
    bad = tmp_path / "class0" / "23.jpg"
    whole = bad.read_bytes()
    if content is None:
        bad.write_bytes(whole[: len(whole) // 3])
    dataset = open_folder(tmp_path)
    if content is not None:
        # Of the same size, since a file that changed its size is found without decoding.
        bad.write_bytes(content.ljust(len(whole), b"\0"))
    law = laws.centre_crop(0, 64)
    # No worker processes here: forked from a process with DALI's threads, they may crash.
    batches = (
        dali(dataset, law)
        if arm == "dali"
        else TorchBatches(
            dataset, samples_of(dataset, law, 10), law.steps, out_px=64, device=CPU, threads=0,
            prefetch=2,
        )
    )  # fmt: skip
    with pytest.raises(RunFailed, match=r"class0/23\.jpg: sample 23 does not decode") as raised:
        list(batches)
    assert "\n" not in str(raised.value)


def test_the_pipeline_warns_of_nothing(photos: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(dali(open_folder(photos), RESIZED))) == 10


@pytest.mark.shared_data
def test_real_photos_look_as_in_pillow(shared_data: Path, tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(shared_data / "data" / "imagenet-sample-250.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    dataset = open_folder(tmp_path / "imagenet-sample")
    train_law = laws.resized_crop((0.08, 1), (3 / 4, 4 / 3), 224, flip=True)
    for law in (train_law, laws.centre_crop(256, 224)):
        ours = pixels(dali(dataset, law, 25, 224)).astype(float)
        difference = np.abs(ours - pixels(in_pillow(dataset, law, 25, 224)))
        assert difference.mean() < 0.2, "of 255"


@pytest.mark.gpu
@pytest.mark.parametrize("decode", ["cpu", "gpu"])
def test_on_a_gpu_the_pixels_are_nearly_the_same(photos: Path, decode: str) -> None:
    dataset = open_folder(photos)
    batches = list(dali(dataset, RESIZED, decode=decode))
    assert batches[0].images.device == torch.device("cuda", 0)
    assert batches[0].images.is_contiguous(memory_format=torch.channels_last)
    assert np.abs(pixels(batches).astype(float) - pixels(in_pillow(dataset, RESIZED))).mean() < 1.5
