"""Measure the loader alone: the harness's against DALI's own reader and torchvision's."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from harness.bench.loaders import LOADERS, OURS, Load, law_of, training_samples
from harness.bench.turns import Timed, interleave, report
from harness.data.dataset import Dataset, open_folder
from harness.data.files import TreeFiles
from harness.errors import BadInput
from harness.system import pagecache
from harness.system.console import out

_PYTHON_BATCHES = 20


def measure(load: Load, others: Sequence[Path], turns: int, *, cold: bool) -> float:
    """Measure the loaders in turns, and print a table of their images per second.

    Each turn is a new process, which makes 3 batches, then times `load.batches` of them: DALI's
    threads and DataLoader's forks do not work together in one process.

    Args:
        load: what each loader has to do; its folder is the first arm.
        others: more folders of the same images; DALI's and torchvision's loaders read the last one
            that is a tree.
        cold: drop the files from the page cache before each turn, and only measure the harness,
            with and without read-ahead.

    Returns:
        The ratio of the first arm to the last, median over turns.

    Raises:
        BadInput: a folder that cannot be read, or with fewer images than one batch.
    """
    folders = [load.folder, *others]
    sets = {folder: open_folder(folder) for folder in folders}
    for folder, dataset in sets.items():
        if len(dataset) < load.batch:
            raise BadInput(f"{folder}: {len(dataset)} images are fewer than --batch {load.batch}")
        _describe(folder, dataset, load)
    arms = []
    for folder, name in zip(folders, _names(folders), strict=True):
        own = replace(load, folder=folder)
        if cold:
            ahead = replace(own, read_ahead_batches=load.read_ahead_batches or 4)
            none = replace(own, read_ahead_batches=0)
            arms += [_arm(f"{OURS}{name}, {ahead.read_ahead_batches} batches ahead", OURS, ahead,
                          sets[folder]),
                     _arm(f"{OURS}{name}, no read-ahead", OURS, none, sets[folder])]  # fmt: skip
        else:
            arms.append(_arm(f"{OURS}{name}", OURS, own, None))
    trees = [folder for folder in folders if isinstance(sets[folder].files, TreeFiles)]
    if trees and not cold:
        on_tree = replace(load, folder=trees[-1])
        arms += [_arm(name, name, on_tree, None) for name in LOADERS if name != OURS]
    if len(arms) == 1:
        raise BadInput(f"{load.folder}: has nothing to be compared with; name a folder tree too")
    title = f"loader alone, training crops, file cache {'cold' if cold else 'warm'}"
    if torch.cuda.is_available():
        title += ", decoded on the CPU (harness bench ladder measures split and gpu)"
    return report(interleave(arms, turns), title)


def python_ms(dataset: Dataset, load: Load) -> float:
    """Return the median of Python's time per batch: order, reading, inputs of the graph."""
    from harness.data.dali import inputs
    from harness.data.files import read_ahead

    steps = law_of(load).steps
    read = dataset.reader(load.read, soon=bool(load.read_ahead_batches))
    batches = read_ahead(training_samples(dataset, load), read, load.read_ahead_batches)
    times_s = []
    for _ in range(_PYTHON_BATCHES):
        began = time.perf_counter()
        samples, encoded = next(batches)
        inputs(samples, encoded, steps)
        times_s.append(time.perf_counter() - began)
    batches.close()  # type: ignore[attr-defined]
    return 1000 * float(np.median(times_s))


def _describe(folder: Path, dataset: Dataset, load: Load) -> None:
    facts = dataset.facts()
    cached = facts["cached_pct"]
    out.print(
        f"{folder}: {len(dataset):,} images, {facts['kind']}, "
        f"{facts['kb_per_image']:,.0f} KB each, "
        f"{'?' if cached is None else f'{cached:.0f}'} % in memory; {load.image_px} px, "
        f"batch {load.batch}, {load.threads} threads or workers, {load.batches} batches a turn; "
        f"Python {python_ms(dataset, load):.2f} ms per batch"
    )


def _names(folders: Sequence[Path]) -> list[str]:
    return [""] if len(folders) == 1 else [f", {folder.name}" for folder in folders]


def _arm(title: str, loader: str, load: Load, drop: Dataset | None) -> Timed:
    def turn() -> float:
        if drop is not None:
            pagecache.drop(map(drop.files.extent, range(len(drop))))
        return _in_process(loader, load)

    return Timed(title, turn)


def _in_process(name: str, load: Load) -> float:
    argument = json.dumps([name, *vars(load).values()], default=str)
    command = [sys.executable, "-m", "harness.bench.loaders", argument]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
