"""Measure the overhead of the harness's loop against a bare one, on synthetic images, in turns."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from harness.bench.loop import TIMEOUT_S, Opened, Work, opened, wait_for, world_of_bench
from harness.bench.turns import end_of, interleave, ratios, report
from harness.data.batch import Batch
from harness.models import criterion
from harness.system.console import count, out
from harness.trainer import setup
from harness.trainer.control import Outcome, StepControl, Vote
from harness.trainer.loop import Training, train_epoch


def measure(work: Work, minutes: float) -> None:
    """Measure three loops in turns, and print their images per second over all ranks.

    They are the whole of `train_epoch` (DDP, counts, digests, rows); the same without the ranks'
    vote after each step; and a bare loop with the same network, precision and layout, on tensors in
    memory, with DDP if there are several ranks. `minutes` are for all, compiling included; one turn
    of each is measured in any case.

    Raises:
        BadInput: as world_of_bench does.
    """
    until, world = end_of(minutes), world_of_bench()
    with opened(work.config(world), world) as run:
        t, batches, voting = run.t, run.batches(), run.t.control
        silent = replace(voting, vote=_NoVote(TIMEOUT_S))
        loops: dict[str, Callable[[], float]] = {
            "harness": partial(_harness, t, batches, voting),
            "harness, no vote": partial(_harness, t, batches, silent),
            "bare loop": _bare(run, next(batches), work.steps),
        }
        _explain(world.size)
        for name in ("harness", "bare loop"):
            loops[name]()  # not measured: memory is first allocated here
        rates = interleave(loops, work.turns, until, world.from_main)
        report(rates, f"training on synthetic images, {work.steps} steps a turn", work.turns)
        low, middle, high = 100 * (1 - np.quantile(ratios(rates, *list(rates)[:2]), (1, 0.5, 0)))
        out.print(
            f"the vote of {count(world.size, 'rank')} costs {middle:.2f} % of the throughput "
            f"(turn by turn {low:.2f} to {high:.2f})"
        )


def _explain(ranks: int) -> None:
    ddp = "nothing else" if ranks == 1 else "DDP as the harness sets it up, nothing else"
    out.print(
        "harness: the loop of a run, with DDP (of several ranks), counts, digests, rows, and a "
        "vote of all ranks after each step\n"
        "harness, no vote: the same, but unable to save by time or to stop on a signal\n"
        f"bare loop: forward, loss, backward, SGD; {ddp}"
    )


class _NoVote(Vote):
    """A vote without communication: each rank's own vote is the result."""

    def cast(self, *, stop: bool, save: bool, end: bool = False) -> Outcome:
        return Outcome(stop, save, end)


def _harness(t: Training, batches: Iterator[Batch], control: StepControl) -> float:
    t.control = control
    with t.clock.account("train"):
        before_s, before = t.clock.train_s, t.images_seen
        train_epoch(t, batches)
        return (t.images_seen - before) / (t.clock.train_s - before_s)


def _bare(run: Opened, batch: Batch, steps: int) -> Callable[[], float]:
    r = run.resolved
    model = setup.data_parallel(setup.place(setup.network(r, run.train_set.classes), r), r).train()
    loss_of, device = criterion(r.config.train.label_smoothing), r.world.device
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True
    )

    def turn() -> float:
        wait_for(device)
        began = time.perf_counter()
        for _ in range(steps):
            with setup.autocast(r):
                logits = model(batch.images)
            loss_of(logits.float(), batch.labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        wait_for(device)
        return r.split.global_batch * steps / (time.perf_counter() - began)

    return turn
