"""What befalls jobs of launch/submit.py on a real Slurm, each a function, for tests and loops."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from helpers import ROOT
from slurm_cases import CONFIG, RANKS, Place
from slurm_cluster import HANG_S, Cluster

SUBMIT = ROOT / "launch" / "submit.py"


@dataclass(frozen=True)
class Job:
    """A submitted run, as launch/submit.py printed it."""

    slurm: Cluster
    name: str  # 12, or 12_3
    ranks: int
    run: Path
    log: Path

    @property
    def attempts(self) -> list[dict[str, object]]:
        """What the run folder says of each start that came as far."""
        path = self.run / "attempts.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def printed(self) -> str:
        """All that the job's log says, over all its starts."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait_for_row(self, attempt: int) -> None:
        """Return once that attempt has trained some steps."""
        self.wait(f"attempt {attempt} trains", lambda: attempt in self._attempts_of_rows())

    def wait(self, what: str, happened: Callable[[], bool]) -> None:
        """Return once it has happened."""
        deadline = time.monotonic() + HANG_S
        while not happened():
            assert time.monotonic() < deadline, f"job {self.name}: {what}? {self.printed()[-3000:]}"
            time.sleep(0.2)

    def _attempts_of_rows(self) -> set[int]:
        rows = self.run / "rows.jsonl"
        lines = rows.read_text().splitlines(keepends=True) if rows.exists() else []
        # Rows of validations do not say.
        whole = (json.loads(line) for line in lines if line.endswith("\n"))
        return {row["attempt"] for row in whole if "attempt" in row}


def submit(slurm: Cluster, cwd: Path, *words: str | Path) -> list[Job]:
    """Run launch/submit.py as a user does; a job for each run."""
    done = slurm.run(sys.executable, SUBMIT, *words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    runs = re.findall(r"^ *run: (.*)$", done.stdout, re.MULTILINE)
    logs = re.findall(r"^ *log: (.*)$", done.stdout, re.MULTILINE)
    names = [Path(log).name.removesuffix("_0_log.out") for log in logs]
    size = re.search(r"(\d+) nodes? x (\d+)", done.stdout)
    assert size
    ranks = int(size[1]) * int(size[2])
    return [
        Job(slurm, name, ranks, cwd / run, Path(log))
        for name, run, log in zip(names, runs, logs, strict=True)
    ]


def preempt(job: Job) -> None:
    """A job with precedence takes the nodes."""
    nodes = job.slurm.about(job.name)["NodeList"]
    options = ("--partition=high", f"--nodelist={nodes}", "--exclusive", "--wrap=sleep 1")
    job.slurm.output("sbatch", "--output=/dev/null", *options)


def requeue(job: Job) -> None:
    """Somebody puts it back into the queue."""
    job.slurm.output("scontrol", "requeue", job.name)


def break_rank(job: Job) -> None:
    """A rank is killed, as for want of memory."""
    os.kill(_last_rank(job), signal.SIGKILL)


def lose_node(job: Job) -> None:
    """A node is taken for dead, and comes back later."""
    nodes = job.slurm.output("scontrol", "show", "hostnames", job.slurm.about(job.name)["NodeList"])
    last = f"nodename={nodes.split()[-1]}"
    job.slurm.output("scontrol", "update", last, "state=down", "reason=test")
    # Refused if its slurmd has reported meanwhile, and so brought it back.
    job.slurm.run("scontrol", "update", last, "state=resume")


def reach_limit(job: Job) -> None:
    """The time limit comes near; the run is slowed until then, as fast machines would finish."""
    job.wait("stopped near its limit", lambda: _stopped_or_slowed(job))


def _stopped_or_slowed(job: Job) -> bool:
    if "stopped by SIGUSR2" in job.printed():
        return True
    with suppress(ProcessLookupError):  # not there yet, or gone
        rank = _last_rank(job)
        os.kill(rank, signal.SIGSTOP)
        time.sleep(2)  # not for good: Slurm's signal may have come before
        os.kill(rank, signal.SIGCONT)
    return False


def _last_rank(job: Job) -> int:
    """Its process."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            environ = (process / "environ").read_bytes().split(b"\0")
        except OSError:  # gone
            continue
        is_last = f"SLURM_PROCID={job.ranks - 1}".encode() in environ
        # Loader workers have the same names; they are their rank's children, and come later.
        if (
            is_last
            and b"submitit.core._submit" in command
            and str(job.log.parent).encode() in command
        ):
            return int(process.name)
    raise ProcessLookupError(f"job {job.name}: no process of rank {job.ranks - 1}")


FATES = {"preempt": preempt, "requeue": requeue, "break_rank": break_rank, "lose_node": lose_node}
"""What a job outlives, whatever its time limit."""
LIMIT = ("--time", "2m", "--signal-delay-s", "60")
"""Slurm looks every half a minute, and may be as early."""


def case(befalls: Callable[[Job], None], *limit: str) -> Callable[[Place, str], str]:
    """A run that is submitted and disturbed, as slurm_cases.py has them; returns the job's id."""

    def once(place: Place, name: str) -> str:
        size = ("--nodes", str(RANKS), "--gpus-per-node", "0", "--cpus-per-task", "4")
        (job,) = submit(place.slurm, place.cwd, CONFIG, *place.flags(name), *size, *limit)
        job.wait_for_row(1)
        befalls(job)
        return job.name

    return once


SUBMITTED = {f"submit_{name}": case(fate) for name, fate in FATES.items()}
SUBMITTED["submit_reach_limit"] = case(reach_limit, *LIMIT)
