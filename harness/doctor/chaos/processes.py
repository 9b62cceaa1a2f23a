"""Find and kill the processes of a trial by a variable in their environment.

Ranks and their helpers run in sessions of their own and lose their parent when it is killed, but
they keep the environment that they were started with. Run as a script, this file is the guard.
"""

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
KILL_TIMEOUT_S = 60.0  # a killed process that holds a GPU takes seconds to disappear


class Process(NamedTuple):
    """A running process that has the mark in its environment."""

    pid: int
    parent: int
    rank: int | None  # of this process, or of the rank that started it


def marked(mark: str) -> list[Process]:
    """Return all running processes whose mark begins with `mark`; zombies have no environment."""
    matches = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process may have ended meanwhile, or be another user's
            environ = (folder / "environ").read_bytes().split(b"\0")
            if any(entry.startswith(f"{MARK}={mark}".encode()) for entry in environ):
                ranks = (int(entry[5:]) for entry in environ if entry.startswith(b"RANK="))
                parent = (folder / "stat").read_bytes().rpartition(b")")[2].split()[1]
                matches.append(Process(int(folder.name), int(parent), next(ranks, None)))
    return matches


def kill(pids: Iterable[int], number: int = signal.SIGKILL) -> None:
    """Send a signal to processes, some of which may have ended already."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_marked(mark: str) -> list[Process]:
    """Kill all processes whose mark begins with `mark`; return those that did not end in time."""
    until = time.monotonic() + KILL_TIMEOUT_S
    while (left := marked(mark)) and time.monotonic() < until:
        kill(process.pid for process in left)
        time.sleep(0.02)
    return left


class Guard:
    """A process that kills all marked processes if this one dies without doing so."""

    def __init__(self, mark: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, mark],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def close(self) -> None:
        """End the guard; it kills the marked processes that are left."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


if __name__ == "__main__":
    sys.stdin.read()  # returns when the guarded process ends, in whichever way
    kill_marked(sys.argv[1])
