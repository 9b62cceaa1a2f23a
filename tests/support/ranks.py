"""Processes that start at once: forked from one that has imported torch, DALI and the harness.

Importing them takes 3 s of a core; most tests are about what comes after. Those about the start
itself (the launcher, variables that are read on import) start a new Python.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    ["harness.trainer.run", "harness.data.dali", "harness.data.torch_loader", "torch._dynamo"]
)


def in_ranks(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What `function(*args)` returns in each of `size` processes, in the order of ranks."""
    queue = FORKED.SimpleQueue()
    ranks = [
        FORKED.Process(target=_rank, args=(environ, queue, function, args))
        for environ in _environments(size, os.environ)
    ]
    for process in ranks:
        process.start()
    returned: dict[int, Any] = {}
    while len(returned) < size:
        if not queue.empty():
            returned.update([queue.get()])
        elif failed := [rank for rank in ranks if rank.exitcode]:
            for rank in ranks:
                rank.kill()
            raise ChildProcessError(f"{failed[0].name} ended with {failed[0].exitcode}")
        else:
            time.sleep(0.005)
    for process in ranks:
        process.join()
    return [returned[rank] for rank in range(size)]


def python(
    *argv: str | Path,
    ranks: int = 1,
    cwd: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    timeout_s: float = 240,
) -> subprocess.CompletedProcess[str]:
    """Run `python SCRIPT ...` or `python -m MODULE ...`, once or in so many ranks, to its end."""
    words = [str(word) for word in argv]
    with TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        jobs = [
            FORKED.Process(target=_main, args=(words, own, cwd or Path.cwd(), out, err))
            for own in (_environments(ranks, environ) if ranks > 1 else [dict(environ)])
        ]
        for job in jobs:
            job.start()
        code = _wait(jobs, timeout_s)
        return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())


class Job:
    """A running `python SCRIPT ...` or `python -m MODULE ...`, with what subprocess.Popen has."""

    def __init__(self, argv: list[str], cwd: Path, folder: Path) -> None:
        self.streams = folder / "out", folder / "err"
        for stream in self.streams:
            stream.touch()
        args = (argv, dict(os.environ), cwd, *self.streams)
        self._process = FORKED.Process(target=_main, args=args)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What it has written to stdout and stderr by its end."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        out, err = (stream.read_text() for stream in self.streams)
        return out, err

    def kill(self) -> None:
        self._process.kill()


@contextmanager
def started(*argv: str | Path, cwd: Path) -> Iterator[Job]:
    """Start a job, and kill it at the end if it still runs."""
    with TemporaryDirectory() as folder:
        job = Job([str(arg) for arg in argv], cwd, Path(folder))
        try:
            yield job
        finally:
            job.kill()


def _environments(size: int, environ: Mapping[str, str]) -> list[dict[str, str]]:
    """The variables of each rank: these, and its names as torchrun sets them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    return [
        dict(environ)
        | {name: str(value) for name, value in shared.items()}
        | {"MASTER_ADDR": "127.0.0.1", "RANK": str(rank), "LOCAL_RANK": str(rank)}
        for rank in range(size)
    ]


def _wait(jobs: list[ForkServerProcess], timeout_s: float) -> int:
    """The first exit code that is not 0; as under torchrun, a failure ends the other ranks."""
    until = time.monotonic() + timeout_s
    while any(job.exitcode is None for job in jobs) and time.monotonic() < until:
        if failed := next((job for job in jobs if job.exitcode), None):
            for job in jobs:
                job.join(5)
                job.kill()
            return failed.exitcode or 0
        time.sleep(0.01)
    for job in jobs:
        if job.exitcode is None:
            job.kill()
            raise subprocess.TimeoutExpired(job.name, timeout_s)
    return next((job.exitcode for job in jobs if job.exitcode), 0)


def _rank(
    environ: dict[str, str], queue: Any, function: Callable[..., Any], args: tuple[Any, ...]
) -> NoReturn:
    _become(environ)
    queue.put((int(environ["RANK"]), function(*args)))
    # Not the interpreter's own end, in which torch's threads now and then abort the process (seen
    # twice in fifty: "terminate called without an active exception"); all has been said by now.
    os._exit(0)


def _main(argv: list[str], environ: dict[str, str], cwd: Path, out: Path, err: Path) -> None:
    _become(environ)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run with &
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and by nohup
    os.chdir(cwd)
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        stream.flush()
        stream.reconfigure(line_buffering=True)  # tests read it while the job runs
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream.fileno())
    if argv[0] == "-m":
        sys.argv = argv[1:]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        sys.path.insert(0, str(Path(argv[0]).parent))
        runpy.run_path(argv[0], run_name="__main__")


def _become(environ: dict[str, str]) -> None:
    """Take the variables of the process that asked, as a child of its own would."""
    os.environ.clear()
    os.environ.update(environ)
