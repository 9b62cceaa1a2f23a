"""Measure several things in turns, A B B A ..., so that drift of the machine affects all alike."""

import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from harness.system.console import count, out, right_table, wide
from harness.system.process import process_age_s
from harness.system.progress import track

TIME_OVER = "the time was over before its turn"


def end_of(minutes: float) -> float:
    """Return when a bench must end: `minutes` after its process began, as `time.perf_counter`."""
    return time.perf_counter() - process_age_s() + 60 * minutes


def rounds(most: int, until: float, agree: Callable[[bool], bool] = bool) -> Iterator[int]:
    """Yield the numbers of the rounds that end in time; the first one is done in any case.

    A round begins if it would end in time were it as long as the longest one before.

    Args:
        until: when to end, as `time.perf_counter`.
        agree: returns rank 0's answer on every rank.
    """
    longest_s = 0.0
    for number in range(most):
        began = time.perf_counter()
        if number and agree(began + longest_s > until):
            return
        yield number
        longest_s = max(longest_s, time.perf_counter() - began)


def interleave(
    turns_of: Mapping[str, Callable[[], float]], turns: int, until: float,
    agree: Callable[[bool], bool] = bool,
) -> dict[str, list[float]]:  # fmt: skip
    """Measure turns of each thing, as many as end in time; every second round in reversed order.

    Each of `turns_of` runs one turn, and returns images per second; the rest is as for `rounds`.
    """
    rates: dict[str, list[float]] = {name: [] for name in turns_of}
    for done in track(rounds(turns, until, agree), total=turns, what="measuring"):
        for name in turns_of if done % 2 == 0 else reversed([*turns_of]):
            rates[name].append(turns_of[name]())
    return rates


def report(rates: Mapping[str, list[float]], title: str, planned: int) -> None:
    """Print each rate and its ratio to the last one, and whether there was time for all turns."""
    *_, base = rates
    table = right_table("", "images/s, median", "least", "most", f"ratio to {base}", "from", "to")
    for name, of_turns in rates.items():
        low, middle, high = np.quantile(ratios(rates, name, base), [0, 0.5, 1])
        table.add_row(
            name, *(f"{f(of_turns):,.1f}" for f in (np.median, min, max)),
            *(f"{ratio:.3f}" for ratio in (middle, low, high)),
        )  # fmt: skip
    out.print(title)
    wide.print(table)
    if (done := len(rates[base])) < planned:
        spread = "" if done > 1 else ", which say nothing of how much turns vary"
        out.print(
            f"the time was over after {count(done, 'turn')} of each, of {planned}{spread}; "
            "give more --minutes to know the ratio better"
        )


def ratios(rates: Mapping[str, list[float]], name: str, base: str) -> NDArray[np.float64]:
    """Return the ratio of one thing's rate to another's, for each turn."""
    quotients: NDArray[np.float64] = np.array(rates[name]) / np.array(rates[base])
    return quotients
