"""The loaders that `harness bench data` compares, all with the same work: random training crops.

`harness bench data` starts this module as a new process for each turn.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torchvision.transforms import v2

from harness.data import augment
from harness.data.dataset import Dataset, Read, allow_open_files, open_folder
from harness.data.files import Bytes, ShardFiles, TreeFiles
from harness.data.stream import Samples, Stream
from harness.data.torch_loader import TorchBatches

WARM_BATCHES = 3
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Load:
    """What each loader has to do: random training crops with flips, of one folder's images."""

    folder: Path
    image_px: int
    batch: int  # images
    threads: int  # or worker processes
    batches: int  # that are timed
    read: Read = "mmap"
    read_ahead_batches: int = 4
    slow_read_ms: float = 0.0  # extra, for the first read of each image, as on a network disk


def rate(name: str, load: Load) -> float:
    """Measure a loader's images per second, after WARM_BATCHES that are not timed."""
    allow_open_files()
    loader = LOADERS[name](load)
    for _ in range(WARM_BATCHES):
        next(loader)
    began = time.perf_counter()
    for _ in range(load.batches):
        next(loader)
    images_per_second = load.batch * load.batches / (time.perf_counter() - began)
    loader.close()
    return images_per_second


def training_samples(dataset: Dataset, load: Load) -> Iterator[Samples]:
    """Yield the samples of batches, in shuffled epochs without end, as in training."""
    images = Stream(0, dataset.labels, dataset.width, dataset.height, law_of(load))
    for epoch in itertools.count():
        for first in range(0, len(dataset) - load.batch + 1, load.batch):
            yield images.shuffled(epoch, first, load.batch)


def law_of(load: Load) -> augment.Augmentation:
    """Return the augmentation: torchvision's RandomResizedCrop and flip."""
    return augment.resized_crop(AREA, RATIO, load.image_px, flip=True)


def _slow_files(files: TreeFiles | ShardFiles, ms: float) -> Any:
    # By image, not by the page cache, since the kernel reads far ahead of a local file.
    slow, waited_for = copy(files), set()

    def slowed(read: Callable[..., Bytes], sample: int, **options: bool) -> Bytes:
        if sample not in waited_for:
            waited_for.add(sample)
            time.sleep(ms / 1000)
        return read(sample, **options)

    for name in ("mapped", "read"):
        object.__setattr__(slow, name, partial(slowed, getattr(files, name)))
    return slow


def _ours(load: Load, *, dali: bool) -> Iterator[Any]:
    dataset = open_folder(load.folder)
    if load.slow_read_ms:
        dataset = replace(dataset, files=_slow_files(dataset.files, load.slow_read_ms))
    samples, steps = training_samples(dataset, load), law_of(load).steps
    options: dict[str, Any] = {"out_px": load.image_px, "device": torch.device("cpu")}
    options |= {"threads": load.threads, "prefetch": 2}
    if dali:
        # Imported only here, since forked DataLoader workers abort at exit once DALI is loaded.
        from harness.data.dali import DaliBatches

        options |= {"local_batch": load.batch, "decode": "cpu", "read": load.read}
        options["read_ahead_batches"] = load.read_ahead_batches
        return DaliBatches(dataset, samples, steps, **options)
    return TorchBatches(dataset, samples, steps, **options)


def _dali_reader(load: Load, *, decode_only: bool) -> Iterator[Any]:
    """Yield batches of DALI's own reader, shuffle and random crop, as in its documentation."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def
    def graph() -> Any:
        encoded, labels = fn.readers.file(
            file_root=str(load.folder), random_shuffle=True, name="reader", dont_use_mmap=False
        )
        images = fn.decoders.image_random_crop(
            encoded, device="cpu", output_type=types.RGB, random_area=AREA,
            random_aspect_ratio=RATIO, num_attempts=10, adjust_orientation=False,
        )  # fmt: skip
        if decode_only:
            return labels, images.shape()
        images = fn.resize(
            images, size=[load.image_px, load.image_px], interp_type=types.INTERP_LINEAR,
            antialias=True,
        )  # fmt: skip
        return fn.flip(images, horizontal=fn.random.coin_flip()), labels

    pipeline = graph(
        batch_size=load.batch, num_threads=load.threads, device_id=None, prefetch_queue_depth=2
    )
    pipeline.build()
    while True:
        yield [output.as_tensor() for output in pipeline.run()]  # contiguous, as training needs


def _image_folder(load: Load, *, floats: bool) -> Iterator[Any]:
    """Yield torchvision's batches: normalized floats, or uint8 as from the other loaders."""
    crop = [v2.RandomResizedCrop(load.image_px), v2.RandomHorizontalFlip()]
    to_float = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    transform = v2.Compose([*crop, v2.ToImage(), *(to_float if floats else [])])
    images = torchvision.datasets.ImageFolder(str(load.folder), transform)
    loader = torch.utils.data.DataLoader(
        images, load.batch, shuffle=True, drop_last=True,
        num_workers=load.threads, persistent_workers=True,
    )  # fmt: skip
    while True:
        yield from loader


OURS, LIMIT = "harness", "DALI, decode alone"
LOADERS: dict[str, Callable[[Load], Any]] = {
    OURS: partial(_ours, dali=True),
    "harness, torchvision arm": partial(_ours, dali=False),
    LIMIT: partial(_dali_reader, decode_only=True),
    "DALI's own reader": partial(_dali_reader, decode_only=False),
    "ImageFolder, uint8": partial(_image_folder, floats=False),
    "ImageFolder, float": partial(_image_folder, floats=True),
}

if __name__ == "__main__":
    loader_name, folder, *rest = json.loads(sys.argv[1])
    print(rate(loader_name, Load(Path(folder), *rest)))
