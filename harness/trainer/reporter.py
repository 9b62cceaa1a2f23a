"""Log a run: rows, result, W&B, and the last lines on the console."""

import os
import shlex
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from harness import config as cfg
from harness.data.sets import Images
from harness.logging.rows import Recorder
from harness.logging.schema import EpochDigest, Result, Row, Target
from harness.monitor.clock import Clock
from harness.monitor.environment import CHECKOUT, environment, host_facts
from harness.run_folder import folder as run_folder
from harness.run_folder.folder import RunFolder
from harness.schedule import ENDS
from harness.system.console import count, out
from harness.trainer.loop import Training
from harness.trainer.metrics import Score
from harness.trainer.resolve import Resolved

if TYPE_CHECKING:
    from harness.logging.wandb import WandbMirror
    from harness.monitor.gpus import Throttle


@dataclass
class RunLogger:
    """The record of a run, kept by all ranks and written by rank 0."""

    resolved: Resolved
    folder: RunFolder  # of the run, on all ranks
    writes: bool  # whether this rank is the one that writes into it
    val_set: Images
    train_set: Images | None
    clock: Clock
    rows: Recorder | None = None
    mirror: "WandbMirror | None" = None
    throttle: "Throttle | None" = None
    result: Result | None = None
    digests: list[EpochDigest] = field(default_factory=list)
    scores: list[tuple[float, Score]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    target: Target | None = None
    last_eval_s: float = 0.0
    graphs_warm: int = 0

    def begin(self, keep_bytes: int) -> None:
        """Write the environment; open rows, of which `keep_bytes` stay, and W&B."""
        world = self.resolved.world
        ranks = world.gather(host_facts(world.device))
        if world.on_gpu:
            from harness.monitor.gpus import Throttle

            self.throttle = Throttle(world.device)
        if not self.writes:
            return
        stored = {  # where the images are, and how much of them is in memory
            name: images.dataset.facts()
            for name, images in (("train", self.train_set), ("val", self.val_set))
            if images is not None and images.dataset is not None
        }
        facts = environment(world.size, world.device) | {"ranks": ranks, "images": stored}
        self.folder.write_json("environment.json", facts)
        out.print("\n".join(self.resolved.lines()))
        if facts["harness"]["git_commit"] is None:
            self.notes.append(f"the commit is unknown: `git -C {CHECKOUT} status` says why")
        self._note_the_unusual()
        self.rows = Recorder(self.folder.rows, self.resolved.total_steps, keep_bytes)
        self.mirror = self._open_mirror(facts)

    def state_dict(self) -> dict[str, Any]:
        """The part of the record that a checkpoint holds; that of rank 0 is used."""
        config = self.resolved.config
        return {
            "of": {
                "run_id": self.folder.run_id,
                "result_fingerprint": cfg.fingerprint(config, "result"),
                "speed_fingerprint": cfg.fingerprint(config, "speed"),
            },
            "digests": [each.model_dump() for each in self.digests],
            "scores": [(epoch, asdict(score)) for epoch, score in self.scores],
            "rows": self.rows.rows if self.rows else 0,
            "rows_bytes": self.rows.bytes if self.rows else 0,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the record from a checkpoint."""
        self.digests = [EpochDigest(**each) for each in state["digests"]]
        self.scores = [(epoch, Score(**score)) for epoch, score in state["scores"]]

    def durable(self, rows: int) -> None:
        """Send the first `rows` rows to W&B, as no later attempt repeats them; any thread."""
        if self.mirror is not None:
            self.mirror.release(rows)

    def write(self, row: Row) -> None:
        """Write a row, and show the time left."""
        if self.rows is not None:
            self.rows.write(row, left_s=self._left_s(row))
        if self.mirror is not None:
            self.mirror.live(row.model_dump(exclude_none=True))

    def validated(self, score: Score, val_s: float, t: Training | None) -> None:
        """Write the row of a validation."""
        if t is not None and "target reached" in (t.decided_here or ()):
            target_pct = self.resolved.config.schedule.stop_at_top1_pct
            assert target_pct is not None
            self.target = Target(
                top1_pct=target_pct,
                val_top1_pct=score.top1_pct,
                epoch=t.epoch,
                step=t.step,
                train_s=self.clock.train_s,
                wall_s=self.clock.total_s,
            )
        self.last_eval_s = val_s
        self.record(
            "val",
            t,
            val_loss=score.loss,
            val_top1_pct=score.top1_pct,
            val_top5_pct=score.top5_pct,
            val_images=score.images,
            val_s=val_s,
            events=t.decided_here if t else None,
        )

    def record(self, kind: Literal["val", "stop"], t: Training | None, **fields: Any) -> None:
        """Write a row of where the run stands."""
        row = Row(
            kind=kind,
            attempt=self.folder.attempt,
            epoch=t.epoch if t else 0.0,
            step=t.step if t else 0,
            images_seen=t.images_seen if t else 0,
            train_s=self.clock.train_s,
            wall_s=self.clock.wall_s,
            **fields,
        )
        self.write(row)

    def finish(self, result: Result) -> None:
        """Write the result before anything that may hang or fail, such as the network.

        Raises:
            OSError: it cannot be written, or rows still wait for room on the disk.
        """
        assert self.rows is not None
        self.result = result
        self.rows.sync()
        self.folder.write_json("result.json", result.model_dump())
        self.folder.set_state("finished")
        self.durable(self.rows.rows)
        result.wandb = self.close(result.model_dump(), exit_code=0)
        self.folder.write_json("result.json", result.model_dump())

    def close(self, summary: dict[str, Any], exit_code: int, timeout_s: float | None = None) -> str:
        """Close progress bar and W&B, however the run ends; return how W&B ended."""
        if self.rows is not None:
            self.rows.close()
        if self.mirror is None:
            return "off"
        limit = {} if timeout_s is None else {"timeout_s": timeout_s}
        return self.mirror.finish(summary, exit_code, **limit)

    def say_goodbye(self) -> None:
        """Print the last lines: the result, where it is, and what to type next."""
        if not self.writes or self.result is None:
            return
        done, path = self.result, self.folder.path
        speed = done.images_per_second
        of = f"{count(done.world_size, 'rank')}, waiting for data included"
        rate = f", {speed:,.0f} images/s ({of}, warm-up and validation not)" if speed else ""
        out.print(f"validation top-1 {done.val_top1_pct:.2f} %{rate}")
        if done.target is not None:
            out.print(done.target.in_words())
        for note in done.notes:
            out.print(f"note: {note}")
        if self.mirror is not None:
            command = self.mirror.sync_command
            if command is None and done.wandb != "online":  # the client has never started
                command = f"harness publish {shlex.quote(str(path))} --to wandb"
            out.print(f"W&B: {done.wandb}" + (f"; upload with: {command}" if command else ""))
        out.print(f"result: {path}/result.json; see it with: harness show {path}")

    def _left_s(self, row: Row) -> float | None:
        resolved = self.resolved
        left = resolved.total_steps - row.step
        if not row.step or not left or set(row.events or ()) & set(ENDS):
            return None
        per_step_s = row.train_s / row.step
        every = resolved.config.eval.every_epochs * resolved.steps_per_epoch
        train_s, minutes = left * per_step_s, resolved.config.schedule.max_minutes
        if minutes is not None and 60 * minutes - row.train_s < train_s:
            return max(0.0, 60 * minutes - row.train_s) + self.last_eval_s
        return train_s + -(-left // every) * self.last_eval_s

    def _note_the_unusual(self) -> None:
        source = self.resolved.config.data.source
        if source == "torchvision":
            self.notes.append("images read by the torchvision arm (Pillow), not by DALI")
        if source == "synthetic":
            self.notes.append("synthetic images: the accuracy means nothing")
        if (steps := self.resolved.config.profile.steps) is not None:
            self.notes.append(f"steps {steps} were profiled, which slows them")
        for note in self.notes:
            out.print(f"{'note':>12}: {note}")

    def _open_mirror(self, facts: dict[str, Any]) -> "WandbMirror | None":
        config, folder = self.resolved.config, self.folder
        if config.log.wandb == "off":
            return None
        from harness.logging import wandb_run
        from harness.logging.wandb import WandbMirror, without_effect

        def say(what: str) -> None:
            out.print(f"{'W&B':>12}: {what}")

        began = run_folder.config_of(folder.path).log.wandb
        mode, why = wandb_run.choose_mode(config.log.wandb, os.environ, began)
        if why:
            say(why)
        if mode == "off":
            return None
        if given := without_effect(os.environ):
            say(
                f"no effect: {', '.join(given)}; its files lie in the run folder, it prints nothing"
            )
        return WandbMirror(
            mode=mode,
            run_id=folder.run_id,
            project=config.log.project,
            entity=config.log.entity,
            folder=folder.path,
            rows=folder.rows,
            say=say,
            **{"name": folder.path.name}
            | wandb_run.about(
                config,
                facts,
                world_size=self.resolved.world.size,
                precision=self.resolved.precision,
                peak_lr=self.resolved.peak_lr if self.train_set else None,
            ),
        )
