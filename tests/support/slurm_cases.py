"""What may happen to a job on a cluster, each once: shared by test_slurm.py and slurm_loops.py."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers import ROOT, TINY
from slurm_cluster import HANG_S, Cluster

from harness.doctor.chaos.compare import Difference, compare
from harness.run_folder import folder as run_folder

ONE, MULTI = (ROOT / "slurm" / f"resnet50_{name}.sh" for name in ("8gpu", "multinode"))
DOCTOR = ROOT / "slurm" / "doctor.sh"
CONFIG = ROOT / "configs" / "resnet50_90ep.yaml"
"""The scripts' own."""
FLAGS = [
    *TINY, "--model.zero-gamma", "false", "--train.global-batch", "12", "--eval.local-batch", "16",
    "--schedule.epochs", "24", "--eval.every-epochs", "100", "--checkpoint.every-steps", "5",
    "--log.every-steps", "3", "--engine.bucket-mb", "0.1", "--engine.device", "cpu",
]  # fmt: skip
"""A run of 192 steps, long enough to be disturbed; in the end, later flags win."""
RANKS = 3
"""Two ranks would hide it if sums were taken in another order: a + b is b + a."""


@dataclass(frozen=True)
class Place:
    """A folder to submit from, on a cluster; all runs lie in its runs/."""

    slurm: Cluster
    cwd: Path
    photos: Path

    def flags(self, name: str | None, *more: str) -> list[str]:
        """Of the run of this name; without one, of one that its config and seed name."""
        named = ["--run.name", name] if name else []
        data = ("--data.train", str(self.photos), "--data.val", str(self.photos))
        return [*FLAGS, *data, *named, *more]

    def submit(
        self, script: Path, name: str | None, *more: str, options: Iterable[str] = (),
        nproc: int = 1, **environ: str,
    ) -> str:  # fmt: skip
        """Queue a run; the job's id."""
        return self.slurm.submit(
            script, *self.flags(name, *more), cwd=self.cwd, options=tuple(options),
            environ={"NPROC_PER_NODE": str(nproc), **environ},
        )  # fmt: skip

    def folder(self, name: str) -> Path:
        return self.cwd / "runs" / name

    def wait_for_rows(self, name: str, job: str, attempt: int = 1) -> None:
        """Return once this attempt of the run trains."""
        rows, deadline = self.folder(name) / "rows.jsonl", time.monotonic() + HANG_S
        while not (rows.exists() and f'"attempt":{attempt},' in rows.read_text()):
            assert time.monotonic() < deadline, self.slurm.log(job)
            time.sleep(0.2)

    def differences(self, calm: Path, name: str) -> list[Difference]:
        """What a run differs in from one that was not disturbed."""
        return compare(calm, self.folder(name))


def preempt(place: Place, name: str, job: str) -> None:
    """A job of a partition with precedence takes all nodes."""
    above = ("--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null")
    place.slurm.output("sbatch", *above, "--wrap=sleep 2")


def requeue(place: Place, name: str, job: str) -> None:
    """An administrator puts the job back into the queue."""
    place.slurm.output("scontrol", "requeue", job)


def lose_node(place: Place, name: str, job: str) -> None:
    """The slurmd of a node is killed, and the node marked down, for a job that runs on it."""
    nodes = place.slurm.output("scontrol", "show", "hostnames", place.slurm.about(job)["NodeList"])
    lost = nodes.split()[1]  # the first one's shell decides on the end; this one has a rank only
    place.slurm.kill_slurmd(lost)
    place.slurm.output("scontrol", "update", f"nodename={lost}", "state=down", "reason=killed")


def kill_rank(place: Place, name: str, job: str) -> None:
    """A rank dies; torchrun starts all of them again, on all nodes, within the same job."""
    send_signal(ranks_of(name)[1:2], signal.SIGKILL)


def disturbed(place: Place, name: str, *disturbances: str) -> str:
    """Submit a run on several nodes, and disturb each of its attempts once it trains."""
    job = place.submit(MULTI, name, options=(f"--nodes={RANKS}",))
    for attempt, disturbance in enumerate(disturbances, start=1):
        place.wait_for_rows(name, job, attempt)
        DISTURBANCES[disturbance](place, name, job)
    return job


def cut(place: Place, name: str) -> str:
    """The time limit comes before the end of the first start."""
    options = ("--time=2", "--signal=B:USR1@60")  # Slurm looks at the time every half a minute
    job = place.submit(ONE, name, options=options, nproc=RANKS, HARNESS_SAVE_S="20")
    deadline = time.monotonic() + HANG_S
    while place.slurm.about(job)["Restarts"] == "0":
        assert time.monotonic() < deadline, place.slurm.log(job)
        if (place.folder(name) / "rows.jsonl").exists():  # else it has not begun
            # Slowed, as a fast machine is done before Slurm has looked.
            ranks = ranks_of(name)
            send_signal(ranks, signal.SIGSTOP)
            time.sleep(2)
            send_signal(ranks, signal.SIGCONT)
        time.sleep(0.2)
    place.slurm.output("scontrol", "update", f"jobid={job}", "timelimit=60")
    return job


DISTURBANCES = {
    "rank_killed": kill_rank, "requeued": requeue, "preempted": preempt, "node_lost": lose_node,
}  # fmt: skip
"""What a run on several nodes outlives; after the last, its cluster lacks a node."""
CASES: dict[str, Callable[[Place, str], str]] = {
    "cut": cut,
    **{case: lambda *run, case=case: disturbed(*run, case) for case in DISTURBANCES},
}
"""Each submits a run, disturbs it once, and returns the job's id."""


def ranks_of(name: str) -> list[int]:
    """Processes that train the run of this name."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if any(word.endswith("launch/train.py") for word in words[:4]) and name in words:
            found.append(int(folder.name))
    return found


def send_signal(processes: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to those that are still there."""
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def attempts(folder: Path) -> list[dict[str, Any]]:
    return run_folder.attempts(folder)
