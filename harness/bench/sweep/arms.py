"""Parse the arms of --arm: other settings, another Python environment, another commit."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.bench.sweep.process import ROOT, Variant, worker_in
from harness.config import load
from harness.errors import BadInput


class Arms:
    """Parse the texts of --arm, and check out the commits that they name.

    Args:
        base: the arm that the others are compared with.
        folder: where to check out commits.
    """

    def __init__(self, base: Variant, folder: Path) -> None:
        self._base, self._folder = base, folder

    def read(self, text: str) -> Variant:
        """Parse one or several of `section.key=value`, `python=PATH`, `commit=REV`.

        Raises:
            BadInput: another form, an invalid setting, or no such file or commit.
        """
        flags: dict[str, str] = {}
        arm = replace(self._base, name=text)
        for part in shlex.split(text):
            key, equals, value = part.partition("=")
            if not equals or not value:
                raise BadInput(f"--arm {text}: write section.key=value, python=PATH or commit=REV")
            if key == "python":
                arm = replace(arm, python=_python(value))
            elif key == "commit":
                arm = replace(arm, code=self._check_out(value))
            else:
                flags[key.removeprefix("--").replace("-", "_")] = value
        arm = replace(arm, flags=flags)
        if arm.code == ROOT:  # not for another commit, which may have other settings
            load.load(arm.all_words, prog=f"--arm {text}")
        return arm

    def _check_out(self, rev: str) -> Path:
        commit = _git("rev-parse", "--verify", f"{rev}^{{commit}}", rev=rev).decode().strip()
        checkout = self._folder / commit
        if not checkout.exists():
            # Not `git worktree`: if this is killed, it would stay registered in the repository.
            with tarfile.open(fileobj=io.BytesIO(_git("archive", commit, rev=rev))) as tar:
                tar.extractall(checkout, filter="data")
        try:
            worker_in(checkout)
        except FileNotFoundError:
            raise BadInput(f"--arm commit={rev}: is older than harness bench sweep") from None
        return checkout


@contextmanager
def named_arms(base: Variant) -> Iterator[Arms]:
    """Return a parser of arms, whose checkouts exist until the block ends."""
    with TemporaryDirectory(prefix="harness-arms-") as folder:
        yield Arms(base, Path(folder))


def _python(text: str) -> Path:
    # Not resolved, since the path of the link identifies a virtual environment.
    path = Path(text).expanduser().absolute()
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise BadInput(f"--arm python={text}: no such program; name an environment's bin/python")
    return path


def _git(*args: str, rev: str) -> bytes:
    try:
        return subprocess.run(
            ["git", "-C", str(ROOT), *args], capture_output=True, check=True
        ).stdout
    except OSError as error:
        raise BadInput(f"--arm commit={rev}: git: {error.strerror}") from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode().strip().splitlines() or ["git failed"]
        raise BadInput(f"--arm commit={rev}: {lines[-1]} (in {ROOT})") from None
