"""Where to decode: a few seconds of both ways on this kind of node, remembered in its cache folder.

Remembered, because a run that goes on after a kill must decode as before: the decoders' pixels are
not the same.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from harness.console import out
from harness.data.batch import Batches
from harness.data.index import cache_folder, locked
from harness.files import write_atomic

WARM_BATCHES, BATCHES = 5, 20
MAKES = ("gpu", "cpu")


def decode_on(key: dict[str, Any], make: Callable[[str], Batches]) -> str:
    """`gpu` or `cpu`, whichever loads faster here.

    One process of a node measures, the others wait.

    Args:
        key: what the answer depends on: the device, threads, sizes, versions.
        make: a loader that decodes there, of at least WARM_BATCHES + BATCHES batches.
    """
    path = _path(key)
    with locked(path):
        rates = _remembered(path)
        if rates is None:
            rates = {where: _rate(make(where)) for where in MAKES}
            told = json.dumps({"images_per_second": rates, "of": key}, indent=1)
            write_atomic(path, lambda part: part.write_text(told))
            out.print(
                f"data.decode auto: {rates['gpu']:,.0f} images/s decoded on the GPU, "
                f"{rates['cpu']:,.0f} on the CPU, per rank; remembered in {path}"
            )
    return max(rates, key=lambda where: rates[where])


def _rate(batches: Batches) -> float:
    with closing(batches):
        made: Iterator[Any] = iter(batches)
        for _ in range(WARM_BATCHES):
            _wait(next(made))
        began, images = time.perf_counter(), 0
        for _ in range(BATCHES):
            images += _wait(next(made))
        return images / (time.perf_counter() - began)


def _wait(batch: Any) -> int:
    """Images in a batch, once it is made: a GPU is given work ahead."""
    batch.labels.tolist()
    return len(batch.labels)


def _path(key: dict[str, Any]) -> Path:
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / "decode"
    folder.mkdir(exist_ok=True)
    return folder / f"{name}.json"


def _remembered(path: Path) -> dict[str, float] | None:
    try:
        told = json.loads(path.read_text())["images_per_second"]
        return {where: float(told[where]) for where in MAKES}
    except (OSError, ValueError, KeyError):
        return None
