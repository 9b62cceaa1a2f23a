"""Measure what checkpoints cost: the throughput of training, each stall, the time to the disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rich.table import Table

from harness import config as cfg
from harness.bench.loop import TIMEOUT_S, Opened, Work, opened, wait_for, world_of_bench
from harness.bench.turns import Timed, interleave, report
from harness.checkpoint.saver import Staging
from harness.distributed import World
from harness.errors import BadInput, RunFailed
from harness.logging.rows import Recorder
from harness.monitor.clock import Clock
from harness.monitor.watchdog import Watchdog
from harness.system.console import out
from harness.system.process import Signals
from harness.trainer import attempt as attempts
from harness.trainer import setup
from harness.trainer.checkpointing import CheckpointManager
from harness.trainer.control import StepControl, Vote
from harness.trainer.loop import end_epoch, set_up, train_epoch
from harness.trainer.reporter import RunLogger

SAVES = 2
"""Checkpoints per turn: one at the end of an epoch, one within it."""


@dataclass
class Times:
    """Times of the checkpoints, measured on rank 0."""

    stall_s: list[float] = field(default_factory=list)
    """Time of the account `checkpoint`, per checkpoint."""
    copy_s: list[float] = field(default_factory=list)
    """Time of the copy from the device alone, measured between turns."""
    on_disk_s: list[float] = field(default_factory=list)
    """Time from the start of a save until the checkpoint is published."""
    bytes: int = 0


def measure(work: Work, folder: Path) -> float:
    """Measure training with and without checkpoints in turns, and print both rates, images/s.

    A turn with checkpoints begins with the save that ends an epoch and has another one halfway. Its
    time is that of the accounts `train` and `checkpoint`, up to when the last checkpoint is on the
    disk.

    Args:
        folder: an existing folder on the disk to measure; checkpoints are written to a temporary
            folder in it.

    Returns:
        The ratio with / without, median over turns.

    Raises:
        BadInput: the folder cannot be written.
        RunFailed: a checkpoint could not be written; the reason was printed.
    """
    world = world_of_bench()
    with _temporary(folder, world) as root:
        config = work.config(
            world,
            run=cfg.Run(name="bench", root=str(root)),
            checkpoint=cfg.Checkpoint(every_minutes=0, keep=SAVES),
        )
        with opened(config, world) as run, ExitStack() as closing:
            turns = _Turns(run, work.steps // SAVES, closing)
            arms = [
                Timed("with checkpoints", turns.with_checkpoints),
                Timed("without", turns.without),
            ]
            for arm in arms:
                arm.turn()  # not measured: memory is first allocated here
            turns.times = Times()
            measured = interleave(arms, work.turns)
            steps = work.steps // SAVES
            title = f"training on synthetic images, a checkpoint every {steps} steps into {folder}"
            ratio = report(measured, title)
            if world.is_main:
                _print_stalls(turns.times, turns.step_ms())
            return ratio


@contextmanager
def _temporary(folder: Path, world: World) -> Iterator[Path]:
    """Make rank 0's temporary folder, and delete it at the end; other ranks write nothing."""
    if not world.is_main:
        yield folder
        return
    with ExitStack() as cleanup:
        try:
            temporary = TemporaryDirectory(
                prefix=".harness-bench-", dir=folder, ignore_cleanup_errors=True
            )
            root = Path(cleanup.enter_context(temporary))
        except OSError as error:
            raise BadInput(
                f"--folder: {folder}: {error.strerror}; name an existing folder you can write"
            ) from None
        yield root


