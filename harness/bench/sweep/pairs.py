"""Pairs: an arm beside the base, in turns A B B A ..., and how much faster it is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, Protocol

from harness.bench.sweep.process import Arm, ArmFailed, Working
from harness.results.stats.statistics import interval_of_mean

LEAST_PAIRS, PAIRS = 3, 8
"""Of a single start: so many at least, and as many as its time is shared out for."""
LEAST_STARTS, MOST_STARTS = 3, 6
"""Where setting up is quick, both are started anew: no two starts are equally fast."""
ENOUGH = 0.005
"""Half-width of the ratio's interval at which measuring ends early."""
LEAST_TURN_S, MOST_TURN_S = 1.0, 20.0

Pair = tuple[float, float]


class Works(Protocol):
    """What an arm that runs can be asked; see Working."""

    facts: dict[str, Any]

    def ready(self) -> None:
        """Return once it is set up; facts are known then."""

    def turn(self, turn_s: float) -> float:
        """Images per second over about so many seconds."""

    def end(self) -> dict[str, Any]:
        """All that is known of it; it ends."""

    def close(self) -> None:
        """Have it end, whatever it does."""


Start = Callable[[Arm, Path], Works]


@dataclass(frozen=True)
class Trial:
    """An arm, measured beside the base, or why it was not.

    Attributes:
        starts: of each start of both: images per second of base and arm, in turns.
        together: whether both were alive at once; else each turn is a start of its own.
        facts: what the arm told of itself: graphs compiled, buckets, memory.
    """

    arm: Arm
    starts: list[list[Pair]] = field(default_factory=list)
    together: bool = True
    failed: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def pairs(self) -> list[Pair]:
        """Of all starts."""
        return [pair for start in self.starts for pair in start]

    @property
    def ratio(self) -> float:
        """Throughput of the arm by the base's, geometric mean."""
        return math.exp(mean(_logs(self.starts)))

    @property
    def interval(self) -> tuple[float, float]:
        """Of the ratio, 95 %: over starts, or over the pairs of a single one."""
        low, high = interval_of_mean(_logs(self.starts))
        return math.exp(low), math.exp(high)

    @property
    def images_per_second(self) -> float:
        """Of the arm, mean over turns."""
        return mean(arm for _, arm in self.pairs)

    @property
    def is_faster(self) -> bool:
        """Beyond doubt."""
        return self.failed is None and self.interval[0] > 1


def _logs(starts: Sequence[Sequence[Pair]]) -> list[float]:
    """Logarithm of the ratio: of each start, or of each pair where there are few starts."""
    logs = [[math.log(arm / base) for base, arm in start] for start in starts]
    if len(logs) >= LEAST_STARTS:
        return [mean(each) for each in logs]
    return [each for start in logs for each in start]


