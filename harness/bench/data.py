"""Measure the loader alone: the harness's against DALI's own reader and torchvision's."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from harness.bench.loaders import LOADERS, OURS, Load, law_of, training_samples
from harness.bench.turns import end_of, interleave, report
from harness.data.dataset import Dataset, open_folder
from harness.data.files import TreeFiles
from harness.errors import BadInput
from harness.system import pagecache
from harness.system.console import out


def measure(load: Load, others: Sequence[Path], turns: int, *, cold: bool, minutes: float) -> None:
    """Measure the loaders in turns, and print a table of their images per second.

    Each turn is a new process, which makes 3 batches, then times `load.batches` of them: DALI's
    threads and DataLoader's forks do not work together in one process.

    Args:
        load: what each loader has to do; its folder is measured first.
        others: more folders of the same images; DALI's and torchvision's loaders read the last one
            that is a tree.
        cold: drop the files from the page cache before each turn, and only measure the harness,
            with and without read-ahead.
        minutes: time for all; one turn of each is measured in any case.

    Raises:
        BadInput: a folder that cannot be read, or with fewer images than one batch.
    """
    until, folders = end_of(minutes), [load.folder, *others]
    sets = {folder: open_folder(folder) for folder in folders}
    loaders: dict[str, Callable[[], float]] = {}
    for folder, dataset in sets.items():
        if len(dataset) < load.batch:
            raise BadInput(f"{folder}: {len(dataset)} images are fewer than --batch {load.batch}")
        _describe(folder, dataset, load)
        name = f"{OURS}, {folder}" if others else OURS
        if not cold:
            loaders[name] = partial(_in_process, OURS, replace(load, folder=folder))
            continue
        for ahead in (load.read_ahead_batches or 4, 0):
            title = f"{name}, {f'{ahead} batches ahead' if ahead else 'no read-ahead'}"
            own = replace(load, folder=folder, read_ahead_batches=ahead)
            loaders[title] = partial(_in_process, OURS, own, drop=dataset)
    trees = [folder for folder in folders if isinstance(sets[folder].files, TreeFiles)]
    if trees and not cold:
        on_tree = replace(load, folder=trees[-1])
        loaders |= {n: partial(_in_process, n, on_tree) for n in LOADERS if n != OURS}
    if len(loaders) == 1:
        raise BadInput(f"{load.folder}: has nothing to be compared with; name a folder tree too")
    title = f"loader alone, training crops, file cache {'cold' if cold else 'warm'}"
    if torch.cuda.is_available():
        title += ", decoded on the CPU (harness bench ladder measures split and gpu)"
    report(interleave(loaders, turns, until), title, turns)


def _python_ms(dataset: Dataset, load: Load) -> float:
    """Return the median of Python's time per batch: order, reading, inputs of the graph."""
    from harness.data.dali import inputs
    from harness.data.files import read_ahead

    read = dataset.reader(load.read, soon=bool(load.read_ahead_batches))
    batches = read_ahead(training_samples(dataset, load), read, load.read_ahead_batches)
    steps, times_s = law_of(load).steps, []
    for _ in range(20):
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
        f"{folder}: {len(dataset):,} images, {facts['kind']}, {facts['kb_per_image']:,.0f} KB "
        f"each, {'?' if cached is None else f'{cached:.0f}'} % in memory; {load.image_px} px, "
        f"batch {load.batch}, {load.threads} threads or workers, {load.batches} batches a turn; "
        f"Python {_python_ms(dataset, load):.2f} ms per batch"
    )


def _in_process(name: str, load: Load, *, drop: Dataset | None = None) -> float:
    if drop is not None:
        pagecache.drop(map(drop.files.extent, range(len(drop))))
    argument = json.dumps([name, *vars(load).values()], default=str)
    command = [sys.executable, "-m", "harness.bench.loaders", argument]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
