"""Arms that a user names: other settings, another Python environment, another commit."""

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

from harness.bench.sweep.process import ROOT, Arm, worker_in
from harness.config import load
from harness.errors import BadInput


class Arms:
    """What is said after --arm, as arms beside the base; has commits checked out.

    Args:
        folder: where to check them out.
    """

    def __init__(self, base: Arm, folder: Path) -> None:
        self._base, self._folder = base, folder

    def read(self, text: str) -> Arm:
        """`section.key=value`, `python=PATH`, `commit=REV`, or several, with blanks between.

        Raises:
            BadInput: something else, a setting that training refuses, no such file or commit.
        """
        flags: dict[str, str] = {}
        arm = replace(self._base, name=text)
        for word in shlex.split(text):
            key, equals, value = word.partition("=")
            if not equals or not value:
                raise BadInput(f"--arm {text}: write section.key=value, python=PATH or commit=REV")
            if key == "python":
                arm = replace(arm, python=_python(value))
            elif key == "commit":
                arm = replace(arm, code=self._check_out(value))
            else:
                flags[key.removeprefix("--").replace("-", "_")] = value
        arm = replace(arm, flags=flags)
        if arm.code == ROOT:  # another commit may have other settings
            load.load(arm.all_words, prog=f"--arm {text}")
        return arm

    def _check_out(self, rev: str) -> Path:
        commit = _git("rev-parse", "--verify", f"{rev}^{{commit}}", rev=rev).decode().strip()
        where = self._folder / commit
        if not where.exists():
            # Not a worktree: of that the user's repository would keep a note if this is killed.
            with tarfile.open(fileobj=io.BytesIO(_git("archive", commit, rev=rev))) as tar:
                tar.extractall(where, filter="data")
        try:
            worker_in(where)
        except FileNotFoundError:
            raise BadInput(f"--arm commit={rev}: is older than harness bench sweep") from None
        return where


@contextmanager
def named_arms(base: Arm) -> Iterator[Arms]:
    """Arms, whose checkouts last as long as the block."""
    with TemporaryDirectory(prefix="harness-arms-") as folder:
        yield Arms(base, Path(folder))


def _python(text: str) -> Path:
    # Not resolved: a virtual environment's python is a link, and is known by where the link lies.
    path = Path(text).expanduser().absolute()
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise BadInput(f"--arm python={text}: no such program; name an environment's bin/python")
    return path


def _git(*words: str, rev: str) -> bytes:
    try:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, check=True
        ).stdout
    except OSError as error:
        raise BadInput(f"--arm commit={rev}: git: {error.strerror}") from None
    except subprocess.CalledProcessError as error:
        told = error.stderr.decode().strip().splitlines() or ["git failed"]
        raise BadInput(f"--arm commit={rev}: {told[-1]} (in {ROOT})") from None
