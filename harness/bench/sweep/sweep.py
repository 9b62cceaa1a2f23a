"""Try arms one by one against the base, then all that were faster together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from harness.bench.sweep.pairs import Base, Start, Trial
from harness.bench.sweep.process import Variant, VariantFailed, VariantProcess
from harness.bench.sweep.switches import changes_learning
from harness.config import load
from harness.errors import BadInput
from harness.system.console import duration, out

LEAST_GAIN = 1.01
"""An arm enters the finals if it is certainly faster, and its ratio is above this."""
FINALS = 3
"""The finals get as much time as so many arms."""


@dataclass(frozen=True)
class Swept:
    """The result of a sweep.

    Attributes:
        base: the run that the arms are compared with.
        trials: one for each arm, in the order in which they were tried.
        finals: new measurements of the winners: all together, and the best one alone.
        best: the fastest final that is certainly faster than the base, if there is one.
    """

    base: Variant
    trials: list[Trial]
    finals: list[Trial]
    best: Trial | None


def sweep(
    base: Variant, arms: Callable[[Base], Sequence[Variant]], *, until: float, folder: Path,
    may_change_result: bool, start: Start = VariantProcess,
) -> Swept:  # fmt: skip
    """Measure each arm against the base, then the winners together; print progress.

    Args:
        arms: returns the arms to try, once the base is set up and its facts are known.
        until: when to end, as `time.perf_counter`; three pairs per arm are done in any case.
        folder: for the output of the arms.
        may_change_result: whether a setting that may change the accuracy can win.

    Raises:
        VariantFailed: the base fails.
    """
    out.print(f"{base.name}: setting it up")
    running = Base(base, folder, start)
    wins = partial(_wins, base=base, may_change_result=may_change_result)
    trials = _one_by_one(running, arms(running), until, wins)
    finals = _finals(running, [trial for trial in trials if wins(trial)], until)
    faster = [trial for trial in finals if trial.is_faster]
    best = max(faster, key=lambda trial: trial.ratio, default=None)
    return Swept(base, trials, finals, best)


def _one_by_one(
    base: Base, arms: Sequence[Variant], until: float, wins: Callable[[Trial], bool]
) -> list[Trial]:
    trials: list[Trial] = []
    durations_s: list[float] = []
    for done, arm in enumerate(arms):
        left_s = until - time.perf_counter()
        # Keep time for the finals, whose ratio is the result; without winners there are none.
        share_s = left_s / (len(arms) - done + FINALS)
        finals_s = FINALS * share_s if any(map(wins, trials)) else 0.0
        if durations_s and left_s < finals_s + min(durations_s):
            trials.append(Trial(arm, failed="the time was over before its turn"))
            continue
        began = time.perf_counter()
        trials.append(trial := base.compare(arm, share_s))
        durations_s.append(time.perf_counter() - began)
        result = f"{done + 1} of {len(arms)}, {arm.name}: {in_words(trial)}"
        out.print(f"{result}; at most {duration(max(0, until - time.perf_counter()))} left")
    return trials


def _wins(trial: Trial, *, base: Variant, may_change_result: bool) -> bool:
    """Return whether an arm enters the finals: only settings, allowed, and fast enough."""
    arm = trial.arm
    settings = bool(arm.flags) and (arm.code, arm.python) == (base.code, base.python)
    allowed = may_change_result or not any(map(changes_learning, arm.flags))
    return settings and allowed and trial.is_faster and trial.ratio > LEAST_GAIN


def _finals(base: Base, winners: Sequence[Trial], until: float) -> list[Trial]:
    """Measure the winners again: the best of many measurements is biased upward."""
    if not winners:
        return []
    best_first = sorted(winners, key=lambda trial: -trial.ratio)
    together = _together(best_first)
    finalists = [together]
    if together.flags != best_first[0].arm.flags:
        finalists.append(replace(best_first[0].arm, name=f"{best_first[0].arm.name} alone"))
    finals: list[Trial] = []
    for done, arm in enumerate(finalists):
        share_s = (until - time.perf_counter()) / (len(finalists) - done)
        trial = base.compare(arm, share_s)
        finals.append(trial)
        out.print(f"final, {arm.name}: {in_words(trial)}")
    return finals


def _together(best_first: Sequence[Trial]) -> Variant:
    """Combine the winners, leaving out those that contradict a better one."""
    arm = replace(best_first[0].arm, name="all that won")
    for trial in best_first[1:]:
        if arm.flags.keys() & trial.arm.flags.keys():
            continue
        more = replace(arm, flags={**arm.flags, **trial.arm.flags})
        try:
            load.load(more.all_words)
        except BadInput:
            continue
        arm = more
    if arm.flags == best_first[0].arm.flags:
        return replace(arm, name=best_first[0].arm.name)
    return arm


def in_words(trial: Trial) -> str:
    """Describe the result of a trial in a line."""
    if trial.failed is not None:
        return f"not measured: {trial.failed}"
    low, high = trial.interval
    return f"{trial.ratio:.3f} of the base ({low:.3f} to {high:.3f})"


def largest_batch(base: Base, arm: Callable[[int], Variant], most: int) -> Variant | None:
    """Return the arm with the largest power of two as its factor that fits into memory, if 2 does.

    Args:
        arm: returns the arm of a factor.
        most: the largest factor to try.
    """
    largest, factor = None, 2
    while factor <= most:
        tried = arm(factor)
        out.print(f"does {tried.name} fit into memory?")
        try:
            if not base.fits(tried):
                break
        except VariantFailed as error:
            out.print(f"{error}")
            break
        largest, factor = tried, 2 * factor
    return largest
