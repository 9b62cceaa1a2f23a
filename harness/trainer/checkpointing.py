"""Take checkpoints of a training together with its record, and continue from them."""

from pathlib import Path

import torch

from harness.checkpoint.saver import Saver, Staging, capture, restore
from harness.checkpoint.store import State
from harness.errors import RunFailed
from harness.schedule import Event
from harness.system.console import out
from harness.trainer.attempt import Attempt
from harness.trainer.loop import Training
from harness.trainer.reporter import RunLogger


class CheckpointManager:
    """All ranks take part in each checkpoint; rank 0 writes it."""

    def __init__(self, attempt: Attempt, report: RunLogger) -> None:
        self._attempt, self._report = attempt, report
        self._saver = Saver(
            attempt.folder.checkpoints,
            report.resolved.config.checkpoint,
            before=self._make_durable,
            after=lambda state: report.durable(state["rows"]),
            say=out.print,
        )
        self._saver.last = attempt.found.path if attempt.found else None

    def due(self) -> bool:
        """Whether it is time for a checkpoint; rank 0 knows."""
        return self._report.writes and self._saver.due()

    @property
    def last(self) -> Path | None:
        """The newest good checkpoint; rank 0 knows."""
        return self._saver.last

    def restore(self, t: Training) -> None:
        """Restore training, clock and record from the checkpoint, if there is one."""
        attempt, state = self._attempt, None
        t.attempt = attempt.folder.attempt
        if attempt.found is not None:
            state = attempt.found.state
            self._report.load_state_dict(state)
            self._report.durable(state["rows"])
            attempt.found = None  # frees its memory
        if attempt.goes_on:
            load_state_dict(t, state, attempt.spent_s)
        else:
            t.clock.load_state_dict(None, attempt.spent_s)

    def save(self, t: Training, must: bool) -> None:
        """Copy the state, and write the copy in the background.

        Where an earlier one is still being written, wait if this one `must` be; else skip it.
        """
        with t.clock.account("checkpoint"):
            sums = open_sums(t)
            if not self._report.writes or (self._saver.busy and not must):
                return
            self._saver.wait()  # raises what went wrong with the earlier one
            state = state_dict(t, sums, self._saver.staging) | self._report.state_dict()
            epochs_done = round(t.epoch) if t.ends_epoch else None
            self._saver.save(state, {"step": t.step, "epochs_done": epochs_done} | state["of"])

    def wait(self) -> None:
        """Wait until the last checkpoint is written, or has failed."""
        self._saver.wait()

    def last_good(self, t: Training) -> str:
        """Name the newest usable checkpoint when a loss is not finite; a collective.

        A checkpoint of this step is set aside: it was written before the validation that failed.
        """
        path = self._saver.last_before(t.step) if self._report.writes else None
        message = f"the last good checkpoint is {path}" if path else "no good checkpoint is left"
        return str(t.resolved.world.from_main(message))

    def _make_durable(self) -> None:
        """Make sure that earlier rows are on the disk and the folder is still ours."""
        lease, rows = self._attempt.lease, self._report.rows
        assert lease is not None
        assert rows is not None
        if not lease.is_mine():
            raise RunFailed(f"{self._attempt.folder.path}: another job has taken over this folder")
        rows.sync()


def open_sums(t: Training) -> dict[str, torch.Tensor]:
    """Every rank's open sums, on the device: since the last log point, and of this epoch's images.

    A collective. The host reads nothing.
    """
    correct, losses = t.counts.open_period()
    seen = torch.from_numpy(t.digest.words()).to(correct.device, non_blocking=True)
    sums = t.resolved.world.gather_tensor(torch.cat([seen, correct, losses.view(torch.int64)]))
    return {
        "seen": sums[:, :3],
        "correct": sums[:, 3:5],
        "losses": sums[:, 5:].contiguous().view(torch.float64),
    }


def state_dict(t: Training, sums: dict[str, torch.Tensor], staging: Staging) -> State:
    """Everything that a training needs to continue from this step, copied to host memory."""
    return {
        **capture(t.model.net, t.optimizer, t.scaler, staging),
        **staging.copy(sums, "sums"),
        "step": t.step,
        "images_seen": t.images_seen,
        "events": [tuple(event) for event in t.events],
        "clock": t.clock.state_dict(),
    }


def load_state_dict(t: Training, state: State | None, spent_s: float) -> None:
    """Restore on all ranks what `state_dict` gave: rank 0 alone has it. `spent_s`: see Clock."""
    world, big = t.resolved.world, ("model", "optimizer")
    small = world.from_main({key: state[key] for key in state if key not in big} if state else None)
    restore(state, t.model.net, t.optimizer, world)
    t.scaler.load_state_dict(small["scaler"])
    t.step = small["step"]
    t.events = [Event(*each) for each in small["events"]]
    per_rank = t.resolved.split.global_batch // world.size
    t.counts.load_state_dict(small["correct"], small["losses"], world, per_rank)
    if world.is_main:
        t.digest.load_state_dict(small["seen"].sum(0).numpy())
    t.clock.load_state_dict(small["clock"], spent_s)
