"""Advice: the setting to change first, for the part that binds."""

from __future__ import annotations

from harness.bench import rungs
from harness.bench.law import Part
from harness.bench.summary import Ladder
from harness.resolve import Resolved, resolve_precision

LARGE_KB = 60.0
"""An ImageNet image with a shorter side of 256 px has about 35 KB, an original 110."""
SLOW_READ = 1.5
"""Reading must be so much faster than the loader, or it may be what holds it back."""
FEW_IMAGES = 64  # of a local batch: a GPU is not filled by fewer


def first_change(ladder: Ladder, resolved: Resolved, kb_per_image: float | None) -> str:
    """What to try first, as one line with the words to type.

    Args:
        kb_per_image: encoded, on average; null without files.
    """
    tries: dict[Part, list[tuple[bool, str]]] = {
        "data": _data(ladder, resolved, kb_per_image),
        "compute": _compute(resolved),
        "all-reduce": _all_reduce(resolved),
    }
    return next(words for is_open, words in tries[ladder.binds] if is_open)


def _data(ladder: Ladder, resolved: Resolved, kb_per_image: float | None) -> list[tuple[bool, str]]:
    data, world, loader = resolved.config.data, resolved.world, resolved.loader
    rate = ladder[rungs.LOADER].images_per_second or 0.0
    cold = ladder[rungs.READ_COLD].images_per_second or float("inf")
    reads = not ladder.fits_in_memory and cold < SLOW_READ * rate
    large = (kb_per_image or 0) > LARGE_KB and data.image_px <= 256
    return [
        (data.source == "torchvision", "--data.source dali: torchvision's loader is the baseline"),
        (
            reads,
            "the disk: pack the images into shards on a local disk (harness data pack), or raise "
            "--data.read-ahead-batches",
        ),
        (
            loader.threads < world.cores(),
            f"--data.threads {world.cores()}: cores are left over",
        ),
        (
            world.on_gpu and loader.decode == "cpu",
            "--data.decode gpu: the GPU's decoder",
        ),
        (
            large,
            f"smaller images: {kb_per_image or 0:,.0f} KB each; harness data pack --shorter-px 256 "
            "(accuracy is then another: say so)",
        ),
        (
            world.on_gpu,
            "more CPU cores per GPU (sbatch --cpus-per-task), as decoding is what they do",
        ),
        (
            True,
            "nothing in the loader is open: decoding and resizing take what the cores give",
        ),
    ]  # fmt: skip


def _compute(resolved: Resolved) -> list[tuple[bool, str]]:
    engine, world = resolved.config.engine, resolved.world
    best = resolve_precision("auto", on_gpu=world.on_gpu)
    n = resolved.split.local_batch
    return [
        (
            resolved.precision != best and best != "fp32",
            f"--engine.precision {best}: this hardware has it (the result may differ)",
        ),
        (not engine.channels_last, "--engine.channels-last true"),
        (not resolved.compiled, "--engine.compile true: fewer, larger operations"),
        (
            world.on_gpu and n < FEW_IMAGES,
            f"a larger local batch than {n}: raise --train.global-batch or "
            "--train.max-local-batch",
        ),
        (engine.deterministic, "--engine.deterministic false"),
        (
            resolved.threads < world.cores(),
            f"--engine.threads {world.cores()}: cores are left over",
        ),
        (True, "harness bench sweep: the known switches are on, so try the others in turns"),
    ]  # fmt: skip


def _all_reduce(resolved: Resolved) -> list[tuple[bool, str]]:
    engine, split = resolved.config.engine, resolved.split
    return [
        (
            split.accumulate == 1 and split.local_batch < FEW_IMAGES,
            "a larger local batch: each sum of gradients then serves more images "
            "(--train.global-batch)",
        ),
        (
            engine.bucket_mb <= 25,
            f"--engine.bucket-mb {2 * engine.bucket_mb:g}: fewer, larger sums; and see harness "
            "doctor under torchrun for the links",
        ),
        (True, "the network: harness doctor under torchrun measures each link"),
    ]
