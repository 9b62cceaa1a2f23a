"""End a job: print why it ended, and requeue it if it should continue.

The batch script of launch/submit.py, or of slurm/, runs this after all ranks have ended, so that a
signal that kills a rank cannot kill it. Its exit code becomes the job's.

    stopped by SIGUSR1, SIGUSR2 (near the time limit, or preempted)    saved, then requeued
    stopped by SIGTERM during a preemption                             saved, then requeued
    stopped by any other SIGTERM, by SIGINT or SIGHUP                  ended: a user sent it
    a rank crashed (killed, connection or node lost, any other error)  requeued, --max-restarts
    failed for a reason that the harness names (bad input, a loss      ended: another start would
    that is not finite)                                                fail the same way

Under the scripts in slurm/, torchrun restarts after crashes and makes no difference between
signals: a job that was stopped, or was to save and could not, is requeued. Where Slurm itself ended
or requeued the job (scancel, scontrol requeue, a lost node), this leaves it as it is.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

# Run as a file, a checkout needs no installation of itself.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness.config import load
from harness.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_GOOD
from harness.logging import rank_log
from harness.system.process import outlive_streams

OF_THE_CLUSTER = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals of Slurm, or of a user: save, and continue in a later start."""


@dataclass(frozen=True)
class Note:
    """How the rank that ended first has ended; it writes this as JSON."""

    rank: int  # -1 if no rank could write a note
    host: str
    code: int
    message: str
    signal: int | None = None  # that stopped it, after saving; None if it failed
    known: bool = False  # whether the harness names the reason: another start would fail alike
    at: float = field(default_factory=time.time)


class Job(NamedTuple):
    """A job, and which of its starts this is."""

    name: str  # as submitit writes it: 12, or 12_3
    start: int  # from 0
    fields: Mapping[str, str]  # of `scontrol show job`; empty if Slurm does not answer


class Limits(NamedTuple):
    """How often a job may be requeued: after a crash, and after a stop by the cluster."""

    restarts: int = 3
    requeues: int = 100


class Verdict(NamedTuple):
    """Whether the job is requeued, and the reason to print."""

    again: bool
    why: str
    code: int = EXIT_FAILED


def note_path(folder: Path, job: str, start: int) -> Path:
    """Return the file of the note about one start of a job."""
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
    """Decide whether the job is requeued, after srun's exit code and so many failed starts."""
    if code == EXIT_GOOD:
        return Verdict(False, "finished")
    if job.get("JobState") != "RUNNING":
        return Verdict(False, f"ended by Slurm ({job.get('JobState', 'gone')})")
    if note and note.known:
        return Verdict(False, "would end the same way again")
    stopped_by = note.signal if note else _killed_by(code)
    # Slurm itself does not requeue a preempted job that ends before its kill.
    preempted = job.get("PreemptTime", "None")[:1].isdigit()
    if job.get("Requeue") == "0":
        return Verdict(False, "not to be queued again (--no-requeue)")
    if stopped_by in OF_THE_CLUSTER or preempted:
        if int(job.get("Restarts", 0)) >= limits.requeues:
            most = f"requeued {limits.requeues} times already"
            return Verdict(False, f"{most} (--max-requeues, HARNESS_MAX_REQUEUES)")
        if note and not preempted and _at_once(job, note.at):
            why = "told to save as soon as it began; give a longer --time or a later --signal"
            return Verdict(False, why, EXIT_BAD_INPUT)
        return Verdict(True, "back into the queue, to continue")
    if note and note.signal is not None:
        return Verdict(False, "stopped by a user's signal")
    if failures < limits.restarts:
        return Verdict(True, f"restart {failures + 1} of {limits.restarts}")
    return Verdict(False, f"failed {failures + 1} times (--max-restarts)")


def _at_once(job: Mapping[str, str], signaled_at: float) -> bool:
    """Return whether Slurm itself gave the signal as soon as the job began.

    It looks every 30 s whether a time limit is near. In a long job somebody else may have signaled
    so early; but hardly in its fourth start too.
    """
    with suppress(KeyError, ValueError):  # a job without a time limit
        after_s = signaled_at - datetime.fromisoformat(job["StartTime"]).timestamp()
        left_s = datetime.fromisoformat(job["EndTime"]).timestamp() - signaled_at
        return after_s < 30 and (left_s < 180 or int(job["Restarts"]) >= 3)
    return False


