"""Sweep: switches tried one by one beside the run as it was asked for; the best put together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from harness.bench.sweep.pairs import Base, Start, Trial
from harness.bench.sweep.process import Arm, ArmFailed, Working
from harness.bench.sweep.switches import changes_learning
from harness.config import load
from harness.errors import BadInput
from harness.system.console import duration, out

LEAST_GAIN = 1.01
"""A switch is taken up if it is faster beyond doubt, and by so much."""
FINALS = 3
"""What the finals get, in the time of so many arms."""


@dataclass(frozen=True)
class Swept:
    """All trials, and what came of them.

    Attributes:
        base: the run as it was asked for.
        trials: of each arm, in the order in which they were tried.
        finals: of what was put together, measured anew.
        best: the one that is faster beyond doubt, if any is.
    """

    base: Arm
    trials: list[Trial]
    finals: list[Trial]
    best: Trial | None


def sweep(
    base: Arm, arms: Callable[[Base], Sequence[Arm]], *, until: float, folder: Path,
    may_change_result: bool, start: Start = Working,
) -> Swept:  # fmt: skip
    """Measure each arm beside the base, then what won together; tells how far it is.

    Args:
        arms: to be tried, from what the base has told of itself.
        until: `time.perf_counter` at which all shall be done; three pairs each are done anyway.
        folder: for what the arms print.
        may_change_result: whether a switch that may change the accuracy can be among the best.

    Raises:
        ArmFailed: the base fails.
    """
    out.print(f"{base.name}: setting it up")
    running = Base(base, folder, start)
    wins = partial(_wins, base=base, may_change_result=may_change_result)
    trials = _one_by_one(running, arms(running), until, wins)
    finals = _finals(running, [each for each in trials if wins(each)], until)
    faster = [each for each in finals if each.is_faster]
    best = max(faster, key=lambda each: each.ratio, default=None)
    return Swept(base, trials, finals, best)


def _one_by_one(
    base: Base, arms: Sequence[Arm], until: float, wins: Callable[[Trial], bool]
) -> list[Trial]:
    trials: list[Trial] = []
    took_s: list[float] = []
    for done, arm in enumerate(arms):
        left_s = until - time.perf_counter()
        # Without finals nothing can be promised; without winners there are none.
        share_s = left_s / (len(arms) - done + FINALS)
        finals_s = FINALS * share_s if any(map(wins, trials)) else 0.0
        if took_s and left_s < finals_s + min(took_s):
            trials.append(Trial(arm, failed="the time was over before its turn"))
            continue
        began = time.perf_counter()
        trials.append(trial := base.beside(arm, share_s))
        took_s.append(time.perf_counter() - began)
        told = f"{done + 1} of {len(arms)}, {arm.name}: {in_words(trial)}"
        out.print(f"{told}; at most {duration(max(0, until - time.perf_counter()))} left")
    return trials


def _wins(trial: Trial, *, base: Arm, may_change_result: bool) -> bool:
    """Whether an arm goes into the finals: settings, not another code, and worth it."""
    arm = trial.arm
    settings = bool(arm.flags) and (arm.code, arm.python) == (base.code, base.python)
    allowed = may_change_result or not any(map(changes_learning, arm.flags))
    return settings and allowed and trial.is_faster and trial.ratio > LEAST_GAIN


def _finals(base: Base, winners: Sequence[Trial], until: float) -> list[Trial]:
    """What won, measured anew: what is best of many was lucky too, so it promises too much."""
    if not winners:
        return []
    best_first = sorted(winners, key=lambda each: -each.ratio)
    together = _together(best_first)
    entered = [together]
    if together.flags != best_first[0].arm.flags:
        entered.append(replace(best_first[0].arm, name=f"{best_first[0].arm.name} alone"))
    finals: list[Trial] = []
    for place, arm in enumerate(entered):
        share_s = (until - time.perf_counter()) / (len(entered) - place)
        trial = base.beside(arm, share_s)
        finals.append(trial)
        out.print(f"final, {arm.name}: {in_words(trial)}")
    return finals


def _together(best_first: Sequence[Trial]) -> Arm:
    """All winners, one value of each switch, less those that do not go with a better one."""
    arm = replace(best_first[0].arm, name="all that won")
    for each in best_first[1:]:
        if arm.flags.keys() & each.arm.flags.keys():
            continue
        more = replace(arm, flags={**arm.flags, **each.arm.flags})
        try:
            load.load(more.all_words)
        except BadInput:
            continue
        arm = more
    if arm.flags == best_first[0].arm.flags:
        return replace(arm, name=best_first[0].arm.name)
    return arm


def in_words(trial: Trial) -> str:
    """What came of it, in a line."""
    if trial.failed is not None:
        return f"not measured: {trial.failed}"
    low, high = trial.interval
    return f"{trial.ratio:.3f} of the base ({low:.3f} to {high:.3f})"


def largest_batch(base: Base, arm: Callable[[int], Arm], most: int) -> Arm | None:
    """The arm with the largest factor of a power of two that fits into memory; none from 2 on.

    Raises:
        ArmFailed: an arm fails, and not for want of memory.
    """
    found, factor = None, 2
    while factor <= most:
        tried = arm(factor)
        out.print(f"does {tried.name} fit into memory?")
        try:
            if not base.fits(tried):
                break
        except ArmFailed as error:
            out.print(f"{error}")
            break
        found, factor = tried, 2 * factor
    return found
