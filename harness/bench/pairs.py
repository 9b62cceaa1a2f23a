"""Pairs: an arm beside the base, in turns A B B A ..., and how much faster it is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, Protocol

from harness.bench.working import Arm, ArmFailed, Working
from harness.results.statistics import interval_of_mean

LEAST_PAIRS = 3
ENOUGH = 0.005
"""Half-width of the ratio's interval at which measuring ends early."""
LEAST_TURN_S, MOST_TURN_S = 1.0, 20.0
PAIRS = 8
"""As many as an arm's time is shared out for."""


class Works(Protocol):
    """What an arm that runs can be asked; see Working."""

    facts: dict[str, Any]

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
        pairs: images per second of base and arm, in turns.
        together: whether both were alive throughout; else each turn is a start of its own.
        facts: what the arm told of itself: graphs compiled, buckets, memory.
    """

    arm: Arm
    pairs: list[tuple[float, float]] = field(default_factory=list)
    together: bool = True
    failed: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Throughput of the arm by the base's, geometric mean over pairs."""
        return math.exp(mean(self._logs))

    @property
    def interval(self) -> tuple[float, float]:
        """Of the ratio, 95 %; from 0 to infinite for a single pair."""
        low, high = interval_of_mean(self._logs)
        return math.exp(low), math.exp(high)

    @property
    def images_per_second(self) -> float:
        """Of the arm, mean over turns."""
        return mean(arm for _, arm in self.pairs)

    @property
    def is_faster(self) -> bool:
        """Beyond doubt."""
        return self.failed is None and self.interval[0] > 1

    @property
    def _logs(self) -> list[float]:
        return [math.log(arm / base) for base, arm in self.pairs]


class Base:
    """The base, kept running while arm after arm is measured beside it.

    Args:
        folder: for what the ranks print.

    Raises:
        ArmFailed: it cannot be measured.
    """

    def __init__(self, arm: Arm, folder: Path, start: Start = Working) -> None:
        self._arm, self._folder, self._start = arm, folder, start
        self._logs = 0
        self._works: Works | None = self._begin(arm)
        self.facts = self._works.facts

    def close(self) -> None:
        """End it."""
        if self._works is not None:
            self._works.close()

    def beside(self, arm: Arm, budget_s: float) -> Trial:
        """Measure an arm for about so long, setting it up included; at least three pairs.

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
        self._rest()
        try:
            works = self._begin(arm)
            try:
                works.turn(LEAST_TURN_S)
            finally:
                works.close()
        except ArmFailed as error:
            if not error.memory:
                raise
            return False
        return True

    def _together(self, arm: Arm, until: float) -> Trial:
        works = self._begin(arm)
        try:
            base, turn_s = self._awake(), _turn_s(until)
            pairs: list[tuple[float, float]] = []
            while not _enough(pairs, until):
                first, second = (base, works) if len(pairs) % 2 == 0 else (works, base)
                rates = first.turn(turn_s), second.turn(turn_s)
                pairs.append(rates if len(pairs) % 2 == 0 else (rates[1], rates[0]))
            return Trial(arm, pairs, facts=works.end())
        finally:
            with suppress(ArmFailed):
                works.close()

    def _apart(self, arm: Arm, until: float) -> Trial:
        self._rest()
        turn_s = _turn_s(until) / 2  # the rest goes into starting
        pairs: list[tuple[float, float]] = []
        facts: dict[str, Any] = {}

        def once(which: Arm) -> float:
            works = self._begin(which)
            try:
                rate = works.turn(turn_s)
                told = works.end()
            finally:
                works.close()
            if which is arm:
                facts.update(told)
            return rate

        while not _enough(pairs, until):
            if len(pairs) % 2 == 0:
                pairs.append((once(self._arm), once(arm)))
            else:
                theirs = once(arm)
                pairs.append((once(self._arm), theirs))
        return Trial(arm, pairs, together=False, facts=facts)

    def _begin(self, arm: Arm) -> Works:
        self._logs += 1
        return self._start(arm, self._folder / f"{self._logs:02d}.log")

    def _awake(self) -> Works:
        if self._works is None:
            self._works = self._begin(self._arm)
        return self._works

    def _rest(self) -> None:
        if self._works is not None:
            self._works.close()
            self._works = None


def _turn_s(until: float) -> float:
    share_s = (until - time.perf_counter()) / (2 * PAIRS)
    return min(max(share_s, LEAST_TURN_S), MOST_TURN_S)


def _enough(pairs: list[tuple[float, float]], until: float) -> bool:
    """Whether the ratio is known well, or the time is over."""
    if len(pairs) < LEAST_PAIRS:
        return False
    low, high = interval_of_mean([math.log(arm / base) for base, arm in pairs])
    return time.perf_counter() > until or (high - low) / 2 < ENOUGH
