"""Rules: settings that contradict each other are refused, in one line that says what to do."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from harness.config import Config, Engine, Model
from harness.errors import BadInput
from harness.models import zoo


def check(config: Config) -> None:
    """Refuse settings that contradict each other.

    Raises:
        BadInput: names the fields and what to do.
    """
    refuse(rules(config))


def refuse(messages: Iterator[str]) -> None:
    """Raise BadInput with the first message, if there is any."""
    for message in messages:
        raise BadInput(message)


CUDA_GRAPH_MODES = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}
"""Of torch.compile: what records CUDA graphs, and the same without them."""

OnGpu = TypeVar("OnGpu", bool, bool | None)


def rules(config: Config) -> Iterator[str]:
    """Yield a message for each rule, about settings that must go together, that is broken."""
    yield from _data_rules(config)
    yield from _pixel_rules(config)
    yield from _model_rules(config)
    yield from network_rules(config.model)
    yield from _other_rules(config)
    engine = config.engine
    on_gpu = None if engine.device == "auto" else engine.device == "cuda"
    yield from engine_rules(engine, compiled=compiles(engine, on_gpu=on_gpu), on_gpu=on_gpu)


def _data_rules(config: Config) -> Iterator[str]:
    data = config.data
    if data.source != "synthetic" and data.val is None and not data.holdout_images:
        yield "data.val: no validation folder given; set --data.val DIR (or `demo`)"
    if data.holdout_images > 0 and (data.val is not None or data.source == "synthetic"):
        yield (
            "data.holdout_images: takes validation images from data.train; leave data.val out, and "
            "data.source must not be synthetic"
        )
    if (
        data.source != "synthetic"
        and data.train is None
        and (config.run.mode == "train" or data.holdout_images > 0 or data.mean_image)
    ):
        yield "data.train: no training folder given; set --data.train DIR (or `demo`)"


def _pixel_rules(config: Config) -> Iterator[str]:
    data = config.data
    if 0 < data.eval_resize_px < data.image_px:
        yield (
            f"data.eval_resize_px: {data.eval_resize_px} px is smaller than the crop of "
            f"data.image_px {data.image_px}; make it at least as large, or 0 for no resize"
        )
    if not 0 < data.crop_area[0] <= data.crop_area[1] <= 1:
        yield f"data.crop_area: {data.crop_area} is not least <= most within (0, 1]"
    if not 0 < data.crop_ratio[0] <= data.crop_ratio[1]:
        yield f"data.crop_ratio: {data.crop_ratio} is not least <= most, both over 0"
    jitters_well = data.image_px <= data.jitter_px[0] <= data.jitter_px[1]
    if data.augment == "scale_jitter" and not jitters_well:
        yield (
            f"data.jitter_px: {data.jitter_px} is not least <= most, both at least data.image_px "
            f"{data.image_px}"
        )
    if data.mean_image and (
        data.augment not in ("pad_crop", "none")
        or data.eval_resize_px > 0
        or data.source == "synthetic"
        or config.eval.views != "centre"
    ):
        yield (
            "data.mean_image: is for images that are not resized; needs data.augment pad_crop or "
            "none, data.eval_resize_px 0, eval.views centre, and data.source not synthetic"
        )
    if data.mean_image and data.pad_px > 8:
        yield f"data.pad_px: {data.pad_px} is too much with data.mean_image; make it at most 8"
    if config.eval.views == "ten_crop" and config.eval.local_batch < 10:
        yield (
            f"eval.local_batch: {config.eval.local_batch} is less than the 10 views of one image; "
            "make it a multiple of 10"
        )
    if min(data.largest_px) < 0:
        yield f"data.largest_px: {data.largest_px} must be width and height in px, or 0 0"
    if min(data.std) <= 0:
        yield f"data.std: {data.std} must be over 0"
    if data.decode in ("gpu", "split") and (config.engine.device == "cpu" or data.source != "dali"):
        yield f"data.decode: {data.decode} needs engine.device cuda and data.source dali"


def _model_rules(config: Config) -> Iterator[str]:
    model, batch = config.model, config.train.global_batch
    group = model.bn_images or 1
    if config.run.mode == "eval" and model.weights is None:
        yield "run.mode: eval scores published weights; name them with --model.weights"
    if model.stride_in == "1x1" and (model.weights or "").startswith("torchvision:"):
        yield "model.stride_in: torchvision's weights were trained with the stride in the 3x3"
    if config.run.mode == "train" and batch % group > 0:
        yield (
            f"model.bn_images: a train.global_batch of {batch} is no multiple of {group}; "
            f"use {_around(batch, group)}"
        )


def _around(batch: int, divisor: int) -> str:
    """Return the multiples below and above: `96 or 128`."""
    below = batch // divisor * divisor
    return " or ".join(str(images) for images in (below, below + divisor) if images)


def network_rules(model: Model) -> Iterator[str]:
    """Yield what does not fit the network."""
    name, network = model.name, zoo.MODELS[model.name]
    for key, why in zoo.SETTINGS.items():
        default = Model.model_fields[key].default
        if key not in network.settings and getattr(model, key) != default:
            yield f"model.{key}: {name} {why}; leave it at {str(default).lower()}"
    if network.cifar and model.stem == "imagenet":
        yield f"model.stem: {name} is a CIFAR network and has no imagenet stem"


def _other_rules(config: Config) -> Iterator[str]:
    schedule = config.schedule
    if config.optim.nesterov and config.optim.momentum == 0:
        yield "optim.nesterov: needs optim.momentum over 0"
    if schedule.warmup_until_top1_pct is not None and (
        schedule.warmup_start_lr is None or schedule.warmup_epochs > 0
    ):
        yield (
            "schedule.warmup_until_top1_pct: needs schedule.warmup_start_lr, the rate until then, "
            "and schedule.warmup_epochs 0"
        )
    if not _rise(epochs := schedule.drop_epochs):
        yield f"schedule.drop_epochs: {epochs} must be over 0 and rise from drop to drop"
    if not _rise(steps := schedule.drop_steps):
        yield f"schedule.drop_steps: {steps} must be over 0 and rise from drop to drop"


def compiles(engine: Engine, *, on_gpu: OnGpu) -> bool | OnGpu:
    """Return what engine.compile means: auto compiles on a GPU."""
    return on_gpu if engine.compile == "auto" else engine.compile


def engine_rules(engine: Engine, *, compiled: bool | None, on_gpu: bool | None) -> Iterator[str]:
    """Yield which settings of the engine do not fit each other, or the machine.

    Args:
        compiled: see `compiles`.
        on_gpu: where it runs; None: only the machine can tell.
    """
    mode, cpu = engine.compile_mode, on_gpu is False
    eager, needs = compiled is False, "needs engine.compile true (auto compiles on a GPU only)"
    if compiled is True and engine.bucket_mb < 1:
        yield (
            f"engine.bucket_mb: {engine.bucket_mb:g} is too small for compiled networks: "
            "torch's first bucket has 1 MiB; make it at least 1"
        )
    if cpu and engine.precision in ("tf32", "fp16"):
        yield f"engine.precision: {engine.precision} needs a GPU; use bf16, fp32 or auto"
    if cpu and (without := CUDA_GRAPH_MODES.get(mode)):
        yield (
            f"engine.compile_mode: {mode} means CUDA graphs, which only a GPU has; use {without}"
        )
    if eager and mode != "default":
        yield f"engine.compile_mode: {mode} {needs}"
    if eager and engine.compile_ddp:
        yield f"engine.compile_ddp: {needs}"
    if eager and engine.coordinate_descent:
        yield f"engine.coordinate_descent: {needs}"


def _rise(drops: Sequence[float]) -> bool:
    return list(drops) == sorted(set(drops)) and min(drops, default=1) > 0


def per_rank(batch: int, ranks: int) -> int:
    """Return the images of a global batch for each rank.

    Raises:
        BadInput: it does not divide; names the nearest that do.
    """
    if batch % ranks:
        raise BadInput(
            f"train.global_batch: {batch} does not divide over {ranks} ranks; "
            f"use {_around(batch, ranks)}"
        )
    return batch // ranks
