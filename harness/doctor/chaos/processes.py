"""The processes of a trial, told by a variable in their environment, wherever they went.

Ranks and their helpers live in sessions of their own and lose their parent when it is killed; the
environment that they were started with stays. Run as a file, this is the guard (below).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MARK = "HARNESS_DOCTOR"
END_S = 60.0
"""A process that is killed while it holds a GPU takes seconds to go."""


class Process(NamedTuple):
    """A living process that carries the mark."""

    pid: int
    parent: int
    rank: int | None  # its own, or that of the rank that started it


def marked(mark: str) -> list[Process]:
    """All living processes whose mark begins so; zombies have no environment left."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            # It may have gone meanwhile, or be another user's.
            with suppress(OSError):
                words = (folder / "environ").read_bytes().split(b"\0")
                if any(word.startswith(f"{MARK}={mark}".encode()) for word in words):
                    ranks = [int(word[5:]) for word in words if word.startswith(b"RANK=")]
                    stat = (folder / "stat").read_bytes().rpartition(b")")[2].split()
                    rank = ranks[0] if ranks else None
                    found.append(Process(int(folder.name), int(stat[1]), rank))
    return found


def kill(pids: Iterable[int], number: int = signal.SIGKILL) -> None:
    """Send a signal to processes, some of which may have gone already."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def end(mark: str) -> list[Process]:
    """Kill all whose mark begins so; returns those that would not go."""
    until = time.monotonic() + END_S
    while left := marked(mark):
        kill(process.pid for process in left)
        if time.monotonic() > until:
            break
        time.sleep(0.02)
    return left


class Guard:
    """A process that outlives this one for a moment: ends all that is marked if this one dies."""

    def __init__(self, mark: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, mark],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def close(self) -> None:
        """All is ended: let the guard go."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


if __name__ == "__main__":
    sys.stdin.read()  # ends when the process that is guarded ends, in whichever way
    end(sys.argv[1])
