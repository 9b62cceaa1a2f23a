"""Attempt: one of the starts that a run takes to finish: the first makes the folder."""

import os
import socket
from contextlib import ExitStack
from dataclasses import dataclass

from harness import config as cfg
from harness.checkpoint.store import Found, newest
from harness.data.sets import Images
from harness.errors import BadInput
from harness.run_folder import folder as run_folder
from harness.run_folder.lease import Lease
from harness.system.console import out
from harness.trainer.resolve import Resolved


@dataclass
class Attempt:
    """What all ranks know of an attempt, and what rank 0 alone holds."""

    folder: run_folder.RunFolder
    goes_on: bool  # from a checkpoint
    lease: Lease | None = None
    found: Found | None = None
    spent_s: float = 0.0  # by earlier attempts

    @property
    def keep_bytes(self) -> int:
        """Length of the rows that were trained for good."""
        return self.found.state["rows_bytes"] if self.found else 0

    def release(self) -> None:
        """Let the next attempt in, whichever way this one ends."""
        if self.lease is not None:
            self.lease.release()


def begin(resolved: Resolved, train_set: Images | None, val_set: Images) -> Attempt | None:
    """Claim the run folder once every rank is ready; None if the run is finished already.

    Raises:
        BadInput: on all ranks, what speaks against it.
    """
    world = resolved.world
    mine = _claim(resolved, train_set, val_set) if world.is_main else None
    known = Attempt(mine.folder, mine.goes_on) if isinstance(mine, Attempt) else mine
    outcome: Attempt | BadInput | None = world.from_main(known)
    if isinstance(outcome, BadInput):
        raise outcome
    return mine if isinstance(mine, Attempt) else outcome


def _claim(
    resolved: Resolved, train_set: Images | None, val_set: Images
) -> Attempt | BadInput | None:
    """Rank 0's part; None, and a line, if this very run is finished."""
    config, path = resolved.config, resolved.folder
    train_digest = train_set.digest if train_set else None
    digests = {"train_digest": train_digest, "val_digest": val_set.digest}
    try:
        if not run_folder.is_finished(path, config, digests):
            if config.log.wandb != "off":
                from harness.config.wandb_says import refuse_other_run

                refuse_other_run(path, os.environ)
            folder, lease = run_folder.claim(path, config)
            with ExitStack() as undo:
                undo.callback(lease.release)
                # Whoever held it may have finished, or begun another run, while we waited.
                if not run_folder.is_finished(path, config, digests):
                    attempt = _taken(folder, lease, resolved, digests)
                    undo.pop_all()
                    return attempt
    except BadInput as error:
        return error
    out.print(
        f"{path}: this run is finished; see it with: harness show {path}\n"
        "to train it again: --run.restart, or another --run.name"
    )
    return None


def _taken(
    folder: run_folder.RunFolder, lease: Lease, resolved: Resolved, digests: dict[str, str | None]
) -> Attempt:
    config, split = resolved.config, resolved.split
    result_fingerprint = cfg.fingerprint(config, "result")
    found = newest(folder.checkpoints, out.print)
    # One that somebody has put here is refused: its state fits, its training is another.
    if found:
        of = found.state["of"]
        if (of["run_id"], of["result_fingerprint"]) != (folder.run_id, result_fingerprint):
            raise BadInput(
                f"{found.path}: was taken by another run ({of['run_id']}); remove it, or start "
                "from its weights: --model.weights, with another --run.name"
            )
    from_step = found.state["step"] if found else 0
    facts = {
        "host": socket.gethostname(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "world_size": split.world_size,
        "accumulate": split.accumulate,
        "local_batch": split.local_batch,
        "from_step": from_step,
        "changed": run_folder.changed_since(folder.path, config),
        "result_fingerprint": result_fingerprint,
        **digests,
    }
    spent_s = run_folder.begin_attempt(folder, lease, facts)
    if folder.attempt > 1:
        at = f"from {found.path}, step {from_step:,}" if found else "from the start: nothing saved"
        out.print(f"{'attempt':>12}: {folder.attempt}, goes on {at}")
    return Attempt(folder, found is not None, lease, found, spent_s)
