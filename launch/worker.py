"""Run one rank of a submitted job: train as launch/train.py does, and note how it ended."""

import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import NoReturn

from harness.config import load
from harness.errors import EXIT_FAILED, BadInput, HarnessError, Preempted, SecondaryFailure
from harness.system.process import caught, outlive_streams
from launch import ending, slurm, train


def work(config: Path, note: Path, *, on_gpu: bool, local: bool) -> None:
    """Train to the end; on an error write the note and exit this process.

    Args:
        note: the file for how the rank that ends first has ended (see ending.Note).
        on_gpu: whether a GPU was requested, so that a missing one is an error.
        local: whether no srun is there to end all ranks when one ends; the doctor is left out.
    """
    outlive_streams()
    for number in caught():  # until the harness handles them, and saves first
        signal.signal(number, partial(_end_early, note))
    if local:
        Thread(target=_end_with_others, args=(note,), daemon=True).start()
    os.environ.update(slurm.network())
    try:
        engine = load.load([str(config)]).engine
        if on_gpu and engine.device == "auto":
            from harness import distributed

            # Raises without a GPU: on the CPU this would train for days.
            distributed.from_environment("cuda", backend=engine.backend)
        if not local and os.environ.get("HARNESS_PREFLIGHT") != "off":
            # On all ranks together, as in slurm/common.sh, whose PYTHONPATH the job has. In its own
            # process, so that GPU and memory are unused when training begins.
            doctor = [sys.executable, "-m", "harness", "doctor", str(config)]
            # Not printed by itself: it would be red about a log that is full.
            done = subprocess.run(doctor, stdout=subprocess.PIPE, text=True)
            print(done.stdout, end="", flush=True)
            if done.returncode:  # rank 0 has printed why
                raise BadInput(
                    "the doctor is red, see above; HARNESS_PREFLIGHT=off goes without it"
                )
        train.work([str(config)])
    except (Exception, KeyboardInterrupt) as error:
        _end(note, error)


def _end(note: Path, error: BaseException) -> NoReturn:
    """Write the note, if this rank is the first to end, and exit the process at once."""
    code, message = train.explained(error)
    rank = int(os.environ["RANK"])
    stopped_by = error.number if isinstance(error, Preempted) else None
    known = isinstance(error, HarnessError) and stopped_by is None
    ended = ending.Note(rank, socket.gethostname(), code, message, stopped_by, known)
    first = not isinstance(error, SecondaryFailure) and ending.write_note(note, ended)
    if stopped_by is None:
        how = "error" if first else f"rank {rank}: ended after another rank had failed"
        print(f"{how}: {message}", file=sys.stderr)
    train.leave(code)


def _end_early(note: Path, number: int, _: FrameType | None) -> NoReturn:
    """Exit because of a signal that came before training began."""
    if number == signal.SIGTERM:
        os._exit(128 + number)  # no note: srun sends it, too, after a rank died without a note
    name = signal.Signals(number).name
    _end(note, Preempted(f"stopped by {name} before anything was done", number))


def _end_with_others(note: Path) -> None:
    """Exit this rank once another one has ended, whatever this one waits for."""
    while not note.exists():
        time.sleep(1.0)
    time.sleep(10.0)  # in which it may end by itself
    os._exit(EXIT_FAILED)
