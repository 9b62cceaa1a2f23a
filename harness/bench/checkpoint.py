"""Measure what checkpoints cost: the throughput of training, each stall, the time to the disk."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from harness import config as cfg
from harness.bench.loop import Opened, Work, opened, wait_for, world_of_bench
from harness.bench.turns import end_of, interleave, report
from harness.checkpoint.saver import Staging
from harness.distributed import World
from harness.errors import BadInput, RunFailed
from harness.logging.rows import Recorder
from harness.system.console import out, right_table
from harness.trainer import attempt as attempts
from harness.trainer.checkpointing import CheckpointManager
from harness.trainer.loop import end_epoch, train_epoch
from harness.trainer.reporter import RunLogger

SAVES = 2
"""Checkpoints per turn: one at the end of an epoch, one within it."""


@dataclass
class Times:
    """Times of the checkpoints, measured on rank 0."""

    stall_s: list[float] = field(default_factory=list)  # of the account `checkpoint`
    copy_s: list[float] = field(default_factory=list)  # from the device, measured between turns
    on_disk_s: list[float] = field(default_factory=list)  # from a save's start to its publication
    bytes: int = 0


def measure(work: Work, folder: Path, minutes: float) -> None:
    """Measure training with and without checkpoints in turns, and print both rates, images/s.

    A turn with checkpoints begins with the save that ends an epoch and has another one halfway. Its
    time is that of the accounts `train` and `checkpoint`, up to when the last checkpoint is on the
    disk.

    Args:
        folder: on the disk to measure; checkpoints are written to a temporary folder in it.
        minutes: time for all, compiling included; one turn of each is measured in any case.

    Raises:
        BadInput: the folder cannot be written.
        RunFailed: a checkpoint could not be written; the reason was printed.
    """
    until, world, steps = end_of(minutes), world_of_bench(), work.steps // SAVES
    with _temporary(folder, world) as root:
        saving = cfg.Checkpoint(every_minutes=0, keep=SAVES)
        config = work.config(world, run=cfg.Run(name="bench", root=str(root)), checkpoint=saving)
        with opened(config, world) as run, ExitStack() as closing:
            turns = _Turns(run, steps, closing)
            both = {
                "with checkpoints": partial(turns.train, saves=True),
                "without": partial(turns.train, saves=False),
            }
            for train in both.values():
                train()  # not measured: memory is first allocated here
            turns.times = Times()
            rates = interleave(both, work.turns, until, world.from_main)
            title = f"training on synthetic images, a checkpoint every {steps} steps into {folder}"
            report(rates, title, work.turns)
            if world.is_main:
                _print_stalls(turns.times, run.t.clock.step_ms(50) or 0.0)


@contextmanager
def _temporary(folder: Path, world: World) -> Iterator[Path]:
    if not world.is_main:
        yield folder
        return
    try:
        made = TemporaryDirectory(prefix=".harness-bench-", dir=folder, ignore_cleanup_errors=True)
    except OSError as error:
        raise BadInput(
            f"--folder: {folder}: {error.strerror}; name an existing folder you can write"
        ) from None
    with made as name:
        yield Path(name)


class _Turns:
    """A run in its folder, trained by epochs as run.py does, without validation; prints no rows."""

    def __init__(self, run: Opened, every: int, closing: ExitStack) -> None:
        self.t, self.batches, self.train_set = run.t, run.batches(), run.train_set
        self.plain, config = run.resolved, run.resolved.config
        saving = config.checkpoint.model_copy(update={"every_steps": every})
        self.saving = replace(run.resolved, config=config.model_copy(update={"checkpoint": saving}))
        self.times, self.copies = Times(), Staging()
        self.watchers: list[Future[Path | None]] = []
        self.pool = closing.enter_context(ThreadPoolExecutor(SAVES))
        attempt = attempts.begin(run.resolved, run.train_set, run.val_set)
        assert attempt is not None, "a new folder"
        closing.callback(attempt.release)
        main = run.resolved.world.is_main
        rows = Recorder(attempt.folder.rows, total_steps=0) if main else None
        self.report = RunLogger(
            run.resolved, attempt.folder, main, run.val_set, run.train_set, run.t.clock, rows
        )
        self.checkpoints = CheckpointManager(attempt, self.report)
        self.t.control = replace(run.t.control, save_due=self.checkpoints.due)
        self.checkpoints.restore(self.t)

    def train(self, *, saves: bool) -> float:
        """Train an epoch, with or without checkpoints; return images per second."""
        t = self.t
        t.resolved = self.saving if saves else self.plain
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
        self.watchers.append(self.pool.submit(self._watch, began))

    def _watch(self, began: float) -> Path | None:
        """Wait until a checkpoint is on the disk; return its path, or that of the last good one."""
        self.checkpoints.wait()
        self.times.on_disk_s.append(time.perf_counter() - began)
        return self.checkpoints.last

    def _check_published(self) -> None:
        published, self.watchers = {watcher.result() for watcher in self.watchers}, []
        if self.report.writes:
            if len(published) < SAVES or (last := self.checkpoints.last) is None:
                why = "a checkpoint could not be written, so that its cost cannot be measured"
                raise RunFailed(why)
            self.times.bytes = last.stat().st_size

    def _time_copy(self) -> None:
        t = self.t
        state = {"model": t.model.net.state_dict(), "optimizer": t.optimizer.state_dict()}
        wait_for(t.resolved.world.device)
        began = time.perf_counter()
        self.copies.copy(state)
        self.copies.wait()
        self.times.copy_s.append(time.perf_counter() - began)


def _print_stalls(times: Times, step_ms: float) -> None:
    stall, copy, on_disk = map(np.array, (times.stall_s, times.copy_s, times.on_disk_s))
    table = right_table("per checkpoint", "p50, ms", "most, ms", "p50, % of a step")
    rows = {
        "stall: training is held up": stall,
        "of which the copy off the device": copy,
        "beyond the copy": stall - np.median(copy),
        "until it is on the disk": on_disk,
    }
    for name, times_s in rows.items():
        middle, most = 1000 * np.median(times_s), 1000 * times_s.max()
        table.add_row(name, f"{middle:,.1f}", f"{most:,.1f}", f"{100 * middle / step_ms:.1f}")
    out.print(table)
    out.print(
        f"{len(stall)} checkpoints of {times.bytes / 1e6:,.1f} MB, a step takes {step_ms:,.1f} ms; "
        "in a run: --checkpoint.every-steps, --checkpoint.every-minutes"
    )
