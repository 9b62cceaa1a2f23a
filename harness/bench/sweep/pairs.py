"""Measure how much faster a variant is than the base, in pairs of turns: A B B A ..."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from harness.bench.sweep.process import VariantFailed, VariantProcess
from harness.bench.sweep.variant import Variant
from harness.results.stats.statistics import interval_of_mean

LEAST_PAIRS, PAIRS = 3, 8
"""With a single start: the least number of pairs, and the number by which its time is divided."""
LEAST_STARTS, MOST_STARTS = 3, 6
"""Limits of the number of starts; several if setup is quick, since starts differ in speed."""
ENOUGH = 0.005
"""Stop early once the half-width of the ratio's interval is below this."""
LEAST_TURN_S, MOST_TURN_S = 1.0, 20.0

Pair = tuple[float, float]
"""Images per second of base and variant."""
Start = Callable[[Variant, Path], VariantProcess]
"""Starts a variant; the file is for the output of its ranks."""


@dataclass(frozen=True)
class Trial:
    """The measurement of a variant against the base."""

    variant: Variant
    starts: list[list[Pair]] = field(default_factory=list)  # the pairs of each start of both
    together: bool = True  # both ran at the same time; else each turn is a start of its own
    failed: str | None = None  # why the variant could not be measured
    facts: dict[str, Any] = field(default_factory=dict)  # see worker.py

    @property
    def pairs(self) -> list[Pair]:
        """The pairs of all starts."""
        return [pair for start in self.starts for pair in start]

    @property
    def ratio(self) -> float:
        """Throughput of the variant divided by the base's, geometric mean."""
        return math.exp(mean(_logs(self.starts)))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the ratio: over starts, or over the pairs of few starts."""
        low, high = interval_of_mean(_logs(self.starts))
        return math.exp(low), math.exp(high)

    @property
    def images_per_second(self) -> float:
        """Images per second of the variant, mean over turns."""
        return mean(rate for _, rate in self.pairs)

    @property
    def is_faster(self) -> bool:
        """Whether the whole interval of the ratio is above 1."""
        return self.failed is None and self.interval[0] > 1


def _logs(starts: Sequence[Sequence[Pair]]) -> list[float]:
    logs = [[math.log(rate / base) for base, rate in start] for start in starts]
    if len(logs) >= LEAST_STARTS:
        return [mean(start) for start in logs]
    return [log for start in logs for log in start]


class Base:
    """The base, which is started again with each variant that is compared with it.

    Both then run equally long: a process that has run for long differs a little in speed from one
    that has just begun. The output of the ranks is written to the folder.

    Raises:
        VariantFailed: the base cannot be set up.
    """

    def __init__(self, variant: Variant, folder: Path, start: Start = VariantProcess) -> None:
        self._variant, self._folder, self._start, self._logs = variant, folder, start, 0
        self.facts: dict[str, Any] = {}
        with self._alive(variant) as (process,):
            self.facts = process.facts

    def compare(self, variant: Variant, budget_s: float) -> Trial:
        """Measure a variant for about so many seconds, setup included; at least three pairs.

        If both do not fit into memory together, each turn is a start of its own.

        Raises:
            VariantFailed: the base itself fails.
        """
        until = time.perf_counter() + budget_s
        try:
            try:
                return self._together(variant, until)
            except VariantFailed as error:
                if not error.memory:
                    raise
                return self._apart(variant, until)
        except VariantFailed as error:
            if error.variant is not variant:
                raise
            return Trial(variant, failed=error.why)

    def fits(self, variant: Variant) -> bool:
        """Train a variant some steps; return whether it fits into memory, raise other failures."""
        try:
            self._once(variant, LEAST_TURN_S)
        except VariantFailed as error:
            if not error.memory:
                raise
            return False
        return True

    def _together(self, variant: Variant, until: float) -> Trial:
        starts: list[list[Pair]] = []
        while True:
            began = time.perf_counter()
            with self._alive(self._variant, variant) as (base, other):
                set_up_s, left_s = time.perf_counter() - began, until - time.perf_counter()
                to_come = _starts_to_come(left_s, set_up_s, len(starts))
                share_s = (left_s - (to_come - 1) * set_up_s) / to_come
                starts.append(_pairs(base, other, share_s, single=not starts and to_come == 1))
                facts = other.end()
            if to_come == 1 or (len(starts) >= LEAST_STARTS and _known(_logs(starts))):
                return Trial(variant, starts, facts=facts)

    def _apart(self, variant: Variant, until: float) -> Trial:
        turn_s = _turn_s(until - time.perf_counter(), PAIRS) / 2  # the other half is for starting
        starts: list[list[Pair]] = []
        while not _enough(_logs(starts), until):
            if even := len(starts) % 2 == 0:
                base, _ = self._once(self._variant, turn_s)
            rate, facts = self._once(variant, turn_s)
            if not even:
                base, _ = self._once(self._variant, turn_s)
            starts.append([(base, rate)])
        return Trial(variant, starts, together=False, facts=facts)

    def _once(self, variant: Variant, turn_s: float) -> tuple[float, dict[str, Any]]:
        with self._alive(variant) as (process,):
            return process.turn(turn_s), process.end()

    @contextmanager
    def _alive(self, *variants: Variant) -> Iterator[list[VariantProcess]]:
        """Start variants and wait until they are set up: at the same time, or on a GPU one by one.

        On a GPU, setup times kernels to choose among them, and must run alone.
        """
        one_by_one = self.facts.get("on_gpu", False)
        with ExitStack() as cleanup:
            alive = []
            for variant in variants:
                self._logs += 1
                process = self._start(variant, self._folder / f"{self._logs:03d}.log")
                cleanup.callback(process.close)
                alive.append(process)
                if one_by_one:
                    process.ready()
            for process in () if one_by_one else alive:
                process.ready()
            yield alive


def _starts_to_come(left_s: float, set_up_s: float, done: int) -> int:
    """Return the number of starts to do, this one included: setup takes at most 2/3 of the time.

    It is 1 if there is no time for the LEAST_STARTS that an interval needs.
    """
    to_come = min(MOST_STARTS - done, max(1, int(left_s / max(1.5 * set_up_s, 1e-9))))
    return to_come if done + to_come >= LEAST_STARTS else 1


def _pairs(
    base: VariantProcess, other: VariantProcess, share_s: float, *, single: bool
) -> list[Pair]:
    """Measure the pairs of a start: two, or if it is the only start, as many as are needed."""
    until = time.perf_counter() + share_s
    turn_s = _turn_s(share_s, PAIRS if single else 2)
    for process in (base, other):
        process.turn(LEAST_TURN_S)  # not counted: the first turn is slow
    pairs: list[Pair] = []
    while True:
        first, second = (base, other) if len(pairs) % 2 == 0 else (other, base)
        rates = first.turn(turn_s), second.turn(turn_s)
        pairs.append(rates if len(pairs) % 2 == 0 else (rates[1], rates[0]))
        if _enough(_logs([pairs]), until) if single else len(pairs) == 2:
            return pairs


def _turn_s(share_s: float, pairs: int) -> float:
    return min(max(share_s / (2 * pairs), LEAST_TURN_S), MOST_TURN_S)


def _enough(logs: Sequence[float], until: float) -> bool:
    return len(logs) >= LEAST_PAIRS and (time.perf_counter() > until or _known(logs))


def _known(logs: Sequence[float]) -> bool:
    low, high = interval_of_mean(logs)
    return (high - low) / 2 < ENOUGH