class Base:
    """The base, started anew with each arm that is measured beside it.

    Both are of one age then: what runs for long is a little faster, or slower, than what has just
    begun.

    Args:
        folder: for what the ranks print.

    Raises:
        ArmFailed: it cannot be set up.
    """

    def __init__(self, arm: Arm, folder: Path, start: Start = Working) -> None:
        self._arm, self._folder, self._start = arm, folder, start
        self._logs = 0
        self.facts: dict[str, Any] = {}
        with self._alive(arm) as (works,):
            self.facts = works.facts

    def beside(self, arm: Arm, budget_s: float) -> Trial:
        """Measure an arm for about so long, setting up included; at least three pairs.

        Where the memory does not hold both, each turn is a start of its own.

        Raises:
            ArmFailed: the base itself fails.
        """
        until = time.perf_counter() + budget_s
        try:
            try:
                return self._together(arm, until)
            except ArmFailed as error:
                if not error.memory:
                    raise
                return self._apart(arm, until)
        except ArmFailed as error:
            if error.arm is not arm:
                raise
            return Trial(arm, failed=error.why)

    def fits(self, arm: Arm) -> bool:
        """Whether an arm can be set up and trained for some steps by itself.

        Raises:
            ArmFailed: it fails, and not for want of memory.
        """
        try:
            self._once(arm, LEAST_TURN_S)
        except ArmFailed as error:
            if not error.memory:
                raise
            return False
        return True

    def _together(self, arm: Arm, until: float) -> Trial:
        starts: list[list[Pair]] = []
        while True:
            began = time.perf_counter()
            with self._alive(self._arm, arm) as (base, works):
                set_up_s, left_s = time.perf_counter() - began, until - time.perf_counter()
                to_come = _starts_to_come(left_s, set_up_s, len(starts))
                share_s = (left_s - (to_come - 1) * set_up_s) / to_come
                single = not starts and to_come == 1
                starts.append(_pairs(base, works, share_s, single=single))
                facts = works.end()
            if to_come == 1 or (len(starts) >= LEAST_STARTS and _known(_logs(starts))):
                return Trial(arm, starts, facts=facts)

    def _apart(self, arm: Arm, until: float) -> Trial:
        turn_s = _turn_s(until - time.perf_counter(), PAIRS) / 2  # the rest goes into starting
        starts: list[list[Pair]] = []
        while not _enough(_logs(starts), until):
            if len(starts) % 2 == 0:
                base, _ = self._once(self._arm, turn_s)
                theirs, facts = self._once(arm, turn_s)
            else:
                theirs, facts = self._once(arm, turn_s)
                base, _ = self._once(self._arm, turn_s)
            starts.append([(base, theirs)])
        return Trial(arm, starts, together=False, facts=facts)

    def _once(self, arm: Arm, turn_s: float) -> tuple[float, dict[str, Any]]:
        with self._alive(arm) as (works,):
            return works.turn(turn_s), works.end()

    @contextmanager
    def _alive(self, *arms: Arm) -> Iterator[list[Works]]:
        """Arms that set themselves up at the same time; on a GPU one after the other.

        There kernels are chosen by timing them, which nothing else must disturb.
        """
        one_by_one = self.facts.get("on_gpu", False)
        with ExitStack() as ends:
            alive = []
            for arm in arms:
                self._logs += 1
                works = self._start(arm, self._folder / f"{self._logs:03d}.log")
                ends.callback(works.close)
                alive.append(works)
                if one_by_one:
                    works.ready()
            for works in () if one_by_one else alive:
                works.ready()
            yield alive


def _starts_to_come(left_s: float, set_up_s: float, done: int) -> int:
    """How many starts more, this one included: setting up takes two thirds of the time at most.

    One, where fewer would come together than intervals need.
    """
    to_come = min(MOST_STARTS - done, max(1, int(left_s / max(1.5 * set_up_s, 1e-9))))
    return to_come if done + to_come >= LEAST_STARTS else 1


def _pairs(base: Works, works: Works, share_s: float, *, single: bool) -> list[Pair]:
    """Two pairs, which use up a start's time; of a single start, as many as are needed.

    A first turn of each does not count: what has just begun is slow.
    """
    until = time.perf_counter() + share_s
    turn_s = _turn_s(share_s, PAIRS if single else 2)
    for each in (base, works):
        each.turn(LEAST_TURN_S)
    pairs: list[Pair] = []
    while True:
        first, second = (base, works) if len(pairs) % 2 == 0 else (works, base)
        rates = first.turn(turn_s), second.turn(turn_s)
        pairs.append(rates if len(pairs) % 2 == 0 else (rates[1], rates[0]))
        if _enough(_logs([pairs]), until) if single else len(pairs) == 2:
            return pairs


def _turn_s(share_s: float, pairs: int) -> float:
    return min(max(share_s / (2 * pairs), LEAST_TURN_S), MOST_TURN_S)


def _enough(logs: Sequence[float], until: float) -> bool:
    """Whether the ratio is known well, or the time is over."""
    return len(logs) >= LEAST_PAIRS and (time.perf_counter() > until or _known(logs))


def _known(logs: Sequence[float]) -> bool:
    low, high = interval_of_mean(logs)
    return (high - low) / 2 < ENOUGH
