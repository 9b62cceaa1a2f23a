"""Resolve a config on this machine: batch split, steps, precision, learning rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from harness import config as cfg
from harness.config.rules import CUDA_GRAPH_MODES, compiles, engine_rules, per_rank, refuse
from harness.data.loader import Loader
from harness.data.sets import Images
from harness.data.stream import Split
from harness.distributed import World
from harness.errors import BadInput
from harness.schedule import Event, learning_rate, peak_lr, warmup_start_lr
from harness.system.console import count

if TYPE_CHECKING:
    from harness.data.calibrate import Demand

FEW_IMAGES = 64
"""Of a local batch: a GPU is not filled by fewer."""


@dataclass(frozen=True)
class Resolved:
    """Everything that follows from the config and the machine, decided once."""

    config: cfg.Config
    world: World
    loader: Loader
    split: Split
    steps_per_epoch: int
    total_steps: int
    peak_lr: float
    precision: str
    compiled: bool
    threads: int
    folder: Path

    @property
    def eval_views(self) -> int:
        """Crops of each validation image."""
        return 10 if self.config.eval.views == "ten_crop" else 1

    @property
    def eval_images(self) -> int:
        """Validation images per rank in one forward, which has all views of each."""
        return self.config.eval.local_batch // self.eval_views

    @property
    def under_ddp(self) -> bool:
        """Whether DDP is around the network: to sum gradients over ranks, or to round them."""
        return self.world.size > 1 or self.config.engine.send_gradients != "fp32"

    @property
    def cuda_graphs(self) -> bool:
        """Whether the network's kernels are recorded, and replayed on the same memory."""
        mode = self.config.engine.compile_mode
        return self.compiled and self.world.on_gpu and mode in CUDA_GRAPH_MODES

    def lr(self, step: int, events: Sequence[Event] = ()) -> float:
        """Learning rate of an optimizer step, counted from 0, after what was decided before it."""
        return learning_rate(
            step,
            schedule=self.config.schedule,
            peak=self.peak_lr,
            start=warmup_start_lr(self.config),
            steps_per_epoch=self.steps_per_epoch,
            events=events,
        )

    def _compiling(self) -> str:
        engine = self.config.engine
        if not self.compiled:
            return "eager"
        mode = "" if engine.compile_mode == "default" else f" for {engine.compile_mode}"
        return f"compiled{mode}{', DDP too' if engine.compile_ddp and self.under_ddp else ''}"

    def _unfilled(self) -> str | None:
        """The setting that helps where a GPU gets too few images at a time."""
        config, split = self.config, self.split
        if not self.world.on_gpu or config.run.mode == "eval" or split.local_batch >= FEW_IMAGES:
            return None
        which = "max-local-batch" if split.accumulate > 1 else "global-batch"
        graphs = "" if self.cuda_graphs else ", or --engine.compile-mode reduce-overhead"
        return (
            f"{split.local_batch} images at a time do not fill a GPU: raise --train.{which} "
            f"({FEW_IMAGES} or more for each){graphs}"
        )

    def _length(self) -> str:
        schedule = self.config.schedule
        said = f"{schedule.epochs} epochs x {self.steps_per_epoch} steps"
        if self.total_steps < schedule.epochs * self.steps_per_epoch:
            said += f", stopped after {self.total_steps} steps"
        if schedule.stop_at_top1_pct is not None:
            said += f", or to {schedule.stop_at_top1_pct:g} % top-1"
        if schedule.max_minutes is not None:
            said += f", or {schedule.max_minutes:g} minutes of training"
        return said

    def lines(self) -> list[str]:
        """What is about to run, for a person."""
        config, world, split = self.config, self.world, self.split
        device = torch.cuda.get_device_name(world.device) if world.on_gpu else "CPU"
        rows = {
            "network": f"{config.model.name} at {config.data.image_px} px"
            + (f", BN over {images} images" if (images := config.model.bn_images) else ""),
            "devices": f"{world.size} x {device}",
            "computing": f"{self.precision}, "
            f"{'channels_last' if config.engine.channels_last else 'NCHW'}, "
            f"{self._compiling()}, {self.threads} CPU threads per rank",
            "data": f"{config.data.source}, decoded on {self.loader.decode}, "
            f"{self.loader.threads} threads per rank",
        }
        if config.run.mode == "train":
            rows |= {
                "global batch": f"{split.global_batch} = {count(split.world_size, 'rank')} x "
                f"{split.accumulate} accumulated x {split.local_batch} local",
                "peak lr": f"{self.peak_lr:g} = {config.optim.lr_per_256:g} per 256 images",
                "length": self._length(),
            }
        if note := self._unfilled():
            rows["note"] = note
        rows["folder"] = str(self.folder)
        return [f"{name:>12}: {value}" for name, value in rows.items()]


