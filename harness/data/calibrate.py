"""Choose where to decode: measure each way for some seconds, and store the rates in the cache.

They are stored because a resumed run must decode as before: the decoders' pixels differ.
"""

import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import config as cfg
from harness.data.batch import Batches
from harness.data.index import cache_folder, locked
from harness.data.sets import Images
from harness.data.stream import Samples
from harness.system.console import out
from harness.system.files import write_text
from harness.system.progress import in_parallel

WAYS = ("cpu", "split", "gpu")  # what they do on the GPU: nothing; resize and flip; all
WARM_BATCHES, MOST_BATCHES = 5, 20
TURN_S = 2.0
ENOUGH = 0.86
"""Share of training's bound that is fast enough: PyTorch reaches two thirds of it (ResNet-50 on an
H100: 4,700 of 7,100 images/s), and a loader should be 1.3 times as fast as the training."""
AS_FAST = 0.9
"""Share of the fastest rate that is as good: a smaller gain is not worth the load on the GPU."""


@dataclass(frozen=True)
class Demand:
    """How many images per second training could consume."""

    of: Mapping[str, Any]  # the settings that it depends on; part of the key of the stored rates
    bound: Callable[[], float]  # returns an upper bound in images per second of one rank


def read_once(data: cfg.Data, images: Images, samples: Iterator[Samples], threads: int) -> None:
    """Read the files of the first batches, and of those prefetched, into the page cache."""
    assert images.dataset is not None
    ahead = data.read_ahead_batches + data.prefetch_batches + 1
    batches = itertools.islice(samples, WARM_BATCHES + MOST_BATCHES + ahead)
    ids = [sample for batch in batches for sample in batch.ids.tolist()]
    for _ in in_parallel(images.dataset.content, ids, threads=threads, what="reading once"):
        pass


def decode_on(
    key: Mapping[str, Any],
    ways: Sequence[str],
    make: Callable[[str], Batches],
    *,
    read_once: Callable[[], None],
    demand: Demand | None,
) -> str:
    """Return the way to decode, one of `ways`, with which training should be fastest.

    One process per node measures; the others wait for it.

    Args:
        key: all that the rates depend on: the device, threads, sizes, versions.
        ways: the members of WAYS that this node supports, in their order.
        make: returns a loader of at least WARM_BATCHES + MOST_BATCHES batches for a way.
        read_once: reads the bytes of those batches, so that every way finds them in memory.
        demand: None if nothing is known about the training; then the fastest way is chosen.
    """
    key = {**key, "ways": list(ways), "training": dict(demand.of) if demand else None}
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / "decode" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    with locked(path):
        measured = _load(path, ways)
        if measured is None:
            read_once()
            rates, bound = measured = _rates(ways, make), demand.bound() if demand else None
            way = choose(rates, bound)
            found = {"decode": way, "images_per_second": rates, "training_bound": bound, "of": key}
            write_text(path, json.dumps(found, indent=1))
            listed = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
            limit = f"; training needs at most {bound:,.0f}" if bound else ""
            out.print(
                f"data.decode auto: {way}, from {listed} images/s per rank{limit}; stored in {path}"
            )
    return choose(*measured)


def choose(rates: Mapping[str, float], bound: float | None) -> str:
    """Return the first of WAYS that is fast enough for training, or nearly the fastest."""
    need = min(AS_FAST * max(rates.values()), ENOUGH * bound if bound else math.inf)
    return next(way for way in WAYS if rates.get(way, 0.0) >= need)


def _rates(ways: Sequence[str], make: Callable[[str], Batches]) -> dict[str, float]:
    """Return images per second of each way, measured forward and backward to cancel drift."""
    images, seconds = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0)
    for way in (*ways, *reversed(ways)):
        n, took_s = _turn(make(way))
        images[way] += n
        seconds[way] += took_s
    return {way: images[way] / seconds[way] for way in ways}


def _turn(batches: Batches) -> tuple[int, float]:
    """Return the number of images of one measurement, and its seconds."""
    with closing(batches):
        # `tolist` waits until a batch is complete, as GPU work is asynchronous.
        for batch in itertools.islice(batches, WARM_BATCHES):
            batch.labels.tolist()
        began, images = time.perf_counter(), 0
        for batch in itertools.islice(batches, MOST_BATCHES):
            images += len(batch.labels.tolist())
            if time.perf_counter() - began >= TURN_S:
                break
        return images, time.perf_counter() - began


def _load(path: Path, ways: Sequence[str]) -> tuple[dict[str, float], float | None] | None:
    try:
        content = json.loads(path.read_text())
        rates = {way: float(content["images_per_second"][way]) for way in ways}
        return rates, content["training_bound"]
    except (OSError, ValueError, KeyError):
        return None
