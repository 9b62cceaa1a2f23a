"""Report: what a run gathers while it goes, and leaves behind: rows, result, mirror, last words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from torch import nn

from harness import __version__, engine
from harness import config as cfg
from harness.console import count, out
from harness.counts import Score
from harness.data import Images, protocol
from harness.record.clock import Clock
from harness.record.environment import environment, host_facts
from harness.record.folder import RunFolder
from harness.record.recorder import Recorder
from harness.record.schema import EpochDigest, Result, Row
from harness.record.wandb import WandbMirror, choose_mode
from harness.resolve import Resolved
from harness.train import ATTEMPT, Training, memory_peak_gib


@dataclass
class Report:
    """All ranks gather; only rank 0, which has the folder, writes anything down."""

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

    def validated(self, score: Score, val_s: float, t: Training | None) -> None:
        """A validation is done, after some training or none."""
        row = Row(
            kind="val",
            attempt=ATTEMPT,
            epoch=t.epoch if t else 0.0,
            step=t.step if t else 0,
            images_seen=t.images_seen if t else 0,
            train_s=self.clock.train_s,
            wall_s=self.clock.wall_s,
            val_loss=score.loss,
            val_top1_pct=score.top1_pct,
            val_top5_pct=score.top5_pct,
            val_images=score.images,
            val_s=val_s,
        )
        self.scores.append((row.epoch, score))
        self.last_eval_s = val_s
        self.write(row)

    def warmed_up(self) -> None:
        """Graphs that are compiled from here on are recompilations."""
        self.graphs_warm = engine.graph_counts()

    def conclude(self, net: nn.Module, t: Training | None) -> None:
        """The work is done; what remains is to write it down."""
        self.result = _result(self, net, t)
        if self.result.recompiles or self.result.graph_breaks:
            self.result.notes.append(
                f"{count(self.result.recompiles, 'recompile')} after the warm-up and "
                f"{count(self.result.graph_breaks, 'graph break')}: the speed is not to be trusted"
            )

    def say_goodbye(self) -> None:
        """The last lines: what came out, where it is, what to type next."""
        if self.folder is None or self.result is None:
            return
        result, path = self.result, self.folder.path
        speed = result.images_per_second
        rate = f", {speed:,.0f} images/s ({_what_rate_means(result)})" if speed else ""
        out.print(f"validation top-1 {result.val_top1_pct:.2f} %{rate}")
        for note in result.notes:
            out.print(f"note: {note}")
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


def _what_rate_means(result: Result) -> str:
    return (
        f"{count(result.world_size, 'rank')}, waiting for data included, warm-up and validation not"
    )


def _result(report: Report, net: nn.Module, t: Training | None) -> Result:
    """The Result; `t` is none where weights were only scored."""
    config = report.resolved.config
    assert config.run.name is not None
    return Result(
        harness_version=__version__,
        name=config.run.name,
        run_id=report.folder.run_id if report.folder else "",
        mode=config.run.mode,
        attempt=ATTEMPT,
        started_at=report.started.isoformat(timespec="seconds"),
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        result_fingerprint=cfg.fingerprint(config, "result"),
        speed_fingerprint=cfg.fingerprint(config, "speed"),
        notes=report.notes,
        model=config.model.name,
        parameters=sum(p.numel() for p in net.parameters()),
        epochs=t.epoch if t else 0.0,
        steps=t.step if t else 0,
        images_seen=t.images_seen if t else 0,
        digests=report.digests,
        wandb="off" if report.mirror is None else report.mirror.status,
        **_data_facts(report),
        **_engine_facts(report.resolved, training=t is not None),
        **_accuracy(report.scores),
        **_speed(report, t),
    )


def _data_facts(report: Report) -> dict[str, Any]:
    train_set, val_set = report.train_set, report.val_set
    return {
        "classes": val_set.classes,
        "train_images": len(train_set) if train_set else None,
        "train_digest": train_set.digest if train_set else None,
        "val_digest": val_set.digest,
        "protocol": protocol(report.resolved.config.data),
    }


def _engine_facts(resolved: Resolved, *, training: bool) -> dict[str, Any]:
    return {
        "world_size": resolved.world.size,
        "global_batch": resolved.split.global_batch,
        "local_batch": resolved.split.local_batch,
        "accumulate": resolved.split.accumulate,
        "peak_lr": resolved.peak_lr if training else None,
        "precision": resolved.precision,
        "channels_last": resolved.config.engine.channels_last,
        "compiled": resolved.compiled,
        "source": resolved.config.data.source,
        "decode": resolved.loader.decode,
        "device": resolved.world.device.type,
        "compute_threads": resolved.threads,
        "loader_threads": resolved.loader.threads,
    }


def _accuracy(scores: list[tuple[float, Score]]) -> dict[str, Any]:
    last = scores[-1][1]
    best_epoch, best = max(scores, key=lambda each: each[1].correct1)
    return {
        "val_top1_pct": last.top1_pct,
        "val_top5_pct": last.top5_pct,
        "val_loss": last.loss,
        "val_correct1": last.correct1,
        "val_correct5": last.correct5,
        "val_images": last.images,
        "best_val_top1_pct": best.top1_pct,
        "best_epoch": best_epoch,
    }


def _speed(report: Report, t: Training | None) -> dict[str, Any]:
    clock, graphs = report.clock, engine.graph_counts()
    train_s = clock.train_s
    return {
        "images_per_second": t.images_seen / train_s if t else None,
        "step_ms_p50": clock.step_ms(50),
        "step_ms_p95": clock.step_ms(95),
        "step_ms_p99": clock.step_ms(99),
        "data_wait_pct": 100 * clock.data_wait_s / train_s if t else None,
        "accounts_s": clock.accounts_s,
        "wall_s": clock.wall_s,
        "memory_peak_gib": memory_peak_gib(report.resolved.world),
        "recompiles": graphs["graphs"] - report.graphs_warm["graphs"],
        "graph_breaks": graphs["breaks"],
    }
