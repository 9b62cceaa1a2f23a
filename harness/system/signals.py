"""Signals: record that a user or cluster wants the run to stop; the loop acts between two steps."""

from __future__ import annotations

import os
import signal
import time
from threading import Thread
from types import FrameType

CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
DELIBERATE = (signal.SIGINT, signal.SIGTERM)
"""Signals of a person or a launcher. The others come from a cluster, which may repeat them."""
SAME_REQUEST_S = 2.0  # signals within this time of the first count as one request


class Signals:
    """Records the first signal; a second SIGINT or SIGTERM ends the process at once.

    The handlers do no work: a checkpoint saved in one could meet a half-done step or a held lock. A
    thread reads each signal from a pipe, since Python's handlers run only in the main thread, which
    may be waiting in a collective for a rank that hangs.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._first_at = 0.0

    def catch(self) -> None:
        """Record SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 from now on (main thread only)."""
        reads, writes = os.pipe()
        os.set_blocking(writes, False)
        signal.set_wakeup_fd(writes)
        for number in CAUGHT:
            signal.signal(number, _ignore)
        Thread(target=self._listen, args=(reads,), name="signals", daemon=True).start()

    def _listen(self, descriptor: int) -> None:
        while True:
            self._record(os.read(descriptor, 1)[0])

    def _record(self, number: int) -> None:
        now = time.monotonic()
        if number not in CAUGHT:
            return
        if self.received is None:
            self.received, self._first_at = signal.Signals(number), now
        # Slurm signals torchrun and its workers, and torchrun forwards: one request, sent twice.
        elif number in DELIBERATE and now - self._first_at > SAME_REQUEST_S:
            os._exit(128 + number)
        # With SIGTERM a cluster may send SIGUSR1 or SIGUSR2, which are more specific (and smaller).
        elif number < self.received:
            self.received = signal.Signals(number)


def leave_to_parent() -> None:
    """Let a worker process ignore stop requests; a SIGTERM from its parent ends it.

    Ctrl-C reaches all processes of a terminal, and Slurm's signals all of a job step.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: the C handler writes to the pipe only if a Python handler is set."""
