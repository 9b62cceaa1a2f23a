"""Advice: the setting to change first, for the part that binds."""

from __future__ import annotations

from dataclasses import dataclass

from harness.bench.ladder import rungs
from harness.bench.ladder.law import Part
from harness.bench.ladder.summary import Ladder
from harness.trainer.resolve import FEW_IMAGES, Resolved, resolve_precision

LARGE_KB = 60.0
"""An ImageNet image with a shorter side of 256 px has about 35 KB, an original 110."""
SLOW_READ = 1.5
"""Reading must be so much faster than the loader, or it may be what holds it back."""


@dataclass(frozen=True)
class Change:
    """What to change: in words, and as an arm of a sweep, if that can tell what it gives."""

    words: str
    arm: str | None = None


def first_change(ladder: Ladder, resolved: Resolved, kb_per_image: float | None) -> Change:
    """What to try first, with the words to type.

    Args:
        kb_per_image: encoded, on average; null without files.
    """
    tries: dict[Part, list[tuple[bool, Change]]] = {
        "data": _data(ladder, resolved, kb_per_image),
        "compute": _compute(resolved),
        "all-reduce": _all_reduce(resolved),
    }
    return next(change for is_open, change in tries[ladder.binds] if is_open)


def _set(key: str, value: object, why: str) -> Change:
    return Change(f"--{key.replace('_', '-')} {value}: {why}", f"{key}={value}")


def _data(
    ladder: Ladder, resolved: Resolved, kb_per_image: float | None
) -> list[tuple[bool, Change]]:
    data, world, loader = resolved.config.data, resolved.world, resolved.loader
    rate = ladder[rungs.LOADER].images_per_second or 0.0
    cold = ladder[rungs.READ_COLD].images_per_second or float("inf")
    reads = not ladder.fits_in_memory and cold < SLOW_READ * rate
    large = (kb_per_image or 0) > LARGE_KB and data.image_px <= 256
    packed = Change(
        "the disk: pack the images into shards on a local disk (harness data pack), or raise "
        "--data.read-ahead-batches"
    )
    smaller = Change(
        f"smaller images: {kb_per_image or 0:,.0f} KB each; harness data pack --shorter-px 256 "
        "(accuracy is then another: say so)"
    )
    return [
        (data.source == "torchvision",
         _set("data.source", "dali", "torchvision's loader is the baseline")),
        (reads, packed),
        (loader.threads < world.cores(),
         _set("data.threads", world.cores(), "cores are left over")),
        (world.on_gpu and loader.decode == "cpu",
         _set("data.decode", "split", "resize and flip on the GPU")),
        (world.on_gpu and loader.decode == "split",
         _set("data.decode", "gpu", "the GPU's decoder")),
        (large, smaller),
        (world.on_gpu, Change(
            "more CPU cores per GPU (sbatch --cpus-per-task), as decoding is what they do")),
        (True, Change(
            "nothing in the loader is open: decoding and resizing take what the cores give")),
    ]  # fmt: skip


def _compute(resolved: Resolved) -> list[tuple[bool, Change]]:
    engine, world = resolved.config.engine, resolved.world
    best = resolve_precision("auto", on_gpu=world.on_gpu)
    n = resolved.split.local_batch
    larger = Change(
        f"a larger local batch than {n}: raise --train.global-batch or --train.max-local-batch"
    )
    return [
        (resolved.precision != best and best != "fp32",
         _set("engine.precision", best, "this hardware has it (the result may differ)")),
        (not engine.channels_last,
         _set("engine.channels_last", "true", "the layout that convolutions are fastest in")),
        (not resolved.compiled, _set("engine.compile", "true", "fewer, larger operations")),
        (world.on_gpu and n < FEW_IMAGES, larger),
        (engine.deterministic,
         _set("engine.deterministic", "false", "the fastest kernels, not the repeatable ones")),
        (resolved.threads < world.cores(),
         _set("engine.threads", world.cores(), "cores are left over")),
        (True, Change(
            "harness bench sweep: the known switches are on, so try the others in turns")),
    ]  # fmt: skip


def _all_reduce(resolved: Resolved) -> list[tuple[bool, Change]]:
    engine, split = resolved.config.engine, resolved.split
    larger = Change(
        "a larger local batch: each sum of gradients then serves more images (--train.global-batch)"
    )
    return [
        (split.accumulate == 1 and split.local_batch < FEW_IMAGES, larger),
        (engine.bucket_mb <= 25,
         _set("engine.bucket_mb", f"{2 * engine.bucket_mb:g}",
              "fewer, larger sums; and see harness doctor under torchrun for the links")),
        (True, Change("the network: harness doctor under torchrun measures each link")),
    ]  # fmt: skip
