"""Measure weak and strong scaling: the same training on 1, 2, 4 ... ranks."""

import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Literal

import numpy as np

from harness import config as cfg
from harness.bench.sweep.pairs import Start
from harness.bench.sweep.process import VariantFailed, VariantProcess
from harness.bench.sweep.variant import Variant
from harness.bench.turns import TIME_OVER, rounds
from harness.errors import BadInput
from harness.results.stats.statistics import interval_of_mean
from harness.system.console import count, duration, out
from harness.system.process import rank_cores

Kind = Literal["weak", "strong"]
ROUNDS, MOST_ROUNDS = 3, 12
"""The number of rounds by which the time is divided, and their limit."""
LEAST_TURN_S, MOST_TURN_S = 2.0, 30.0
MEASURING = 0.4
"""Share of the time for timed steps; the rest is for starting ranks."""


@dataclass
class Cell:
    """A number of ranks with a global batch."""

    kinds: tuple[Kind, ...]  # weak: the local batch of the most ranks; strong: their global batch
    ranks: int
    global_batch: int
    rates: list[float] = field(default_factory=list)  # images/s of all ranks, for each round
    failed: str | None = None  # why it could not be measured

    @property
    def images_per_second(self) -> float:
        """Images per second of all ranks, mean over rounds."""
        return mean(self.rates)


@dataclass(frozen=True)
class Efficiency:
    """Throughput per rank divided by that of the fewest ranks; 1 is ideal."""

    value: float
    low: float | None  # 95 % interval over rounds; None after a single round
    high: float | None


def cells_of(config: cfg.Config, ranks: Sequence[int]) -> list[Cell]:
    """Return all cells to measure: the fewest ranks, then the most, as time may run out.

    With the most ranks, weak and strong are the same cell.

    Raises:
        BadInput: the global batch is not a multiple of each number of ranks.
    """
    global_batch, most = config.train.global_batch, max(ranks)
    for number in ranks:
        if global_batch % number:
            raise BadInput(
                f"train.global_batch: {global_batch} cannot be divided among {number} ranks; "
                "give a multiple of each number of --ranks"
            )
    weak = [Cell(("weak",), n, global_batch // most * n) for n in ranks if n != most]
    strong = [Cell(("strong",), n, global_batch) for n in ranks if n != most]
    return [*weak[:1], Cell(("weak", "strong"), most, global_batch), *strong, *weak[1:]]


def threads_of_each(config: cfg.Config, ranks: int) -> dict[str, str]:
    """Return the thread settings of a rank that has 1 / `ranks` of the node's cores.

    Fewer ranks use the same number of threads each: one that had all cores for computing or
    decoding could not be compared. Settings that the config has stay as they are.
    """
    threads_per_rank = str(max(1, rank_cores() // ranks))
    configured = {"engine.threads": config.engine.threads, "data.threads": config.data.threads}
    return {key: threads_per_rank for key, threads in configured.items() if not threads}


def measure(
    base: Variant,
    cells: Sequence[Cell],
    *,
    until: float,
    folder: Path,
    start: Start = VariantProcess,
) -> None:
    """Measure the cells one at a time, in rounds whose order alternates; one in any case."""
    share_s = (until - time.perf_counter()) / (len(cells) * ROUNDS)
    turn_s = min(max(MEASURING * share_s, LEAST_TURN_S), MOST_TURN_S)
    for done in rounds(MOST_ROUNDS, until):
        longest_s = 0.0
        for cell in cells if done % 2 == 0 else reversed(cells):
            began = time.perf_counter()
            if done == 0 and longest_s and began + longest_s > until:
                cell.failed = TIME_OVER
            if cell.failed is None:
                _once(base, cell, turn_s, folder, start)
            longest_s = max(longest_s, time.perf_counter() - began)
        left = duration(max(0, until - time.perf_counter()))
        known = [f"{count(c.ranks, 'rank')} {c.images_per_second:,.0f}" for c in cells if c.rates]
        out.print(f"round {done + 1}: {', '.join(known)}; at most {left} left")


def _once(base: Variant, cell: Cell, turn_s: float, folder: Path, start: Start) -> None:
    name = f"{count(cell.ranks, 'rank')}, global batch {cell.global_batch}"
    flags = {**base.flags, "train.global_batch": str(cell.global_batch)}
    variant = replace(base, name=name, ranks=cell.ranks, flags=flags)
    log = folder / f"{cell.ranks}-ranks-batch-{cell.global_batch}.log"
    try:
        with closing(start(variant, log)) as process:
            process.ready()
            cell.rates.append(process.turn(turn_s))
    except VariantFailed as error:
        cell.failed = error.why
        out.print(f"{error}")


def efficiencies(cells: Sequence[Cell], kind: Kind) -> dict[int, Efficiency]:
    """Return the efficiency of each number of ranks against the fewest, compared round by round."""
    measured = {c.ranks: c.rates for c in cells if kind in c.kinds and c.failed is None}
    if not measured:
        return {}
    fewest = min(measured)
    result = {fewest: Efficiency(1.0, 1.0, 1.0)}
    for ranks, rates in sorted(measured.items()):
        if ranks != fewest:
            logs = np.log(np.array(rates) / measured[fewest] * fewest / ranks).tolist()
            low, high = map(math.exp, interval_of_mean(logs)) if len(logs) > 1 else (None, None)
            result[ranks] = Efficiency(math.exp(mean(logs)), low, high)
    return result
