"""Write stack traces to the run folder when a rank hangs or is terminated.

The standard library's faulthandler writes them from C, so that it works even while a rank hangs in
a collective, in a read from a dead disk, or anywhere else where Python code cannot run.
"""

import faulthandler
import math
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TextIO

REARM_S = 1.0
LATE = 0.8
"""Stacks are written at this share of the collectives' time limit, which may end the process."""
LOOK_S, GRACE_S = 0.5, 3.0
"""The grace lets a rank that waits for another fail first, when its collective times out."""


class Watchdog:
    """Writes every thread's stack to this rank's file when the rank hangs or is terminated.

    Args:
        path: of the file, whose folder is made; without one, the watchdog does nothing.
        hangs: called in another thread, with the seconds since the last progress, if this rank
            hangs outside of collectives, as in a read from a dead disk: nothing else would end it.
    """

    def __init__(
        self, path: Path | None = None, hangs: Callable[[float], object] = lambda silent_s: None
    ) -> None:
        self._file: TextIO | None = None
        self._limit_s, self._armed_at = math.inf, 0.0
        if path is None:
            return
        Thread(target=self._watch, args=(hangs,), name="stacks", daemon=True).start()
        # If this node cannot write the run folder, the stacks are left out.
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            self._file = path.open("w", encoding="utf-8")
            # torchrun sends SIGTERM to the remaining ranks when one has failed. The former handler
            # runs after this one; a handler that is set later would replace this one.
            faulthandler.register(signal.SIGTERM, file=self._file, chain=True)

    def arm(self, within_s: float) -> None:
        """Start the watch: `ping` must be called within this many seconds from now on."""
        self._limit_s = within_s
        self._arm()

    def ping(self) -> None:
        """Report progress of this rank; cheap enough for each step."""
        if time.monotonic() - self._armed_at > REARM_S:
            self._arm()

    @property
    def waited_s(self) -> float | None:
        """Seconds since the last progress, if that is too long; else None."""
        waited_s = time.monotonic() - self._armed_at
        return waited_s if waited_s > LATE * self._limit_s else None

    def failed(self, error: BaseException) -> None:
        """Write the stack of the error with which this rank ends."""
        if self._file is not None:
            with suppress(OSError):
                traceback.print_exception(error, file=self._file)
                self._file.flush()

    def close(self) -> None:
        """End the watch of a run without failure, and remove the file."""
        self.disarm()
        if self._file is not None:
            faulthandler.unregister(signal.SIGTERM)
            self._file.close()
            path = Path(self._file.name)
            with suppress(OSError):
                path.unlink()
                path.parent.rmdir()  # succeeds for the last rank

    def disarm(self) -> None:
        """Stop the watch: what follows has time limits of its own."""
        self._limit_s = math.inf
        faulthandler.cancel_dump_traceback_later()

    def _watch(self, hangs: Callable[[float], object]) -> None:
        silent_s, last = 0.0, 0.0
        # Count the polls, not the seconds: a process that is stopped (SIGSTOP) does not hang.
        while silent_s <= self._limit_s + GRACE_S:
            time.sleep(LOOK_S)
            silent_s, last = (silent_s + LOOK_S if last == self._armed_at else 0.0), self._armed_at
        hangs(silent_s)

    def _arm(self) -> None:
        self._armed_at = time.monotonic()
        if self._file is not None:
            faulthandler.dump_traceback_later(LATE * self._limit_s, file=self._file)
