"""Ladder: each part of a training step timed, alone and together, in one run.

Rungs are timed in rounds, forth and back, so that a drift of the machine hits all alike.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from harness import config as cfg
from harness.bench.ladder import limits, rungs
from harness.bench.ladder.advice import Change, first_change
from harness.bench.ladder.rungs import Rung
from harness.bench.ladder.summary import AllRanksTurn, Ladder, half_width_pct, put_together
from harness.bench.loop import TIMEOUT_S, opened, world_of_bench
from harness.distributed import World
from harness.monitor.clock import Clock
from harness.system.console import duration, out
from harness.system.process import process_age_s
from harness.system.signals import Signals
from harness.trainer import setup
from harness.trainer.control import Ballot, Pulse
from harness.trainer.loop import set_up

LEAST_ROUNDS, ROUNDS = 3, 10
"""Rounds that are done in any case, and as many as the time is shared out for."""
ENOUGH_PCT, ENOUGH_ROUNDS = 2.0, 5
"""Half-width of an interval, in percent of the mean, from so many turns, at which a rung rests."""
EVERY_S = 10.0
TURN_S = 0.3  # a turn of less says more about the clock
MOST_STEPS = 1000


def measure(config: cfg.Config, *, minutes: float) -> tuple[Ladder, Change] | None:
    """Time all rungs of a run's step, and say what to change first; a collective call.

    None on all ranks but the first.

    Args:
        config: of the run; nothing of it is trained for long, nothing is written.
        minutes: all of it, setting up and compiling included, if three rounds fit into that.

    Raises:
        BadInput: as a run's.
    """
    until = time.perf_counter() - process_age_s() + 60 * minutes
    world = world_of_bench(config.engine.backend)
    with opened(config, world) as run:
        ballot = Ballot(TIMEOUT_S)
        try:
            pulse = Pulse(ballot, Signals(), None, lambda: False)
            net = setup.network(run.resolved, run.train_set.classes)
            t = set_up(run.resolved, net, Clock(world.device), pulse)
            found, missing = rungs.rungs(t, run.train_set)
            bounds = limits.find(run.resolved, run.train_set.classes)
            turns = _in_rounds(found, world, until)
        finally:
            ballot.close()
        if not world.is_main:
            return None
        dataset = run.train_set.dataset
        kb = None if dataset is None else float(dataset.size_bytes.mean()) / 1e3
        ladder = put_together(run, found, turns, missing, bounds)
        return ladder, first_change(ladder, run.resolved, kb)


def _in_rounds(found: Sequence[Rung], world: World, until: float) -> dict[str, list[AllRanksTurn]]:
    """Turns of each rung, until all are known well or the time is over, the same on all ranks.

    A rung that is known well rests, so that its time goes to the others.
    """
    out.print(f"timing {len(found)} parts by themselves, to share out the time")
    steps = _plan(found, world, until)
    turns: dict[str, list[AllRanksTurn]] = defaultdict(list)
    told, rounds, open_ones = time.perf_counter(), 0, list(found)
    while True:
        began = time.perf_counter()
        for rung in open_ones:
            turns[rung.name].append(_turn(rung, steps[rung.name], world))
        rounds += 1
        widths_pct = {rung.name: half_width_pct(turns[rung.name]) for rung in found}
        if rounds >= ENOUGH_ROUNDS:
            open_ones = [rung for rung in open_ones if widths_pct[rung.name] > ENOUGH_PCT]
        open_ones.reverse()  # forth and back
        now = time.perf_counter()
        round_s = now - began
        over = rounds >= LEAST_ROUNDS and now + round_s > until
        if world.from_main(over or not open_ones):
            return turns
        if now - told > EVERY_S:
            left_s = max(until - now, (LEAST_ROUNDS - rounds) * round_s)
            known = f"known to within {max(widths_pct.values()):.1f} %, " if rounds > 1 else ""
            out.print(f"round {rounds}: {known}at most {duration(left_s)} left")
            told = now


def _plan(found: Sequence[Rung], world: World, until: float) -> dict[str, int]:
    """Steps of each rung in a turn; says so if even three rounds take longer than is given."""
    paces = {rung.name: _pace(rung, world) for rung in found}
    left_s = until - time.perf_counter()
    turn_s = max(TURN_S, left_s / (len(found) * ROUNDS))
    steps = {
        name: int(np.clip((turn_s - aside_s) / step_s, 1, MOST_STEPS))
        for name, (aside_s, step_s) in paces.items()
    }
    round_s = sum(aside_s + steps[name] * step_s for name, (aside_s, step_s) in paces.items())
    if LEAST_ROUNDS * round_s > left_s:
        least = f"{LEAST_ROUNDS} rounds take about {duration(LEAST_ROUNDS * round_s)}"
        out.print(f"{least}, more than --minutes gives: intervals will be wide")
    plan: dict[str, int] = world.from_main(steps)
    return plan


def _pace(rung: Rung, world: World) -> tuple[float, float]:
    """Seconds of a turn that do not count, and of a step, of the slowest rank; warm afterwards."""
    rung.turn(1)
    began = time.perf_counter()
    step_s = rung.turn(1).seconds
    mine = max(0.0, time.perf_counter() - began - step_s), max(step_s, 1e-5)
    aside, step = zip(*world.gather(mine), strict=True)
    return max(aside), max(step)


def _turn(rung: Rung, steps: int, world: World) -> AllRanksTurn:
    """One turn, begun by all ranks together; the slowest counts."""
    world.gather(None)
    mine = rung.turn(steps)
    ranks = world.gather(mine)
    seconds = max(each.seconds for each in ranks)
    return AllRanksTurn(
        rung.images * steps / seconds,
        sum(each.cpu_s for each in ranks) / seconds,
        mine.steps_ms,
    )
