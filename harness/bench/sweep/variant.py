"""A variant of a run: other settings, another Python environment, another commit; from --arm."""

import io
import itertools
import os
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.config import load
from harness.errors import BadInput

ROOT = Path(__file__).resolve().parents[3]
WORKERS = ("harness/bench/sweep/worker.py", "harness/bench/arm.py")
"""What each rank of a variant runs; the second is its path in commits up to November 2026."""


@dataclass(frozen=True)
class Variant:
    """What is measured: a run's command line, on some ranks, by some Python and some code.

    Attributes:
        launch: command that starts ranks on several nodes; it takes their number, then Python's
            arguments, see slurm/ranks.sh. None: torchrun, on this node.
    """

    name: str
    args: tuple[str, ...]  # [CONFIG.yaml] [--section.key value ...], as launch/train.py takes them
    flags: Mapping[str, str] = field(default_factory=dict)  # section.key -> text, override `args`
    ranks: int = 1
    python: Path = Path(sys.executable)
    code: Path = ROOT  # the folder that holds the package `harness`
    launch: tuple[str, ...] | None = None
    host: str = "127.0.0.1"  # the name by which ranks on other nodes reach this process

    @property
    def all_args(self) -> list[str]:
        """All arguments of launch/train.py: `args`, then `flags`."""
        flags = ((f"--{key.replace('_', '-')}", text) for key, text in self.flags.items())
        return [*self.args, *itertools.chain(*flags)]

    def command(self, argument: str) -> list[str]:
        """Return the command that starts its ranks, with this argument for each."""
        worker = ["-m", worker_in(self.code).removesuffix(".py").replace("/", "."), argument]
        if self.launch is not None:
            return [*self.launch, str(self.ranks), *worker]
        # With an address, as the host's own name need not resolve.
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
        torchrun.append(f"--nproc-per-node={self.ranks}")
        return [str(self.python), *(torchrun if self.ranks > 1 else []), *worker]


def worker_in(code: Path) -> str:
    """Return a checkout's file that a rank runs; raise FileNotFoundError in one without sweeps."""
    for path in WORKERS:
        if (code / path).exists():
            return path
    raise FileNotFoundError(code / WORKERS[0])


def read_variant(text: str, base: Variant, folder: Path) -> Variant:
    """Apply one or several of `section.key=value`, `python=PATH`, `commit=REV` to the base.

    Commits are checked out into the folder.

    Raises:
        BadInput: another form, an invalid setting, or no such file or commit.
    """
    flags: dict[str, str] = {}
    variant = replace(base, name=text)
    for part in shlex.split(text):
        key, _, value = part.partition("=")
        if not value:
            raise BadInput(f"--arm {text}: write section.key=value, python=PATH or commit=REV")
        if key == "python":
            # Not resolved, since the path of the link identifies a virtual environment.
            variant = replace(variant, python=Path(value).expanduser().absolute())
            if not (variant.python.is_file() and os.access(variant.python, os.X_OK)):
                raise BadInput(
                    f"--arm python={value}: no such program; name an environment's bin/python"
                )
        elif key == "commit":
            variant = replace(variant, code=_check_out(value, folder))
        else:
            flags[key.removeprefix("--").replace("-", "_")] = value
    variant = replace(variant, flags=flags)
    if variant.code == ROOT:  # not for another commit, which may have other settings
        load.load(variant.all_args, prog=f"--arm {text}")
    return variant


def _check_out(rev: str, folder: Path) -> Path:
    commit = _git("rev-parse", "--verify", f"{rev}^{{commit}}", rev=rev).decode().strip()
    checkout = folder / commit
    if not checkout.exists():
        # Not `git worktree`: if this is killed, it would stay registered in the repository.
        with tarfile.open(fileobj=io.BytesIO(_git("archive", commit, rev=rev))) as tar:
            tar.extractall(checkout, filter="data")
    try:
        worker_in(checkout)
    except FileNotFoundError:
        raise BadInput(f"--arm commit={rev}: is older than harness bench sweep") from None
    return checkout


def _git(*args: str, rev: str) -> bytes:
    try:
        return subprocess.run(["git", "-C", ROOT, *args], capture_output=True, check=True).stdout
    except OSError as error:
        raise BadInput(f"--arm commit={rev}: git: {error.strerror}") from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode().strip().splitlines() or ["git failed"]
        raise BadInput(f"--arm commit={rev}: {lines[-1]} (in {ROOT})") from None