def main() -> None:
    """Print why the job ended, requeue it or not, and exit with the job's exit code."""
    outlive_streams()  # the job is requeued even if its log is full
    parser = argparse.ArgumentParser(description="The end of a job; called by its script.")
    add = parser.add_argument
    add("folder", type=Path, help="folder of the submission, or the run folder with --signals")
    add("--code", type=int, help="submit.py: exit code of srun")
    add("--signals", type=int, help="slurm/: number of signals that the job got")
    add("--signaled-at", type=float, help="slurm/: Unix time of the first signal to save")
    add("--before", help="slurm/: `stat -c '%%i %%.9Y'` of the run folder's state at the start")
    add("--max-restarts", type=int, default=Limits().restarts)
    add("--max-requeues", type=int, default=Limits().requeues)
    options = parser.parse_args()
    job, limits = _this_job(), Limits(options.max_restarts, options.max_requeues)
    if options.signals is None:
        code, again = _end_submitted(options.folder, options.code, job, limits)
    else:
        signaled_at = options.signaled_at or time.time()
        code, again = _end_script(
            options.folder, options.before, options.signals, job, limits, signaled_at
        )
    sys.stdout.flush()  # as Slurm kills this process when it requeues the job
    requeued = job.fields.get("JobState") in ("PENDING", "REQUEUED")  # by Slurm or a user
    if again:
        requeued = subprocess.run(["scontrol", "requeue", job.name]).returncode == 0
    if requeued:
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        time.sleep(600)  # until Slurm kills this: an exit before would complete the job
    sys.exit(EXIT_GOOD if requeued else code)


def _end_submitted(folder: Path, code: int, job: Job, limits: Limits) -> tuple[int, bool]:
    """Print how a job of submit.py ended; return its exit code, and whether to requeue it."""
    paths = [note_path(folder, job.name, number) for number in range(job.start + 1)]
    *earlier, note = map(read_note, paths)
    failures = sum(past is not None and past.signal is None for past in earlier)
    killer = _killed_by(code)
    if note is None and code and killer not in OF_THE_CLUSTER:
        how = f"killed by {killer.name}" if killer else f"exit code {code}"
        out_of_memory = " (out of memory? see sacct)" if killer == signal.SIGKILL else ""
        # In place of the rank's own, whom srun's lines in the log name.
        note = Note(-1, "", code, f"a rank ended without a message: {how}{out_of_memory}")
        write_note(paths[-1], note)  # later starts count it as a failure
    verdict = decide(code, note, job.fields, failures, limits)
    if note and code:
        code = note.code  # srun's is the highest, often that of a rank that was killed afterwards
    if code:
        _print_end(folder, job.name, note, verdict)
    return code, verdict.again


def _end_script(
    run: Path, before: str, signals: int, job: Job, limits: Limits, signaled_at: float = 0
) -> tuple[int, bool]:
    """Print how a job of slurm/ ended, from its run folder's state; return the same."""
    stamp = state = "none"
    with suppress(OSError):
        stat, state = (run / "state").stat(), (run / "state").read_text().strip()
        stamp = f"{stat.st_ino} {stat.st_mtime_ns // 10**9}.{stat.st_mtime_ns % 10**9:09d}"
    if state == "finished":
        return EXIT_GOOD, False
    begun = stamp != before  # else an earlier start has written it
    if signals or (begun and state == "stopped"):
        note = Note(-1, "", EXIT_FAILED, "stopped", signal.SIGUSR1, at=signaled_at)
        verdict = decide(EXIT_FAILED, note, job.fields, 0, limits)
        advice = "" if verdict.again else "; the same command continues it"
        print(f"job {job.name}: stopped: {verdict.why}{advice}")
        return verdict.code, verdict.again
    why = "ended without a message; was it killed? see above" if state == "running" else state
    print(f"job {job.name}: {why if begun else 'not begun'}", file=sys.stderr)
    if begun:
        subprocess.run([sys.executable, "-m", "harness", "show", str(run)], stdout=sys.stderr)
    return EXIT_FAILED, False


def _this_job() -> Job:
    job = os.environ["SLURM_JOB_ID"]
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    command = ["scontrol", "show", "job", "--oneliner", job]
    words = subprocess.run(command, stdout=subprocess.PIPE).stdout.decode(errors="replace").split()
    fields = dict(word.split("=", 1) for word in words if "=" in word)
    return Job(job, int(os.environ.get("SLURM_RESTART_COUNT") or 0), fields)


def _killed_by(code: int) -> signal.Signals | None:
    with suppress(ValueError):
        return signal.Signals(code - 128)
    return None


def _print_end(folder: Path, job: str, note: Note | None, verdict: Verdict) -> None:
    """Print which rank ended first and how, with its last lines, at the end of the job's log."""
    config = folder / f"config_{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}.yaml"
    named = load.read_yaml(config)["run"]
    run = Path(named["root"], named["name"])
    if note and note.rank > 0 and note.signal is None:
        print(f"--- rank {note.rank} on {note.host} failed first; its last lines:")
        # A rank has its own log once there is a run folder; earlier output is in submitit's.
        logs = [rank_log.path_of(run, note.rank), folder / f"{job}_{note.rank}_log.out"]
        newest = max(filter(Path.exists, logs), key=lambda log: log.stat().st_mtime, default=None)
        lines = newest.read_text(errors="replace").splitlines() if newest else []
        print("\n".join(f"    {line}" for line in lines[-20:]))
    who = f"rank {note.rank} on {note.host}: " if note and note.rank >= 0 else ""
    print(f"job {job}: {who}{note.message + ': ' if note else ''}{verdict.why}")
    if not verdict.again:
        print(f"to see the run: harness show {run}")
        print(f"to continue in its run folder, submit it again: {config}")


if __name__ == "__main__":
    main()
