"""The end of a job that launch/submit.py queued: why it ended, and whether it queues again.

Run by the job's own script once all ranks have ended, so by nobody who may be killed with a rank.
Its exit code is the job's.

    stopped by SIGUSR1, SIGUSR2 (near the time limit, or preempted)    saved: back into the queue
    stopped by SIGTERM that came with a preemption                     saved: back into the queue
    stopped by SIGTERM or SIGINT else                                  somebody's wish: the end
    a rank broke (killed, a connection or node lost, any other error)  back, --max-restarts times
    failed for a reason that the harness names (bad input, a loss      the end: it would come again
    that is not finite)

Where Slurm ends the job itself (scancel, scontrol requeue, a lost node), Slurm has decided.
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
"""Signals that say: save, there is more to come."""
LAST_LINES = 20


@dataclass(frozen=True)
class Note:
    """What the rank that ended first leaves about it.

    Attributes:
        signal: what stopped it, after saving; None if it failed.
        known: whether the harness names the reason, so that another start would meet it again.
    """

    rank: int
    host: str
    code: int
    message: str
    signal: int | None = None
    known: bool = False


class Limits(NamedTuple):
    """How often a job may go back into the queue."""

    restarts: int
    requeues: int


class Verdict(NamedTuple):
    """Whether the job queues again, and what is said about it."""

    again: bool
    why: str


def place(folder: Path, job: str, start: int) -> Path:
    """Where the note about a start of a job lies; `job` is as submitit names it: 12, or 12_3."""
    return folder / f"{job}_start-{start}.json"


def leave(path: Path, note: Note) -> bool:
    """Leave the note unless another rank was first; whether it was not."""
    with suppress(OSError), path.open("x") as file:
        file.write(json.dumps(asdict(note), indent=2) + "\n")
        return True
    return not path.exists()  # a disk that takes nothing: everybody speaks


def read(path: Path) -> Note | None:
    """The note, if one is there and whole."""
    with suppress(OSError, ValueError, TypeError):
        return Note(**json.loads(path.read_text()))
    return None


def decide(
    code: int, note: Note | None, job: Mapping[str, str], failures: int, limits: Limits
) -> Verdict:
    """Whether the job goes back into the queue.

    Args:
        code: of srun.
        job: what `scontrol show job` says of it.
        failures: of earlier starts.
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
        return Verdict(again=False, why=f"queued {limits.requeues} times again (--max-requeues)")
    if by_cluster:
        return Verdict(again=True, why="back into the queue, to go on")
    if note and note.signal is not None:
        return Verdict(again=False, why="stopped by somebody's wish")
    if failures < limits.restarts:
        return Verdict(again=True, why=f"restart {failures + 1} of {limits.restarts}")
    return Verdict(again=False, why=f"failed {failures + 1} times (--max-restarts)")


def main() -> None:
    """Say why, queue again or not, and end with the job's exit code."""
    parser = argparse.ArgumentParser(description="The end of a job; called by its script.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--code", type=int, required=True)
    parser.add_argument("--max-restarts", type=int, required=True)
    parser.add_argument("--max-requeues", type=int, required=True)
    options = parser.parse_args()
    folder, code = options.folder, options.code
    job, start = _this_job()
    note = read(place(folder, job, start))
    before = [read(place(folder, job, earlier)) for earlier in range(start)]
    failures = sum(each is not None and each.signal is None for each in before)
    if note is None and code and _killed_by(code) not in OF_THE_CLUSTER:
        note = _of_killed(code)
        leave(place(folder, job, start), note)  # to be counted
    limits = Limits(options.max_restarts, options.max_requeues)
    verdict = decide(code, note, _asked_slurm(job), failures, limits)
    if note and code:
        code = note.code  # srun's is the highest, and so often of one that was ended with it
    if code:
        _tell(folder, job, note, verdict)
        sys.stdout.flush()  # scontrol ends this process
    if verdict.again:
        queued = subprocess.run(["scontrol", "requeue", job], check=False)
        code = code if queued.returncode else EXIT_GOOD
    sys.exit(code)


def _this_job() -> tuple[str, int]:
    """Its id as submitit writes it, and which of its starts this is."""
    job = os.environ["SLURM_JOB_ID"]
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return job, int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def _asked_slurm(job: str) -> dict[str, str]:
    command = ["scontrol", "show", "job", "--oneliner", job]
    told = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    return dict(word.split("=", 1) for word in told.stdout.split() if "=" in word)


def _preempted(job: Mapping[str, str]) -> bool:
    """Whether another job gets the nodes: Slurm does not requeue who ends by itself meanwhile."""
    return job.get("PreemptTime", "None")[:1].isdigit()


def _killed_by(code: int) -> signal.Signals | None:
    with suppress(ValueError):
        return signal.Signals(code - 128)
    return None


def _of_killed(code: int) -> Note:
    """In place of a rank that could leave none: srun's own lines above name it."""
    by = f"killed by {killer.name}" if (killer := _killed_by(code)) else f"exit code {code}"
    out_of_memory = " (out of memory? sacct says)" if killer == signal.SIGKILL else ""
    return Note(-1, "", code or EXIT_FAILED, f"a rank ended without a word: {by}{out_of_memory}")


def _tell(folder: Path, job: str, note: Note | None, verdict: Verdict) -> None:
    """Who ended first and how, with its last lines; they stand at the end of the job's log."""
    run = _run_folder(folder)
    if note and note.rank > 0 and note.signal is None:
        print(f"--- rank {note.rank} on {note.host} failed first; its last lines:")
        # Its own log begins with the run folder; what it said before stands in submitit's.
        logs = [rank_log.path_of(run, note.rank), folder / f"{job}_{note.rank}_log.out"]
        newest = max(filter(Path.exists, logs), key=lambda log: log.stat().st_mtime, default=None)
        lines = newest.read_text(errors="replace").splitlines() if newest else []
        print("\n".join(f"    {line}" for line in lines[-LAST_LINES:]))
    who = f"rank {note.rank} on {note.host}: " if note and note.rank >= 0 else ""
    print(f"job {job}: {who}{note.message + ': ' if note else ''}{verdict.why}")
    if not verdict.again:
        print(f"see it with: harness show {run}")
        print(f"to go on in its folder, submit it again: {_config(folder)}")


def _config(folder: Path) -> Path:
    """Of this job, or of this task of an array, as it was frozen."""
    return folder / f"config_{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}.yaml"


def _run_folder(folder: Path) -> Path:
    run = load.read_yaml(_config(folder))["run"]
    return Path(str(run["root"]), str(run["name"]))


if __name__ == "__main__":
    main()
