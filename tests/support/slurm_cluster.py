"""A real Slurm of several nodes on this machine, for tests: see minislurm.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
MINISLURM = ROOT / "tests" / "support" / "minislurm.py"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY")
"""States that sacct gives a job that does nothing more; after all others it is PENDING again."""
HANG_S = 900.0


class Cluster:
    """A Slurm that is up: what a user at its login node does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # As on a login node: nothing of a job that these tests may themselves run in.
        outside = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        self.environ = outside | {"SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
        # Scripts say `python` and `torchrun`: those that run these tests.
        self.environ["PATH"] = f"{Path(sys.executable).parent}:{self.environ['PATH']}"

    def run(
        self, *command: str | Path, cwd: Path = ROOT, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A command as the user gives it, whatever comes of it."""
        whole = self.environ | dict(environ or {})
        words = [str(word) for word in command]
        return subprocess.run(words, cwd=cwd, env=whole, capture_output=True, text=True)

    def output(self, *command: str | Path) -> str:
        done = self.run(*command)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def submit(
        self, script: str | Path, *words: str | Path, options: tuple[str | Path, ...] = (),
        cwd: Path = ROOT, environ: Mapping[str, str] | None = None,
    ) -> str:  # fmt: skip
        """`sbatch OPTIONS SCRIPT WORDS`; the job's id."""
        command = ("sbatch", "--parsable", *options, script, *words)
        done = self.run(*command, cwd=cwd, environ=environ)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """As sacct tells it; empty until it knows the job."""
        states = self.output("sacct", "-X", "-n", "-P", "-j", job, "-o", "State").split()
        return states[0] if states else ""

    def wait(self, job: str, *states: str, hang_s: float = HANG_S) -> str:
        """Return once the job is in one of these states, by default in any that ends it."""
        deadline = time.monotonic() + hang_s
        while (state := self.state(job)) not in (states or ENDED):
            log = self.log(job) if time.monotonic() > deadline else ""
            assert time.monotonic() < deadline, f"job {job}: still {state or 'unknown'}\n{log}"
            time.sleep(1)  # the question takes a client, slurmdbd and a database
        return state

    def about(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says."""
        words = self.output("scontrol", "show", "job", "-o", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def log(self, job: str) -> str:
        """The job's own log, as far as it is written."""
        path = Path(self.about(job)["StdOut"])
        return path.read_text() if path.exists() else ""

    def kill_slurmd(self, node: str) -> None:
        """End a node's slurmd at once; it is not started again, and its jobs' processes live on."""
        pid = (self.folder / f"{node}.pid").read_text().strip()
        self.output("kill", "-9", pid)


@contextmanager
def cluster(nodes: int = 4) -> Iterator[Cluster]:
    """A Slurm of one's own with so many nodes of 8 GPUs and 16 or 12 cores, which nobody checks."""
    # Not tmp_path: Slurm's sockets stand only short paths.
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))
    options = ("--nodes", str(nodes), "--requeue-delay", "5", "--cpus-per-node", "16,12")
    up = subprocess.run([MINISLURM, "up", *options, folder], capture_output=True, text=True)
    assert up.returncode == 0, up.stderr
    try:
        yield Cluster(folder)
    finally:
        subprocess.run([MINISLURM, "down", folder], check=True)


def missing() -> str | None:
    """What this machine lacks for a Slurm of its own."""
    if os.geteuid() != 0:
        return "needs root"
    programs = ("sbatch", "slurmctld", "slurmd", "slurmdbd", "mariadbd", "munged", "unshare")
    if lacking := [name for name in programs if not shutil.which(name)]:
        return f"not installed: {', '.join(lacking)}"
    if subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True).returncode:
        return "no right to make namespaces"
    return None
