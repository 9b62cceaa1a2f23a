"""This process, as the system sees it; imports no torch, as readers of records need none."""

from __future__ import annotations

import os
import time
from pathlib import Path


def process_age_s() -> float:
    """Seconds since this process was started: importing is start-up too."""
    try:
        fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22: ticks after boot
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
