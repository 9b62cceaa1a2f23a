"""Time each part of a training step, alone and together, in one run.

The parts (rungs) are timed in rounds whose order alternates, so that drift of the machine affects
all alike.
"""

import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from harness import config as cfg
from harness.bench.ladder import limits, rungs
from harness.bench.ladder.advice import Change, first_change
from harness.bench.ladder.rungs import Rung
from harness.bench.ladder.summary import AllRanksTurn, Ladder, half_width_pct, summarize
from harness.bench.loop import opened, world_of_bench
from harness.bench.turns import end_of, rounds
from harness.distributed import World
from harness.system.console import duration, out

FEW_ROUNDS, ROUNDS, MOST_ROUNDS = 3, 10, 1000
"""With fewer rounds intervals are wide; the number by which the time is divided; the limit."""
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

    Nothing is written to the run's folder. `minutes` are for all, setup and compilation included;
    one round is done in any case. Only rank 0 gets the result.

    Raises:
        BadInput: the config cannot be run here.
    """
    until, world = end_of(minutes), world_of_bench(config.engine.backend)
    with opened(config, world) as run:
        timed, missing = rungs.rungs(run.t, run.train_set)
        bounds = limits.find(run.resolved, run.train_set.classes)
        turns = _in_rounds(timed, world, until)
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
    printed, active = time.perf_counter(), list(timed)

    def agree(over: bool) -> bool:
        return bool(world.from_main(over or not active))

    for done in rounds(MOST_ROUNDS, until, agree):
        for rung in active:
            turns[rung.name].append(_turn(rung, steps[rung.name], world))
        widths_pct = {rung.name: half_width_pct(turns[rung.name]) for rung in timed}
        if done + 1 >= ENOUGH_ROUNDS:
            active = [rung for rung in active if widths_pct[rung.name] > ENOUGH_PCT]
        active.reverse()
        now = time.perf_counter()
        if now - printed > EVERY_S:
            known = f"known to within {max(widths_pct.values()):.1f} %, " if done else ""
            out.print(f"round {done + 1}: {known}at most {duration(max(0, until - now))} left")
            printed = now
    return turns


def _plan(timed: Sequence[Rung], world: World, until: float) -> dict[str, int]:
    """Return the steps per turn of each rung; warn if a few rounds take longer than `until`."""
    paces = {rung.name: _pace(rung, world) for rung in timed}
    left_s = until - time.perf_counter()
    turn_s = max(TURN_S, left_s / (len(timed) * ROUNDS))
    steps = {
        name: int(np.clip((turn_s - setup_s) / step_s, 1, MOST_STEPS))
        for name, (setup_s, step_s) in paces.items()
    }
    round_s = sum(setup_s + steps[name] * step_s for name, (setup_s, step_s) in paces.items())
    if FEW_ROUNDS * round_s > left_s:
        few = f"{FEW_ROUNDS} rounds take about {duration(FEW_ROUNDS * round_s)}"
        out.print(f"{few}, more than --minutes gives: intervals will be wide or unknown")
    return dict(world.from_main(steps))


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
    cores = sum(turn.cpu_s for turn in turns) / seconds
    return AllRanksTurn(rung.images * steps / seconds, cores, local.steps_ms)
