"""End a job of launch/submit.py: print why it ended, and requeue it if it should continue.

The job's batch script runs this after all ranks have ended, so that a signal that kills a rank
cannot kill it. Its exit code becomes the job's.

    stopped by SIGUSR1, SIGUSR2 (near the time limit, or preempted)    saved, then requeued
    stopped by SIGTERM during a preemption                             saved, then requeued
    stopped by any other SIGTERM or SIGINT                             ended: a user sent it
    a rank crashed (killed, connection or node lost, any other error)  requeued, --max-restarts
    failed for a reason that the harness names (bad input, a loss      ended: another start would
    that is not finite)                                                fail the same way

Where Slurm itself ended or requeued the job (scancel, scontrol requeue, a lost node), this leaves
it as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

# Run as a file, a checkout needs no installation of itself.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness.config import load
from harness.errors import EXIT_FAILED, EXIT_GOOD
from harness.logging import rank_log

OF_THE_CLUSTER = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals of Slurm, or of a user: save, and continue in a later start."""
LAST_LINES = 20


@dataclass(frozen=True)
class Note:
    """How the rank that ended first has ended; it writes this as JSON.

    Attributes:
        rank: -1 if no rank could write a note.
        signal: the signal that stopped it, after saving; None if it failed.
        known: whether the harness names the reason, so that another start would fail the same way.
    """

    rank: int
    host: str
    code: int
    message: str
    signal: int | None = None
    known: bool = False


class Limits(NamedTuple):
    """How often a job may be requeued: after a crash, and after a stop by the cluster."""

    restarts: int
    requeues: int


class Verdict(NamedTuple):
    """Whether the job is requeued, and the reason to print."""

    again: bool
    why: str


def note_path(folder: Path, job: str, start: int) -> Path:
    """Return the file of the note about one start; `job` is as submitit names it: 12, or 12_3."""
    return folder / f"{job}_start-{start}.json"


def write_note(path: Path, note: Note) -> bool:
    """Write the note unless another rank has; return whether this rank was first."""
    with suppress(OSError), path.open("x") as file:
        file.write(json.dumps(asdict(note), indent=2) + "\n")
        return True
    return not path.exists()  # nothing can be written: each rank prints its own error


def read_note(path: Path) -> Note | None:
    """Return the note; None if it is missing or incomplete."""
    with suppress(OSError, ValueError, TypeError):
        return Note(**json.loads(path.read_text()))
    return None


def decide(
    code: int, note: Note | None, job: Mapping[str, str], failures: int, limits: Limits
) -> Verdict:
    """Decide whether the job is requeued.

    Args:
        code: exit code of srun.
        job: the fields of `scontrol show job`.
        failures: how many earlier starts failed.
    """
    stopped_by = note.signal if note else _killed_by(code)
    by_cluster = stopped_by in OF_THE_CLUSTER or _preempted(job)
    if code == EXIT_GOOD:
        return Verdict(again=False, why="finished")
    if job.get("JobState") != "RUNNING":
        return Verdict(again=False, why=f"ended by Slurm ({job.get('JobState', 'gone')})")
    if note and note.known:
        return Verdict(again=False, why="would end the same way again")
    if by_cluster and int(job.get("Restarts", 0)) >= limits.requeues:
        return Verdict(
            again=False, why=f"requeued {limits.requeues} times already (--max-requeues)"
        )
    if by_cluster:
        return Verdict(again=True, why="back into the queue, to continue")
    if note and note.signal is not None:
        return Verdict(again=False, why="stopped by a user's signal")
    if failures < limits.restarts:
        return Verdict(again=True, why=f"restart {failures + 1} of {limits.restarts}")
    return Verdict(again=False, why=f"failed {failures + 1} times (--max-restarts)")


def main() -> None:
    """Print why the job ended, requeue it or not, and exit with the job's exit code."""
    parser = argparse.ArgumentParser(description="The end of a job; called by its script.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--code", type=int, required=True)
    parser.add_argument("--max-restarts", type=int, required=True)
    parser.add_argument("--max-requeues", type=int, required=True)
    options = parser.parse_args()
    folder, code = options.folder, options.code
    job, start = _this_job()
    note = read_note(note_path(folder, job, start))
    earlier = [read_note(note_path(folder, job, number)) for number in range(start)]
    failures = sum(past is not None and past.signal is None for past in earlier)
    if note is None and code and _killed_by(code) not in OF_THE_CLUSTER:
        note = _of_killed(code)
        write_note(note_path(folder, job, start), note)  # later starts count it as a failure
    limits = Limits(options.max_restarts, options.max_requeues)
    verdict = decide(code, note, _slurm_fields(job), failures, limits)
    if note and code:
        code = note.code  # srun's is the highest, often that of a rank that was killed afterwards
    if code:
        _print_end(folder, job, note, verdict)
        sys.stdout.flush()  # as scontrol requeue kills this process
    if verdict.again:
        requeued = subprocess.run(["scontrol", "requeue", job], check=False)
        code = code if requeued.returncode else EXIT_GOOD
    sys.exit(code)


def _this_job() -> tuple[str, int]:
    """Return the job's id as submitit writes it, and which of its starts this is, from 0."""
    job = os.environ["SLURM_JOB_ID"]
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return job, int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def _slurm_fields(job: str) -> dict[str, str]:
    command = ["scontrol", "show", "job", "--oneliner", job]
    shown = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    return dict(field.split("=", 1) for field in shown.stdout.split() if "=" in field)


def _preempted(job: Mapping[str, str]) -> bool:
    """Return whether the job is preempted: Slurm does not requeue one that ends before its kill."""
    return job.get("PreemptTime", "None")[:1].isdigit()


def _killed_by(code: int) -> signal.Signals | None:
    with suppress(ValueError):
        return signal.Signals(code - 128)
    return None


def _of_killed(code: int) -> Note:
    """Return a note in place of the rank that was killed; srun's lines in the log name it."""
    by = f"killed by {killer.name}" if (killer := _killed_by(code)) else f"exit code {code}"
    out_of_memory = " (out of memory? see sacct)" if killer == signal.SIGKILL else ""
    return Note(-1, "", code or EXIT_FAILED, f"a rank ended without a message: {by}{out_of_memory}")


def _print_end(folder: Path, job: str, note: Note | None, verdict: Verdict) -> None:
    """Print which rank ended first and how, with its last lines, at the end of the job's log."""
    run = _run_folder(folder)
    if note and note.rank > 0 and note.signal is None:
        print(f"--- rank {note.rank} on {note.host} failed first; its last lines:")
        # A rank has its own log once there is a run folder; earlier output is in submitit's.
        logs = [rank_log.path_of(run, note.rank), folder / f"{job}_{note.rank}_log.out"]
        newest = max(filter(Path.exists, logs), key=lambda log: log.stat().st_mtime, default=None)
        lines = newest.read_text(errors="replace").splitlines() if newest else []
        print("\n".join(f"    {line}" for line in lines[-LAST_LINES:]))
    who = f"rank {note.rank} on {note.host}: " if note and note.rank >= 0 else ""
    print(f"job {job}: {who}{note.message + ': ' if note else ''}{verdict.why}")
    if not verdict.again:
        print(f"to see the run: harness show {run}")
        print(f"to continue in its run folder, submit it again: {_config(folder)}")


def _config(folder: Path) -> Path:
    """Return the config file written at submission for this job, or this task of an array."""
    return folder / f"config_{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}.yaml"


def _run_folder(folder: Path) -> Path:
    run = load.read_yaml(_config(folder))["run"]
    return Path(str(run["root"]), str(run["name"]))


if __name__ == "__main__":
    main()
