"""SGD, its parameter groups, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from harness import config as cfg
from harness.events import Event, count


def peak_lr(optim: cfg.Optim, global_batch: int) -> float:
    """The linear scaling rule: lr_per_256 x global_batch / 256 (Goyal et al. 2017, 2.1)."""
    return optim.lr_per_256 * global_batch / 256


def learning_rate(
    step: int,
    *,
    schedule: cfg.Schedule,
    peak: float,
    start: float,
    steps_per_epoch: int,
    events: Sequence[Event] = (),
) -> float:
    """Learning rate of an optimiser step, counted from 0.

    1. Warm-up: gradual, from `start` to `peak` in equal increments, or constant, `start` throughout
       (Goyal et al. 2017, 2.2); or `start` until an event ends it (He et al. 2015, 4.2).
    2. step: the peak times drop_factor for each drop epoch reached (He et al. 2015, 3.4).
    3. plateau: the peak times drop_factor for each drop among the events.
    4. cosine: half a cosine from the end of the warm-up to 0 (Loshchilov and Hutter 2017).
    """
    warmup_steps = round(schedule.warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        gradual = schedule.warmup == "gradual"
        return start + (peak - start) * step / warmup_steps if gradual else start
    if schedule.warmup_until_top1_pct is not None and not count(events, "warmed up", step):
        return start
    if schedule.decay == "plateau":
        return peak * schedule.drop_factor ** count(events, "dropped", step)
    if schedule.decay == "step":
        in_steps = [round(epoch * steps_per_epoch) for epoch in schedule.drop_epochs]
        reached = sum(step >= drop for drop in schedule.drop_steps or in_steps)
        return peak * schedule.drop_factor**reached
    if schedule.decay == "cosine":
        whole = schedule.epochs * steps_per_epoch - warmup_steps
        return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, whole)))
    return peak


def warmup_start_lr(config: cfg.Config) -> float:
    """Rate of step 0 of the warm-up: as asked, else lr_per_256, and never over the peak."""
    asked = config.schedule.warmup_start_lr
    peak = peak_lr(config.optim, config.train.global_batch)
    return min(config.optim.lr_per_256, peak) if asked is None else asked


def sgd(
    parameters: Iterable[torch.nn.Parameter], optim: cfg.Optim, *, fused: bool = True
) -> torch.optim.SGD:
    """SGD whose groups are found by structure: one dimension means norm or bias.

    Fused: one kernel per step, and fp16's scaler then needs no host read. Else as torch chooses:
    tensor by tensor on a CPU, all tensors at once on a GPU. The last bits differ.
    """
    everything = list(parameters)
    matrices = [p for p in everything if p.ndim > 1]
    vectors = [p for p in everything if p.ndim <= 1]
    vector_decay = optim.weight_decay if optim.decay_norm_and_bias else 0.0
    groups = [
        {"params": matrices, "weight_decay": optim.weight_decay},
        {"params": vectors, "weight_decay": vector_decay},
    ]
    optimizer = torch.optim.SGD(
        groups, lr=0.0, momentum=optim.momentum, nesterov=optim.nesterov, fused=fused
    )
    if optim.momentum:
        # Else torch makes the buffers in the first step without filling them, also in one that
        # fp16's scaler skips. Zeros give the same first step: 0.9 x 0 + g.
        for parameter in everything:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Put the step's learning rate into every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
