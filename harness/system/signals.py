"""Signals: a cluster's wish that the run should end, noted here and obeyed between two steps."""

from __future__ import annotations

import os
import signal
import time
from threading import Thread
from types import FrameType

CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
DELIBERATE = (signal.SIGINT, signal.SIGTERM)
"""A person's or a launcher's: the others are a cluster's, which may repeat them until all ends."""
SAME_WISH_S = 2.0


class Signals:
    """Notes the first signal; a second SIGINT or SIGTERM ends the process at once.

    No handler does any work: saving inside of it could meet a half-done step or a held lock. A
    thread hears of each signal through a pipe, since Python's own handlers wait for the main
    thread, which may be waiting in a collective for a rank that hangs.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._first_at = 0.0

    def catch(self) -> None:
        """Note SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 from here on (main thread only)."""
        hears, tells = os.pipe()
        os.set_blocking(tells, False)
        signal.set_wakeup_fd(tells)
        for each in CAUGHT:
            signal.signal(each, _nothing)
        Thread(target=self._listen, args=(hears,), name="signals", daemon=True).start()

    def _listen(self, hears: int) -> None:
        while True:
            self._note(os.read(hears, 1)[0])

    def _note(self, number: int) -> None:
        now = time.monotonic()
        if number not in CAUGHT:
            return
        if self.received is None:
            self.received, self._first_at = signal.Signals(number), now
        # Slurm signals torchrun and its workers, and torchrun forwards: one wish, heard twice.
        elif number in DELIBERATE and now - self._first_at > SAME_WISH_S:
            os._exit(128 + number)
        # With TERM a cluster may send one that says more: USR1, USR2 are smaller.
        elif number < self.received:
            self.received = signal.Signals(number)


def leave_to_parent() -> None:
    """In a worker: a wish to stop is the parent's business, and a SIGTERM from it ends this one.

    Ctrl-C reaches all processes of a terminal, and Slurm's signals all of a job step.
    """
    for each in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(each, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _nothing(number: int, frame: FrameType | None) -> None:
    """A handler in Python is what makes the C handler write into the pipe."""
