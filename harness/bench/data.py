"""Loader alone: DALI and the torchvision arm against torchvision's own ImageFolder + DataLoader."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torchvision.transforms import v2

from harness.bench.turns import Arm, in_turns, report
from harness.console import out
from harness.data import laws
from harness.data.dataset import open_folder
from harness.data.stream import Samples, Stream
from harness.data.torch_loader import TorchBatches
from harness.errors import BadInput

WARM_BATCHES = 3
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Load:
    """What each loader has to do: random training crops with flips, of one folder's images."""

    folder: Path
    image_px: int
    batch: int
    threads: int
    batches: int


def measure(load: Load, turns: int) -> float:
    """Images per second of four loaders in turns; prints a table.

    A turn is a process of its own, which makes 3 batches, then times `load.batches` of them: DALI's
    threads and DataLoader's forks do not go together in one process.

    Returns:
        The ratio DALI / torchvision's own, median over turns.

    Raises:
        BadInput: a folder that cannot be read, or with fewer images than one batch.
    """
    images = len(open_folder(load.folder))
    if images < load.batch:
        raise BadInput(f"{load.folder}: {images} images are fewer than --batch {load.batch}")
    out.print(
        f"{images:,} images of {load.folder}, {load.image_px} px, batch {load.batch}, "
        f"{load.threads} threads or workers, {load.batches} batches a turn"
    )
    arms = [Arm(name, partial(_in_process, name, load)) for name in LOADERS]
    return report(in_turns(arms, turns), "loader alone, training crops, file cache warm")


def cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def _in_process(name: str, load: Load) -> float:
    words = json.dumps([name, *vars(load).values()], default=str)
    command = [sys.executable, "-m", "harness.bench.data", words]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def _rate(name: str, load: Load) -> float:
    loader = LOADERS[name](load)
    for _ in range(WARM_BATCHES):
        next(loader)
    began = time.perf_counter()
    for _ in range(load.batches):
        next(loader)
    rate = load.batch * load.batches / (time.perf_counter() - began)
    loader.close()
    return rate


def _ours(load: Load, *, dali: bool) -> Iterator[Any]:
    dataset = open_folder(load.folder)
    law = laws.resized_crop((0.08, 1.0), (3 / 4, 4 / 3), load.image_px, flip=True)
    images = Stream(0, dataset.labels, dataset.width, dataset.height, law)

    def endless() -> Iterator[Samples]:
        for epoch in itertools.count():
            for first in range(0, len(dataset) - load.batch + 1, load.batch):
                yield images.shuffled(epoch, first, load.batch)

    how: dict[str, Any] = {"out_px": load.image_px, "device": torch.device("cpu")}
    how |= {"threads": load.threads, "prefetch": 2}
    if dali:
        # Only here: forked DataLoader workers abort at their exit where DALI is loaded.
        from harness.data.pipeline import DaliBatches

        how |= {"local_batch": load.batch, "decode": "cpu", "read": "mmap"}
        return DaliBatches(dataset, endless(), law.steps, **how)
    return TorchBatches(dataset, endless(), law.steps, **how)


def _image_folder(load: Load, *, floats: bool) -> Iterator[Any]:
    """What torchvision's users write: normalised floats, or uint8 as the other loaders give."""
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


LOADERS: dict[str, Callable[[Load], Any]] = {
    "dali": partial(_ours, dali=True),
    "torchvision arm": partial(_ours, dali=False),
    "ImageFolder, uint8": partial(_image_folder, floats=False),
    "ImageFolder, float": partial(_image_folder, floats=True),
}

if __name__ == "__main__":
    called, folder, *numbers = json.loads(sys.argv[1])
    print(_rate(called, Load(Path(folder), *numbers)))
