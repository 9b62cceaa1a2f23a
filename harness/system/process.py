"""When a process was started, from /proc. Imports no torch."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path


def started_ticks(pid: int) -> int:
    """Return a process's start in clock ticks since boot; -1 if it has ended or is unknown."""
    with suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        state, *fields = stat.rpartition(b")")[2].split()  # the name before may hold any character
        return -1 if state in (b"Z", b"X") else int(fields[18])
    return -1


def process_age_s() -> float:
    """Return the seconds since this process was started, imports included."""
    if (ticks := started_ticks(os.getpid())) < 0:
        return 0.0
    started_s = ticks / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)
