"""One run, from what was asked to what is left behind. The only file that sees the whole of it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from torch import nn

from harness import __version__, checkpoint, engine
from harness import config as cfg
from harness.console import out
from harness.counts import Score
from harness.data import Batch, Images, open_sets, protocol
from harness.record import folder as run_folder
from harness.record.clock import Clock
from harness.record.environment import environment, host_facts
from harness.record.folder import RunFolder
from harness.record.recorder import Recorder
from harness.record.schema import EpochDigest, Result, Row
from harness.record.wandb import WandbMirror, choose_mode
from harness.resolve import Resolved, resolve
from harness.train import (
    ATTEMPT,
    Training,
    end_epoch,
    evaluate,
    memory_peak_gib,
    set_up,
    train_epoch,
)
from harness.world import World, process_group


def run(config: cfg.Config, world: World) -> None:
    """Do what the config asks, and leave the record in the run folder.

    Raises:
        BadInput: before anything is written.
        RunFailed: training cannot go on.
    """
    clock = Clock(world.device)
    quiet = world.local_rank != 0
    train_set, val_set = open_sets(config, quiet=quiet)
    resolved = resolve(config, world, train_set)
    if config.run.dry_run:
        if world.is_main:
            out.print("\n".join(resolved.lines()))
        return
    folder = _claim(resolved) if world.is_main else None
    with process_group(world, config.engine.timeout_s):
        if not any(world.gather(folder)):
            return  # finished before, and rank 0 has said so
        record = Record(resolved, folder, val_set, train_set, clock)
        with record.open():
            if train_set is None:
                _score(record)
            else:
                _train(record)
    record.say_goodbye()


@dataclass
class Record:
    """What a run gathers for its result; only rank 0 writes it down."""

    resolved: Resolved
    folder: RunFolder | None
    val_set: Images
    train_set: Images | None
    clock: Clock
    rows: Recorder | None = None
    mirror: WandbMirror | None = None
    result: Result | None = None
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    digests: list[EpochDigest] = field(default_factory=list)
    scores: list[tuple[float, Score]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    last_eval_s: float = 0.0
    graphs_warm: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Rows, environment and mirror, closed with the right ending."""
        world = self.resolved.world
        ranks = world.gather(host_facts(world.device))
        try:
            self._begin(ranks)
            yield
        except BaseException:
            self._close({}, exit_code=1)
            raise
        if self.folder is not None and self.result is not None:
            # Written before anything that may hang or fail: teardown and the network come after.
            self.folder.write_json("result.json", self.result.model_dump())
            self.folder.set_state("finished")
            self.result.wandb = self._close(self.result.model_dump(), exit_code=0)
            self.folder.write_json("result.json", self.result.model_dump())

    def _begin(self, ranks: list[dict[str, Any]]) -> None:
        world = self.resolved.world
        if self.folder is not None:
            facts = environment(world.size, world.device) | {"ranks": ranks}
            self.folder.write_json("environment.json", facts)
            out.print("\n".join(self.resolved.lines()))
            self._note_the_unusual()
            self.mirror = self._open_mirror(self.folder, facts)
            self.rows = Recorder(self.folder.rows, self.resolved.total_steps, self.mirror)

    def write(self, row: Row) -> None:
        """A row, with the time left for the whole run."""
        if self.rows is not None:
            self.rows.write(row, left_s=self._left_s(row))

    def validated(self, score: Score, row: Row) -> None:
        """A validation is done."""
        self.scores.append((row.epoch, score))
        self.last_eval_s = row.val_s or 0.0
        self.write(row)

    def say_goodbye(self) -> None:
        """The last lines: what came out, where it is, what to type next."""
        if self.folder is None or self.result is None:
            return
        result, path = self.result, self.folder.path
        speed = result.images_per_second
        rate = f", {speed:,.0f} images/s ({_what_rate_means(result)})" if speed else ""
        out.print(f"validation top-1 {result.val_top1_pct:.2f} %{rate}")
        if self.mirror is not None:
            command = self.mirror.sync_command
            out.print(f"W&B: {result.wandb}" + (f"; upload with: {command}" if command else ""))
        out.print(f"result: {path}/result.json; see it with: harness show {path}")

    def _left_s(self, row: Row) -> float | None:
        resolved = self.resolved
        left = resolved.total_steps - row.step
        if not row.step or not left:
            return None
        per_step_s = row.train_s / row.step
        every = resolved.config.eval.every_epochs * resolved.steps_per_epoch
        return left * per_step_s + -(-left // every) * self.last_eval_s

    def _note_the_unusual(self) -> None:
        data = self.resolved.config.data
        if data.source == "torchvision":
            self.notes.append("images read by the torchvision arm (Pillow), not by DALI")
        if data.source == "synthetic":
            self.notes.append("synthetic images: the accuracy means nothing")
        for note in self.notes:
            out.print(f"{'note':>12}: {note}")

    def _open_mirror(self, folder: RunFolder, facts: dict[str, Any]) -> WandbMirror | None:
        config = self.resolved.config
        mode, why = choose_mode(config.log.wandb, os.environ)
        if why:
            out.print(f"{'W&B':>12}: {why}")
        if mode == "off":
            return None
        seedless = config.model_copy(update={"run": config.run.model_copy(update={"seed": 0})})
        derived = {
            "world_size": self.resolved.world.size,
            "precision": self.resolved.precision,
            "peak_lr": self.resolved.peak_lr,
        }
        return WandbMirror(
            mode=mode,
            run_id=folder.run_id,
            name=folder.path.name,
            group=f"{config.model.name}-{cfg.fingerprint(seedless, 'result')}",
            job_type=config.run.mode,
            tags=(config.model.name, config.data.source, self.resolved.precision, *config.log.tags),
            config=config.model_dump(mode="json") | {"resolved": derived, "environment": facts},
            project=config.log.project,
            entity=config.log.entity,
            folder=folder.path,
        )

    def _close(self, summary: dict[str, Any], exit_code: int) -> str:
        if self.rows is not None:
            self.rows.close()
        return self.mirror.finish(summary, exit_code) if self.mirror is not None else "off"


def _claim(resolved: Resolved) -> RunFolder | None:
    """The run's folder; none if this very run is finished."""
    config, path = resolved.config, resolved.folder
    if run_folder.is_finished(path, config):
        out.print(
            f"{path}: this run is finished; see it with: harness show {path}\n"
            "to train it again: --run.restart, or another --run.name"
        )
        return None
    return run_folder.claim(path, config)


def _train(record: Record) -> None:
    """Epochs of training, each with its digest, some with an evaluation; then the result."""
    resolved, clock, train_set = record.resolved, record.clock, record.train_set
    assert train_set is not None
    config = resolved.config
    t = set_up(resolved, train_set.classes, clock)
    record.graphs_warm = engine.graph_counts()
    batches = _started(
        resolved.loader.train(
            train_set, resolved.split, epoch=0, step=0, epochs=config.schedule.epochs
        )
    )
    val_batches = _started(resolved.loader.eval(record.val_set, config.eval.local_batch))
    epoch = 0
    while t.step < resolved.total_steps:
        with clock.account("train"):
            for row in train_epoch(t, batches):
                record.write(row)
            record.digests.append(end_epoch(t, train_set))
        epoch += 1
        if epoch % config.eval.every_epochs == 0 or t.step == resolved.total_steps:
            with clock.account("evaluate"):
                _validate(record, t, val_batches)
    with clock.account("checkpoint"):
        if record.folder is not None:
            checkpoint.save({"model": t.model.net.state_dict()}, record.folder.weights)
    record.result = _result(record, t.model.net, t)


def _validate(record: Record, t: Training, batches: Iterator[Batch]) -> None:
    before_s = t.clock.wall_s
    score = evaluate(t.model, batches, len(record.val_set), record.resolved)
    row = _val_row(record, score, t.clock.wall_s - before_s, t)
    record.validated(score, row)


def _score(record: Record) -> None:
    """Evaluate given weights, without training."""
    resolved, clock = record.resolved, record.clock
    engine.set_up_torch(resolved)
    model = engine.build(resolved, record.val_set.classes)
    with clock.account("compile"):
        engine.warm_up_eval(model, resolved)
    record.graphs_warm = engine.graph_counts()
    batches = _started(resolved.loader.eval(record.val_set, resolved.config.eval.local_batch))
    with clock.account("evaluate"):
        before_s = clock.wall_s
        score = evaluate(model, batches, len(record.val_set), resolved)
        record.validated(score, _val_row(record, score, clock.wall_s - before_s, None))
    record.result = _result(record, model.net, None)


def _started(batches: Iterator[Batch]) -> Iterator[Batch]:
    """With the first batch made: the loader's start is start-up, not a slow first step."""
    return itertools.chain([next(batches)], batches)


def _val_row(record: Record, score: Score, val_s: float, t: Training | None) -> Row:
    return Row(
        kind="val",
        attempt=ATTEMPT,
        epoch=t.epoch if t else 0.0,
        step=t.step if t else 0,
        images_seen=t.images_seen if t else 0,
        train_s=record.clock.train_s,
        wall_s=record.clock.wall_s,
        val_loss=score.loss,
        val_top1_pct=score.top1_pct,
        val_top5_pct=score.top5_pct,
        val_images=score.images,
        val_s=val_s,
    )


def _what_rate_means(result: Result) -> str:
    return f"all {result.world_size} ranks, waiting for data included, warm-up and validation not"


def _result(record: Record, net: nn.Module, t: Training | None) -> Result:
    """The Result; `t` is none where weights were only scored."""
    resolved, clock, config = record.resolved, record.clock, record.resolved.config
    assert config.run.name is not None
    graphs = engine.graph_counts()
    score = record.scores[-1][1]
    best_epoch, best = max(record.scores, key=lambda each: each[1].correct1)
    train_s = clock.train_s
    return Result(
        harness_version=__version__,
        name=config.run.name,
        run_id=record.folder.run_id if record.folder else "",
        mode=config.run.mode,
        attempt=ATTEMPT,
        started_at=record.started.isoformat(timespec="seconds"),
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        result_fingerprint=cfg.fingerprint(config, "result"),
        speed_fingerprint=cfg.fingerprint(config, "speed"),
        notes=record.notes,
        model=config.model.name,
        parameters=sum(p.numel() for p in net.parameters()),
        classes=record.val_set.classes,
        train_images=len(record.train_set) if record.train_set else None,
        train_digest=record.train_set.digest if record.train_set else None,
        val_digest=record.val_set.digest,
        protocol=protocol(config.data),
        world_size=resolved.world.size,
        global_batch=resolved.split.global_batch,
        local_batch=resolved.split.local_batch,
        accumulate=resolved.split.accumulate,
        peak_lr=resolved.peak_lr if t else None,
        precision=resolved.precision,
        channels_last=config.engine.channels_last,
        compiled=resolved.compiled,
        source=config.data.source,
        decode=resolved.loader.decode,
        device=resolved.world.device.type,
        compute_threads=resolved.threads,
        loader_threads=resolved.loader.threads,
        epochs=t.epoch if t else 0.0,
        steps=t.step if t else 0,
        images_seen=t.images_seen if t else 0,
        val_top1_pct=score.top1_pct,
        val_top5_pct=score.top5_pct,
        val_loss=score.loss,
        val_correct1=score.correct1,
        val_correct5=score.correct5,
        val_images=score.images,
        best_val_top1_pct=best.top1_pct,
        best_epoch=best_epoch,
        images_per_second=t.images_seen / train_s if t else None,
        step_ms_p50=clock.step_ms(50),
        step_ms_p95=clock.step_ms(95),
        step_ms_p99=clock.step_ms(99),
        data_wait_pct=100 * clock.data_wait_s / train_s if t else None,
        accounts_s=clock.accounts_s,
        wall_s=clock.wall_s,
        memory_peak_gib=memory_peak_gib(resolved.world),
        recompiles=graphs["graphs"] - record.graphs_warm["graphs"],
        graph_breaks=graphs["breaks"],
        digests=record.digests,
        wandb="off" if record.mirror is None else record.mirror.status,
    )
