"""Where to decode: some seconds of each way on this kind of node, remembered in its cache folder.

Remembered, because a run that goes on after a kill must decode as before: the decoders' pixels are
not the same.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.data.batch import Batches
from harness.data.index import cache_folder, locked
from harness.system.console import out
from harness.system.files import write_atomic

WAYS = ("cpu", "split", "gpu")
"""By how much of the GPU they take from the training: nothing; resize and flip; decoding too."""

WARM_BATCHES, MOST_BATCHES = 5, 20
TURN_S = 2.0
ENOUGH = 0.86
"""Of the bound of training. PyTorch has reached two thirds of it (ResNet-50 on an H100: 4,700 of
7,100 images/s), and a loader must be 1.3 times as fast as what it feeds, or it may bind."""
AS_FAST = 0.9
"""Of the fastest: less of a difference is not worth what the faster way takes from the GPU."""


@dataclass(frozen=True)
class Demand:
    """How many images training could take.

    Attributes:
        of: what that depends on, for the key of what is remembered.
        bound: images per second of one rank that it cannot exceed.
    """

    of: Mapping[str, Any]
    bound: Callable[[], float]


def decode_on(
    key: Mapping[str, Any],
    ways: Sequence[str],
    make: Callable[[str], Batches],
    *,
    read_once: Callable[[], None],
    demand: Demand | None,
) -> str:
    """The way to decode by which training is fastest, as far as loaders alone can tell.

    One process of a node measures, the others wait.

    Args:
        key: what the rates depend on: the device, threads, sizes, versions.
        ways: of WAYS, in their order: those that this node has.
        make: a loader that decodes so, of at least WARM_BATCHES + MOST_BATCHES batches.
        read_once: reads the bytes of those batches, so that each way finds them in memory.
        demand: null if nothing is known of the training; then the fastest is taken.
    """
    key = {**key, "ways": list(ways), "training": dict(demand.of) if demand else None}
    path = _path(key)
    with locked(path):
        known = _remembered(path, ways)
        if known is None:
            read_once()
            known = _rates(ways, make), demand.bound() if demand else None
            way = choose(*known)
            content = {
                "decode": way, "images_per_second": known[0], "training_bound": known[1], "of": key
            }  # fmt: skip
            text = json.dumps(content, indent=1)
            write_atomic(path, lambda part: part.write_text(text))
            rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in known[0].items())
            bound = f"; training takes at most {known[1]:,.0f}" if known[1] else ""
            out.print(
                f"data.decode auto: {way}, of {rates} images/s per rank{bound}; "
                f"remembered in {path}"
            )
    return choose(*known)


def choose(rates: Mapping[str, float], bound: float | None) -> str:
    """The first of WAYS that is fast enough for training, or about as fast as any."""
    need = AS_FAST * max(rates.values())
    need = min(need, ENOUGH * bound) if bound else need
    return next(way for way in WAYS if rates.get(way, 0.0) >= need)


def _rates(ways: Sequence[str], make: Callable[[str], Batches]) -> dict[str, float]:
    """Images per second of each, in turns forth and back, so that a drift hits all alike."""
    images, seconds = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0)
    for way in (*ways, *reversed(ways)):
        n, took_s = _turn(make(way))
        images[way] += n
        seconds[way] += took_s
    return {way: images[way] / seconds[way] for way in ways}


def _turn(batches: Batches) -> tuple[int, float]:
    """Images, and the seconds that they took."""
    with closing(batches):
        made: Iterator[Any] = iter(batches)
        for _ in range(WARM_BATCHES):
            _wait(next(made))
        began, images, done = time.perf_counter(), 0, 0
        while done < MOST_BATCHES and time.perf_counter() - began < TURN_S:
            images += _wait(next(made))
            done += 1
        return images, time.perf_counter() - began


def _wait(batch: Any) -> int:
    """Images in a batch, once it is made: a GPU is given work ahead."""
    batch.labels.tolist()
    return len(batch.labels)


def _path(key: Mapping[str, Any]) -> Path:
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / "decode"
    folder.mkdir(exist_ok=True)
    return folder / f"{name}.json"


def _remembered(path: Path, ways: Sequence[str]) -> tuple[dict[str, float], float | None] | None:
    try:
        content = json.loads(path.read_text())
        bound = content["training_bound"]
        rates = {way: float(content["images_per_second"][way]) for way in ways}
        return rates, None if bound is None else float(bound)
    except (OSError, ValueError, KeyError):
        return None
