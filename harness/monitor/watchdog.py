"""Stacks: where a rank stood when the run was ended, left in the run folder.

The standard library's faulthandler writes them from C: also while a rank hangs in a collective, in
a read from a dead disk, or anywhere else where Python itself gets no turn.
"""

from __future__ import annotations

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
"""Share of the collectives' time limit; once they give up, the process may end at once."""
LOOK_S, GRACE_S = 0.5, 3.0
"""A rank that waits for another speaks first: when its collective gives up."""


class Stacks:
    """This rank's file: every thread's stack, once it hangs or is ended from outside.

    Args:
        hangs: called in another thread, with the seconds, if this rank does not even come to a
            collective that gives up: in a read from a dead disk nobody else would end it.
    """

    def __init__(
        self, folder: Path, attempt: int, rank: int, hangs: Callable[[float], object]
    ) -> None:
        self._path = folder / f"attempt-{attempt}-rank-{rank}.txt"
        self._file: TextIO | None = None
        self._limit_s, self._armed_at = math.inf, 0.0
        Thread(target=self._watch, args=(hangs,), name="stacks", daemon=True).start()
        # Where this node does not see the run folder, the record does without.
        with suppress(OSError):
            self._path.parent.mkdir(exist_ok=True)
            self._file = self._path.open("w", encoding="utf-8")
            # How torchrun ends the ranks that are left when one has failed. The handler that was
            # there before comes second; one that is set later would take this one's place.
            faulthandler.register(signal.SIGTERM, file=self._file, chain=True)

    def expect_life(self, within_s: float) -> None:
        """From here on, `alive` must be called within this time, or the stacks are written."""
        self._limit_s = within_s
        self._arm()

    def alive(self) -> None:
        """This rank gets on; cheap enough for each step."""
        if time.monotonic() - self._armed_at > REARM_S:
            self._arm()

    @property
    def waited_s(self) -> float | None:
        """For how long this rank has not got on, if that is too long."""
        waited_s = time.monotonic() - self._armed_at
        return waited_s if waited_s > LATE * self._limit_s else None

    def failed(self, error: BaseException) -> None:
        """This rank ends with an error: its stack is that of the error."""
        if self._file is not None:
            with suppress(OSError):
                traceback.print_exception(error, file=self._file)
                self._file.flush()

    def close(self) -> None:
        """The run ends as it should: nothing is left behind."""
        self.disarm()
        if self._file is not None:
            faulthandler.unregister(signal.SIGTERM)
            self._file.close()
            with suppress(OSError):
                self._path.unlink()
                self._path.parent.rmdir()  # by the last rank

    def disarm(self) -> None:
        """Hanging is over: what comes now has its own limits."""
        self._limit_s = math.inf
        faulthandler.cancel_dump_traceback_later()

    def _watch(self, hangs: Callable[[float], object]) -> None:
        silent_s, seen = 0.0, 0.0
        # Looks are counted, not seconds: while the process is stopped, it does not hang.
        while silent_s <= self._limit_s + GRACE_S:
            time.sleep(LOOK_S)
            silent_s, seen = (silent_s + LOOK_S if seen == self._armed_at else 0.0), self._armed_at
        hangs(silent_s)

    def _arm(self) -> None:
        self._armed_at = time.monotonic()
        if self._file is not None:
            faulthandler.dump_traceback_later(LATE * self._limit_s, file=self._file)
