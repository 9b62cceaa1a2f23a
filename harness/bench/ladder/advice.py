"""Choose the setting to change first, for the part that limits the speed."""

from dataclasses import dataclass

from harness.bench.ladder import rungs
from harness.bench.ladder.summary import Ladder, Part
from harness.trainer.resolve import FEW_IMAGES, Resolved, resolve_precision

LARGE_KB = 60.0
"""Images larger than this could be shrunk: ImageNet's have about 110 KB on average, and 35 with a
shorter side of 256 px."""
SLOW_READ = 1.5
"""If cold reading is not this many times faster than the loader, the disk may limit it."""


@dataclass(frozen=True)
class Change:
    """A change to try."""

    text: str  # for the user
    arm: str | None = None  # of `harness bench sweep`, to measure its effect, if there is one


def first_change(ladder: Ladder, resolved: Resolved, kb_per_image: float | None) -> Change:
    """Return the first change to try; an encoded image has so many kB, None without files."""
    changes: dict[Part, list[tuple[bool, Change]]] = {
        "data": _data(ladder, resolved, kb_per_image or 0.0),
        "compute": _compute(resolved),
        "all-reduce": _all_reduce(resolved),
    }
    return next(change for applies, change in changes[ladder.binds] if applies)


def _set(key: str, value: object, why: str) -> Change:
    return Change(f"--{key.replace('_', '-')} {value}: {why}", f"{key}={value}")


def _data(ladder: Ladder, resolved: Resolved, kb_per_image: float) -> list[tuple[bool, Change]]:
    data, world, loader = resolved.config.data, resolved.world, resolved.loader
    rate = ladder[rungs.LOADER].images_per_second or 0.0
    cold = ladder[rungs.READ_COLD].images_per_second or float("inf")
    reads = not ladder.fits_in_memory and cold < SLOW_READ * rate
    large = kb_per_image > LARGE_KB and data.image_px <= 256
    packed = Change(
        "the disk: pack the images into shards on a local disk (harness data pack), or raise "
        "--data.read-ahead-batches"
    )
    smaller = Change(
        f"smaller images: {kb_per_image:,.0f} KB each; harness data pack --shorter-px 256 "
        "(this may change the accuracy)"
    )
    return [
        (data.source == "torchvision",
         _set("data.source", "dali", "torchvision's loader is the baseline")),
        (reads, packed),
        (loader.threads < world.cores(),
         _set("data.threads", world.cores(), "some cores are idle")),
        (world.on_gpu and loader.decode == "cpu",
         _set("data.decode", "split", "resize and flip on the GPU")),
        (world.on_gpu and loader.decode == "split",
         _set("data.decode", "gpu", "the GPU's decoder")),
        (large, smaller),
        (world.on_gpu,
         Change("more CPU cores per GPU (sbatch --cpus-per-task), as decoding is limited by them")),
        (True, Change("no setting of the loader is left: the cores limit decoding and resizing")),
    ]  # fmt: skip


def _compute(resolved: Resolved) -> list[tuple[bool, Change]]:
    engine, world, local_batch = resolved.config.engine, resolved.world, resolved.split.local_batch
    best = resolve_precision("auto", on_gpu=world.on_gpu)
    larger = Change(
        f"a larger local batch than {local_batch}: raise --train.global-batch or "
        "--train.max-local-batch"
    )
    return [
        (resolved.precision != best and best != "fp32",
         _set("engine.precision", best, "this hardware supports it (the result may differ)")),
        (not engine.channels_last,
         _set("engine.channels_last", "true", "the fastest memory layout for convolutions")),
        (not resolved.compiled, _set("engine.compile", "true", "fewer, larger operations")),
        (world.on_gpu and local_batch < FEW_IMAGES, larger),
        (engine.deterministic,
         _set("engine.deterministic", "false", "the fastest kernels, not the deterministic ones")),
        (resolved.threads < world.cores(),
         _set("engine.threads", world.cores(), "some cores are idle")),
        (True, Change("harness bench sweep: the common settings are in use, so try the others")),
    ]  # fmt: skip


def _all_reduce(resolved: Resolved) -> list[tuple[bool, Change]]:
    engine, split = resolved.config.engine, resolved.split
    larger = Change("a larger local batch, for fewer all-reduces per image (--train.global-batch)")
    return [
        (split.accumulate == 1 and split.local_batch < FEW_IMAGES, larger),
        (engine.bucket_mb <= 25,
         _set("engine.bucket_mb", f"{2 * engine.bucket_mb:g}",
              "fewer, larger all-reduces; harness doctor under torchrun measures the links")),
        (True, Change("the network: harness doctor under torchrun measures each link")),
    ]  # fmt: skip