class _Turns:
    """A run in its folder, trained epoch by epoch as run.py does, without validation.

    In both arms rows are recorded, but not printed.
    """

    def __init__(self, run: Opened, every: int, closing: ExitStack) -> None:
        self.train_set, self.batches = run.train_set, run.batches
        self.plain, config = run.resolved, run.resolved.config
        saving = config.checkpoint.model_copy(update={"every_steps": every})
        self.saving = replace(run.resolved, config=config.model_copy(update={"checkpoint": saving}))
        self.times, self.copies = Times(), Staging()
        self.watchers: list[threading.Thread] = []
        self.published: set[Path | None] = set()
        attempt = attempts.begin(run.resolved, run.train_set, run.val_set)
        assert attempt is not None, "a new folder"
        closing.callback(attempt.release)
        main, clock = run.resolved.world.is_main, Clock(run.resolved.world.device)
        rows = Recorder(attempt.folder.rows, total_steps=0) if main else None
        self.report = RunLogger(
            run.resolved, attempt.folder, main, run.val_set, run.train_set, clock, rows
        )
        self.checkpoints = CheckpointManager(attempt, self.report)
        vote = Vote(TIMEOUT_S)
        control = StepControl(vote, Signals(), Watchdog(), self.checkpoints.due)
        net = setup.network(run.resolved, run.train_set.classes)
        self.t = set_up(run.resolved, net, clock, control)
        self.checkpoints.restore(self.t)
        closing.callback(vote.close)

    def with_checkpoints(self) -> float:
        """Train an epoch with checkpoints; return images per second."""
        self.t.resolved = self.saving
        return self._turn(saves=True)

    def without(self) -> float:
        """Train an epoch without checkpoints; return images per second."""
        self.t.resolved = self.plain
        return self._turn(saves=False)

    def step_ms(self) -> float:
        """Return the median time of a step."""
        return self.t.clock.step_ms(50) or 0.0

    def _turn(self, *, saves: bool) -> float:
        t = self.t
        before_s, before = self._spent_s("train", "checkpoint"), t.images_seen
        with t.clock.account("train"):
            if saves:
                self._save()  # as at the end of the epoch before
            train_epoch(t, self.batches, save=lambda t, must: self._save())
            self.report.digests.append(end_epoch(t, self.train_set))
        if saves:
            with t.clock.account("checkpoint"):
                self.checkpoints.wait()
            self._check_published()
        rate = (t.images_seen - before) / (self._spent_s("train", "checkpoint") - before_s)
        self._time_copy()
        return rate

    def _spent_s(self, *accounts: str) -> float:
        spent_s = self.t.clock.accounts_s
        return sum(spent_s.get(name, 0.0) for name in accounts)

    def _save(self) -> None:
        began, before_s = time.perf_counter(), self._spent_s("checkpoint")
        self.checkpoints.save(self.t, must=True)
        self.times.stall_s.append(self._spent_s("checkpoint") - before_s)
        self.watchers.append(threading.Thread(target=self._watch, args=(began,)))
        self.watchers[-1].start()

    def _watch(self, began: float) -> None:
        self.checkpoints.wait()
        self.times.on_disk_s.append(time.perf_counter() - began)
        self.published.add(self.checkpoints.last)

    def _check_published(self) -> None:
        while self.watchers:
            self.watchers.pop().join()
        published, self.published = self.published, set()
        if self.report.writes:
            if len(published) < SAVES or self.checkpoints.last is None:
                raise RunFailed(
                    "a checkpoint could not be written, so that its cost cannot be measured"
                )
            self.times.bytes = self.checkpoints.last.stat().st_size

    def _time_copy(self) -> None:
        """Time the copy that each checkpoint makes, by itself."""
        t = self.t
        state = {"model": t.model.net.state_dict(), "optimizer": t.optimizer.state_dict()}
        wait_for(t.resolved.world.device)
        began = time.perf_counter()
        self.copies.copy(state)
        self.copies.wait()
        self.times.copy_s.append(time.perf_counter() - began)


def _print_stalls(times: Times, step_ms: float) -> None:
    stall, copy = (1000 * np.array(s) for s in (times.stall_s, times.copy_s))
    beyond = stall - np.median(copy)
    table = Table("per checkpoint", "p50, ms", "most, ms", "p50, % of a step")
    for column in table.columns[1:]:
        column.justify = "right"
    rows = {
        "stall: training is held up": stall,
        "of which the copy off the device": copy,
        "beyond the copy": beyond,
        "until it is on the disk": 1000 * np.array(times.on_disk_s),
    }
    for name, times_ms in rows.items():
        middle = float(np.median(times_ms))
        table.add_row(
            name, f"{middle:,.1f}", f"{times_ms.max():,.1f}", f"{100 * middle / step_ms:.1f}"
        )
    out.print(table)
    out.print(
        f"{len(stall)} checkpoints of {times.bytes / 1e6:,.1f} MB, a step takes {step_ms:,.1f} ms; "
        "in a run: --checkpoint.every-steps, --checkpoint.every-minutes"
    )
