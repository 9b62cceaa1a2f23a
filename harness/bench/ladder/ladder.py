"""Time each part of a training step, alone and together, in one run.

The parts (rungs) are timed in rounds whose order alternates, so that drift of the machine affects
all alike.
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
from harness.bench.ladder.summary import AllRanksTurn, Ladder, half_width_pct, summarize
from harness.bench.loop import TIMEOUT_S, opened, world_of_bench
from harness.distributed import World
from harness.monitor.clock import Clock
from harness.monitor.watchdog import Watchdog
from harness.system.console import duration, out
from harness.system.process import Signals, process_age_s
from harness.trainer import setup
from harness.trainer.control import StepControl, Vote
from harness.trainer.loop import set_up

LEAST_ROUNDS, ROUNDS = 3, 10
"""The least number of rounds, and the number by which the time is divided."""
ENOUGH_PCT, ENOUGH_ROUNDS = 2.0, 5
"""A rung is timed no more once the half-width of its interval is below this percentage of the mean,
after at least so many rounds."""
EVERY_S = 10.0
"""Time between two lines of progress."""
TURN_S = 0.3
"""The least duration of a turn: in shorter ones the clock's overhead shows."""
MOST_STEPS = 1000


def measure(config: cfg.Config, *, minutes: float) -> tuple[Ladder, Change] | None:
    """Time all rungs of a run's step, and choose what to change first; a collective call.

    Args:
        config: of the run to measure; writes nothing to its run folder.
        minutes: time for all, setup and compilation included; three rounds are done in any case.

    Returns:
        The result on rank 0, None on all others.

    Raises:
        BadInput: the config cannot be run here.
    """
    until = time.perf_counter() - process_age_s() + 60 * minutes
    world = world_of_bench(config.engine.backend)
    with opened(config, world) as run:
        vote = Vote(TIMEOUT_S)
        try:
            control = StepControl(vote, Signals(), Watchdog(), lambda: False)
            net = setup.network(run.resolved, run.train_set.classes)
            t = set_up(run.resolved, net, Clock(world.device), control)
            timed, missing = rungs.rungs(t, run.train_set)
            bounds = limits.find(run.resolved, run.train_set.classes)
            turns = _in_rounds(timed, world, until)
        finally:
            vote.close()
        if not world.is_main:
            return None
        dataset = run.train_set.dataset
        kb = None if dataset is None else float(dataset.size_bytes.mean()) / 1e3
        ladder = summarize(run, timed, turns, missing, bounds)
        return ladder, first_change(ladder, run.resolved, kb)


def _in_rounds(timed: Sequence[Rung], world: World, until: float) -> dict[str, list[AllRanksTurn]]:
    """Time the rungs in rounds until all intervals are narrow or the time is over.

    A rung with a narrow interval is timed no more, which leaves its time to the others. All ranks
    do the same turns.
    """
    out.print(f"timing each of {len(timed)} parts once, to divide the time among them")
    steps = _plan(timed, world, until)
    turns: dict[str, list[AllRanksTurn]] = defaultdict(list)
    printed, rounds, active = time.perf_counter(), 0, list(timed)
    while True:
        began = time.perf_counter()
        for rung in active:
            turns[rung.name].append(_turn(rung, steps[rung.name], world))
        rounds += 1
        widths_pct = {rung.name: half_width_pct(turns[rung.name]) for rung in timed}
        if rounds >= ENOUGH_ROUNDS:
            active = [rung for rung in active if widths_pct[rung.name] > ENOUGH_PCT]
        active.reverse()
        now = time.perf_counter()
        round_s = now - began
        over = rounds >= LEAST_ROUNDS and now + round_s > until
        if world.from_main(over or not active):
            return turns
        if now - printed > EVERY_S:
            left_s = max(until - now, (LEAST_ROUNDS - rounds) * round_s)
            known = f"known to within {max(widths_pct.values()):.1f} %, " if rounds > 1 else ""
            out.print(f"round {rounds}: {known}at most {duration(left_s)} left")
            printed = now


def _plan(timed: Sequence[Rung], world: World, until: float) -> dict[str, int]:
    """Return the steps per turn of each rung; warn if three rounds take longer than `until`."""
    paces = {rung.name: _pace(rung, world) for rung in timed}
    left_s = until - time.perf_counter()
    turn_s = max(TURN_S, left_s / (len(timed) * ROUNDS))
    steps = {
        name: int(np.clip((turn_s - setup_s) / step_s, 1, MOST_STEPS))
        for name, (setup_s, step_s) in paces.items()
    }
    round_s = sum(setup_s + steps[name] * step_s for name, (setup_s, step_s) in paces.items())
    if LEAST_ROUNDS * round_s > left_s:
        least = f"{LEAST_ROUNDS} rounds take about {duration(LEAST_ROUNDS * round_s)}"
        out.print(f"{least}, more than --minutes gives: intervals will be wide")
    plan: dict[str, int] = world.from_main(steps)
    return plan


def _pace(rung: Rung, world: World) -> tuple[float, float]:
    """Return the seconds per turn that are not timed, and per step, of the slowest rank."""
    rung.turn(1)
    began = time.perf_counter()
    step_s = rung.turn(1).seconds
    local = max(0.0, time.perf_counter() - began - step_s), max(step_s, 1e-5)
    setup_s, steps_s = zip(*world.gather(local), strict=True)
    return max(setup_s), max(steps_s)


def _turn(rung: Rung, steps: int, world: World) -> AllRanksTurn:
    """Time one turn, which all ranks begin together; its duration is that of the slowest."""
    world.gather(None)  # a barrier
    local = rung.turn(steps)
    turns = world.gather(local)
    seconds = max(turn.seconds for turn in turns)
    return AllRanksTurn(
        rung.images * steps / seconds,
        sum(turn.cpu_s for turn in turns) / seconds,
        local.steps_ms,
    )
