"""Events: what a run decides on the way from its own history; the schedule is a function of them.

They are in every checkpoint and in result.json, so a run that goes on keeps what was decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from harness.config import Schedule

Kind = Literal["warmed up", "dropped", "target reached", "time is up"]


class Event(NamedTuple):
    """What was decided, before which optimiser step (counted from 0)."""

    kind: Kind
    step: int


ENDS: tuple[Kind, ...] = ("target reached", "time is up")
"""Those that end the training."""


def count(events: Iterable[Event], kind: Kind, step: int) -> int:
    """How many events of a kind a step comes after."""
    return sum(event.kind == kind and event.step <= step for event in events)


def last_step(events: Iterable[Event], planned: int) -> int:
    """Steps of the whole training: as planned, or to where an event ends it."""
    return min([planned, *(event.step for event in events if event.kind in ENDS)])


def plateau_drops(scores: Sequence[tuple[float, float]], schedule: Schedule) -> list[float]:
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


def after_validation(
    scores: Sequence[tuple[float, float]], schedule: Schedule, step: int
) -> list[Event]:
    """What the newest of the scores decides, after `step` steps."""
    epoch, top1_pct = scores[-1]
    found: list[Event] = []
    if schedule.stop_at_top1_pct is not None and top1_pct >= schedule.stop_at_top1_pct:
        found.append(Event("target reached", step))
    if schedule.decay == "plateau" and epoch in plateau_drops(scores, schedule)[-1:]:
        found.append(Event("dropped", step))
    return found


def after_period(
    top1_pct: float, events: Sequence[Event], schedule: Schedule, step: int
) -> list[Event]:
    """What the training top-1 of a log period decides, after `step` steps."""
    until = schedule.warmup_until_top1_pct
    if until is None or top1_pct <= until or count(events, "warmed up", step):
        return []
    return [Event("warmed up", step)]
