"""One rank of a submitted job: launch/train.py's work, and a note of how it ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from typing import NoReturn

from harness.config import load
from harness.errors import EXIT_FAILED, BadInput, Followed, HarnessError, Stopped
from harness.system.signals import CAUGHT
from launch import ending, slurm, train

CHECKOUT = Path(__file__).resolve().parent.parent
LEAVE_S = 10.0
"""How long a rank has to end by itself after another one has."""


def work(config: Path, note: Path, *, rank: int, on_gpu: bool, watch: bool) -> None:
    """Train to the end; else this process ends here, with the reason in the note.

    Args:
        config: what was frozen when the job was submitted.
        on_gpu: whether a GPU was asked for, so that its lack is an error.
        watch: whether ranks end each other, where there is no srun that does: on this machine,
            which the doctor then is not asked about.
    """
    for number in CAUGHT:  # until the harness does, and has the work saved first
        signal.signal(number, lambda number, _: _end_early(note, rank, number))
    if watch:
        Thread(target=_end_with_others, args=(note,), daemon=True).start()
    os.environ.update(slurm.network())
    try:
        engine = load.load([str(config)]).engine
        if on_gpu and engine.device == "auto":
            from harness import distributed

            # Refuses; else it would train on the CPU for days.
            distributed.from_environment("cuda", backend=engine.backend)
        if not watch and os.environ.get("HARNESS_PREFLIGHT") != "off":
            _look_at_the_nodes(config)
        train.work([str(config)])
    except (Exception, KeyboardInterrupt) as error:
        _end(note, rank, error)


def _look_at_the_nodes(config: Path) -> None:
    """Have the doctor look before training, all ranks together, as the launch scripts do.

    In a process of its own, so that the training finds GPU and memory untouched.

    Raises:
        BadInput: it sees red, and rank 0 has said what.
    """
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "harness", "doctor", str(config)]
    if subprocess.run(command, env=environ).returncode:
        raise BadInput("the doctor is red, see above; HARNESS_PREFLIGHT=off goes without it")


def _end(note: Path, rank: int, error: BaseException) -> NoReturn:
    """Leave what ended this rank, if it is the first, and end the process at once.

    Not by raising: threads of a broken process group could hold the process for minutes.
    """
    code, message = train.explained(error)
    message = " ".join(message.split())
    stopped_by = error.number if isinstance(error, Stopped) else None
    known = isinstance(error, HarnessError) and stopped_by is None
    mine = ending.Note(rank, socket.gethostname(), code, message, stopped_by, known)
    first = not isinstance(error, Followed) and ending.leave(note, mine)
    if stopped_by is None:
        how = "error" if first else f"rank {rank}: ended after another rank had failed"
        print(f"{how}: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_early(note: Path, rank: int, number: int) -> NoReturn:
    """End by a signal while starting up."""
    if number == signal.SIGTERM:
        os._exit(128 + number)  # no note: it may be srun's, as another rank has died without one
    name = signal.Signals(number).name
    _end(note, rank, Stopped(f"stopped by {name} before anything was done", number))


def _end_with_others(note: Path) -> None:
    """End this rank, wherever it waits for one that has ended."""
    while not note.exists():
        time.sleep(1.0)
    time.sleep(LEAVE_S)
    os._exit(EXIT_FAILED)
