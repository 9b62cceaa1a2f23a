"""Try variants one by one against the base, then all that were faster together."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from harness.bench.sweep.pairs import Base, Start, Trial
from harness.bench.sweep.process import VariantFailed, VariantProcess
from harness.bench.sweep.switches import changes_learning
from harness.bench.sweep.variant import Variant
from harness.bench.turns import TIME_OVER, rounds
from harness.config import load
from harness.errors import BadInput
from harness.system.console import duration, out

LEAST_GAIN = 1.01
"""A variant enters the finals if it is certainly faster, and its ratio is above this."""
FINALS = 3
"""The finals get as much time as so many variants."""


@dataclass(frozen=True)
class Swept:
    """The result of a sweep."""

    base: Variant  # the run that the variants are compared with
    trials: list[Trial]  # one for each variant, in the order in which they were tried
    finals: list[Trial]  # new measurements of the winners: all together, and the best one alone
    best: Trial | None  # the fastest final that is certainly faster than the base, if there is one


def sweep(
    base: Variant, variants: Callable[[Base], Sequence[Variant]], *, until: float, folder: Path,
    may_change_result: bool, start: Start = VariantProcess,
) -> Swept:  # fmt: skip
    """Measure each variant against the base, then the winners together; print progress.

    A variant begins if it would end in time were it as short as the shortest one before; the first
    one is measured in any case.

    Args:
        variants: returns the variants to try, once the base is set up and its facts are known.
        until: when to end, as `time.perf_counter`.
        may_change_result: whether a setting that may change the accuracy can win.

    Raises:
        VariantFailed: the base fails.
    """
    out.print(f"{base.name}: setting it up")
    tried = variants(running := Base(base, folder, start))
    trials: list[Trial] = []
    durations_s: list[float] = []

    def measure(variant: Variant, share_s: float) -> Trial:
        began = time.perf_counter()
        trial = running.compare(variant, share_s)
        durations_s.append(time.perf_counter() - began)
        return trial

    def wins(trial: Trial) -> bool:
        variant = trial.variant
        settings = variant.flags and (variant.code, variant.python) == (base.code, base.python)
        allowed = may_change_result or not changes_learning(variant.flags)
        return bool(settings) and allowed and trial.is_faster and trial.ratio > LEAST_GAIN

    for done, variant in enumerate(tried):
        left_s = until - time.perf_counter()
        # Keep time for the finals, whose ratio is the result; without winners there are none.
        share_s = left_s / (len(tried) - done + FINALS)
        finals_s = FINALS * share_s if any(map(wins, trials)) else 0.0
        if durations_s and left_s < finals_s + min(durations_s):
            trials.append(Trial(variant, failed=TIME_OVER))
            continue
        trials.append(trial := measure(variant, share_s))
        left = duration(max(0, until - time.perf_counter()))
        result = f"{done + 1} of {len(tried)}, {variant.name}: {result_line(trial)}"
        out.print(f"{result}; at most {left} left")
    # The winners are measured again: the best of many measurements is biased upward.
    finals: list[Trial] = []
    finalists = _finalists([trial for trial in trials if wins(trial)])
    for done, variant in enumerate(finalists):
        left_s = until - time.perf_counter()
        if left_s < min(durations_s):
            trial = Trial(variant, failed=TIME_OVER)
        else:
            trial = measure(variant, left_s / (len(finalists) - done))
        finals.append(trial)
        out.print(f"final, {variant.name}: {result_line(trial)}")
    faster = [trial for trial in finals if trial.is_faster]
    return Swept(base, trials, finals, max(faster, key=lambda trial: trial.ratio, default=None))


def _finalists(winners: Sequence[Trial]) -> list[Variant]:
    """Return all winners that do not contradict a better one as one variant, and the best alone."""
    if not winners:
        return []
    best, *others = (trial.variant for trial in sorted(winners, key=lambda trial: -trial.ratio))
    together = replace(best, name="all that won")
    for other in others:
        if together.flags.keys() & other.flags.keys():
            continue
        more = replace(together, flags={**together.flags, **other.flags})
        with suppress(BadInput):
            load.load(more.all_args)
            together = more
    if together.flags == best.flags:
        return [best]
    return [together, replace(best, name=f"{best.name} alone")]


def result_line(trial: Trial) -> str:
    """Describe the result of a trial in a line."""
    if trial.failed is not None:
        return f"not measured: {trial.failed}"
    low, high = trial.interval
    return f"{trial.ratio:.3f} of the base ({low:.3f} to {high:.3f})"


def largest_batch(
    base: Base, variant: Callable[[int], Variant], most: int, until: float
) -> Variant | None:
    """Return the variant with the largest power of two as its factor that fits into memory, if any.

    `variant` returns that of a factor, `most` is the largest one; 2 is tried in any case.
    """
    largest, factor = None, 1
    for _ in rounds(most.bit_length() - 1, until):
        tried = variant(factor := 2 * factor)
        out.print(f"does {tried.name} fit into memory?")
        try:
            if not base.fits(tried):
                break
        except VariantFailed as error:
            out.print(f"{error}")
            break
        largest = tried
    else:
        if 2 * factor <= most:
            out.print("larger ones are not tried: the time (--minutes) is short")
    return largest