def resolve(config: cfg.Config, world: World, train: Images | None) -> Resolved:
    """Decide everything that the config leaves open.

    Raises:
        BadInput: the global batch does not divide, or the hardware lacks what it needs.
    """
    if train:
        split = split_batch(config.train, world.size, config.model.bn_images or 1)
    else:
        local_batch = config.eval.local_batch
        split = Split(local_batch * world.size, local_batch, 1, world.size)
    steps_per_epoch = len(train) // split.global_batch if train else 0
    planned = config.schedule.epochs * steps_per_epoch
    total_steps = min(planned, config.schedule.max_steps or planned)
    _check_profile(config.profile, total_steps)
    compiled = compiles(config.engine, on_gpu=world.on_gpu)
    refuse(engine_rules(config.engine, compiled=compiled, on_gpu=world.on_gpu))
    precision = resolve_precision(config.engine.precision, on_gpu=world.on_gpu)
    assert config.run.name is not None, "cli.load names every run"
    return Resolved(
        config=config,
        world=world,
        loader=Loader.resolve(config.data, world, train, split, _demand(config, world, precision)),
        split=split,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        peak_lr=peak_lr(config.optim, split.global_batch),
        precision=precision,
        compiled=compiled,
        threads=config.engine.threads or world.cores(),
        folder=Path(config.run.root) / config.run.name,
    )


def _check_profile(profile: cfg.Profile, total_steps: int) -> None:
    steps = profile.first_and_last
    if steps is not None and not steps[0] < steps[1] <= total_steps:
        raise BadInput(
            f"profile.steps: {profile.steps} is not FIRST:LAST with FIRST < LAST, within the "
            f"{total_steps:,} steps of this run"
        )


def _demand(config: cfg.Config, world: World, precision: str) -> "Demand | None":
    """How many images the training could take, where the loader chooses a decoder by it."""
    if not world.on_gpu or config.data.decode != "auto":
        return None
    from harness.data.calibrate import Demand
    from harness.monitor.environment import cpu_info
    from harness.monitor.peaks import measured, training_bound

    device, cpu = world.device, cpu_info().get("model name")
    return Demand(
        {"model": config.model.name, "precision": precision, "cpu": cpu},
        lambda: training_bound(config, device.type, measured(device, precision).flops_per_s),
    )


def split_batch(train: cfg.Train, world_size: int, bn_images: int = 1) -> Split:
    """Cut the global batch over ranks, and into as few micro-batches as memory allows.

    Raises:
        BadInput: it does not divide; names the nearest that do. Or only into tiny micro-batches,
            or into none that is a multiple of `bn_images`.
    """
    each = per_rank(train.global_batch, world_size)
    most = min(train.max_local_batch or each, each)
    if each % bn_images or most < bn_images:
        raise BadInput(
            f"model.bn_images: {each} images per rank, at most {most} at once, cannot be cut "
            f"into local batches that are multiples of {bn_images}; choose train.global_batch as "
            f"a multiple of {bn_images * world_size}, or another number of ranks"
            + (f", and train.max_local_batch at least {bn_images}" if most < bn_images else "")
        )
    local_batch = next(n for n in range(most, 0, -1) if each % n == 0 and n % bn_images == 0)
    if 2 * local_batch < most:
        raise BadInput(
            f"train.max_local_batch: {each} images per rank cannot be cut evenly into parts of "
            f"nearly {most}, the nearest is {local_batch}; choose another train.global_batch"
        )
    return Split(train.global_batch, local_batch, each // local_batch, world_size)


def resolve_precision(precision: str, *, on_gpu: bool) -> str:
    """auto: bf16 where the hardware has it, else fp16 on a GPU and fp32 on a CPU.

    Without AVX512-BF16 or AMX, bf16 on a CPU is emulated and slower than fp32.

    Raises:
        BadInput: tf32 or fp16 on a CPU.
    """
    if precision in ("tf32", "fp16") and not on_gpu:
        raise BadInput(f"engine.precision: {precision} needs a GPU; use bf16, fp32 or auto")
    if precision != "auto":
        return precision
    if on_gpu:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    has = torch.cpu.get_capabilities()
    fast = has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16")
    return "bf16" if fast else "fp32"
