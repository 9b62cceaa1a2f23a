"""Keeper: takes checkpoints of a training together with its record, and takes them up again."""

from __future__ import annotations

from pathlib import Path

from harness import resume
from harness.attempt import Attempt
from harness.checkpoint import Saver
from harness.console import out
from harness.errors import RunFailed
from harness.report import Report
from harness.train import Training


class Keeper:
    """All ranks take part in each checkpoint; rank 0 writes it."""

    def __init__(self, attempt: Attempt, report: Report) -> None:
        self._attempt, self._report = attempt, report
        self._saver: Saver | None = None
        self.training: Training | None = None
        if attempt.lease is not None:
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
        return self._saver is not None and self._saver.due()

    @property
    def last(self) -> Path | None:
        """The newest good checkpoint; rank 0 knows."""
        return self._saver.last if self._saver else None

    def go_on(self, t: Training) -> None:
        """Bring training, clock and record to where the checkpoint was taken, if there is one."""
        self.training = t
        t.attempt = self._attempt.folder.attempt
        attempt, state = self._attempt, None
        if attempt.found is not None:
            state = attempt.found.state
            self._report.go_on(state)
            self._report.durable(state["rows"])
            attempt.found = None  # its memory
        if attempt.goes_on:
            resume.go_on(t, state, attempt.spent_s)
        else:
            t.clock.go_on(None, attempt.spent_s)

    def save(self, t: Training, *, must: bool) -> None:
        """Copy the state aside and have it written in the background.

        Args:
            must: wait for the one before if that is still being written; else this one is left out.
        """
        with t.clock.account("checkpoint"):
            sums = resume.open_sums(t)
            if self._saver is None:
                return
            if self._saver.busy and not must:
                return
            self._saver.wait()  # also for the sake of what went wrong with the one before
            state = resume.state(t, sums, self._saver.staging) | self._report.state()
            whole = t.ends_epoch
            about = {"step": t.step, "epochs_done": round(t.epoch) if whole else None}
            self._saver.save(state, about | state["of"])

    def settle(self) -> None:
        """Return once the last checkpoint is written, or could not be."""
        if self._saver is not None:
            self._saver.wait()

    def last_good(self, t: Training) -> str:
        """What is left when a loss is not finite, in words; a collective.

        A checkpoint of this very step lacks what only its validation found: it is put aside.
        """
        said = ""
        if self._saver is not None:
            path = self._saver.last_before(t.step)
            said = f"the last good checkpoint is {path}" if path else "no good checkpoint is left"
        return str(t.resolved.world.from_main(said))

    def _make_durable(self) -> None:
        """Before a checkpoint is published: the rows before it are on the disk, the folder ours."""
        lease, rows = self._attempt.lease, self._report.rows
        assert lease is not None
        assert rows is not None
        if not lease.is_mine():
            raise RunFailed(f"{self._attempt.folder.path}: another job has taken over this folder")
        rows.sync()
