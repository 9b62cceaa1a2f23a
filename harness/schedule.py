"""Schedule: the learning rate as a pure function of the step and of events.

Events are what a run decides on the way from its own history. They are in every checkpoint and in
result.json, so that a run that goes on keeps what was decided.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from harness import config as cfg

Kind = Literal["warmed up", "dropped", "target reached", "time is up"]


class Event(NamedTuple):
    """A decision, and the optimizer step, counted from 0, before which it was made."""

    kind: Kind
    step: int


ENDS: tuple[Kind, ...] = ("target reached", "time is up")
"""Kinds of events that end the training."""


def count(events: Iterable[Event], kind: Kind, step: int) -> int:
    """Count the events of a kind before or at a step."""
    return sum(event.kind == kind and event.step <= step for event in events)


def last_step(events: Iterable[Event], planned: int) -> int:
    """Steps of the whole training: as planned, or until an event ends it."""
    return min([planned, *(event.step for event in events if event.kind in ENDS)])


def plateau_drops(scores: Sequence[tuple[float, float]], schedule: cfg.Schedule) -> list[float]:
    """Epochs after which the learning rate drops (He et al. 2015, 3.4: "when the error plateaus").

    Args:
        scores: (epochs done, top-1 in percent) of every validation so far.
    """
    drops: list[float] = []
    best, since = float("-inf"), 0.0
    for epoch, top1_pct in scores:
        if top1_pct > best + schedule.plateau_gain_pct:
            best, since = top1_pct, epoch
        elif epoch - since >= schedule.plateau_epochs:
            drops.append(epoch)
            since = epoch
    return drops


class History(NamedTuple):
    """Measurements and earlier events, from which the schedule decides."""

    events: Sequence[Event] = ()
    train_top1_pct: float | None = None  # of the log period that has just ended, if one has
    scores: Sequence[tuple[float, float]] = ()  # of every validation, if one has just ended


def decide(history: History, schedule: cfg.Schedule, step: int) -> list[Event]:
    """Decide which events follow from the newest measurement, after `step` steps."""
    decided: list[Event] = []
    until = schedule.warmup_until_top1_pct
    is_warm = until is not None and (history.train_top1_pct or 0) > until
    if is_warm and not count(history.events, "warmed up", step):
        decided.append(Event("warmed up", step))
    if history.scores:
        epoch, top1_pct = history.scores[-1]
        if schedule.stop_at_top1_pct is not None and top1_pct >= schedule.stop_at_top1_pct:
            decided.append(Event("target reached", step))
        if schedule.decay == "plateau" and epoch in plateau_drops(history.scores, schedule)[-1:]:
            decided.append(Event("dropped", step))
    return decided


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
    """Learning rate of an optimizer step, counted from 0.

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
    """Learning rate at step 0 of the warm-up: as configured, else lr_per_256 or the peak."""
    configured = config.schedule.warmup_start_lr
    peak = peak_lr(config.optim, config.train.global_batch)
    return min(config.optim.lr_per_256, peak) if configured is None else configured
