"""This process: its start, its CPU cores, its standard streams, the signals that it was sent.

Imports no torch.
"""

import os
import select
import signal
import sys
import time
from contextlib import suppress
from errno import EIO, EPIPE
from io import FileIO, TextIOWrapper
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import TYPE_CHECKING, ClassVar

from harness.errors import RunFailed

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

CAUGHT = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask to save and stop. The first of several names the stop: it says the most."""
DELIBERATE = (signal.SIGINT, signal.SIGTERM)
"""Signals of a person or a launcher. Others are repeated: by a cluster, or a terminal that dies."""
SAME_REQUEST_S = 2.0  # signals within this time of the first count as one request


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


def rank_cores(ranks: int = 1) -> int:
    """Return the CPU cores of this process when `ranks` share the node; at least one."""
    return max(1, int(core_share(ranks)))


def core_share(ranks: int) -> float:
    """Return the same, not rounded: less than one if there are more ranks than cores.

    It is the number of cores that this process is bound to (by `srun`, or `--numa-binding`), but at
    most an even share of what all ranks may use together: the cores of their torchrun, and what
    Slurm and the control group grant.
    """
    own = _affinity(0)
    granted = os.environ.get("SLURM_CPUS_ON_NODE", "")
    limits = [cpu_quota(), float(granted) if granted.isdigit() else None]
    # Without torchrun, the parent may be Slurm's daemon, which may be bound to other cores.
    if not granted.isdigit() or "TORCHELASTIC_RUN_ID" in os.environ:
        limits.append(max(own, _affinity(os.getppid())))
    return min([own, *(limit / ranks for limit in limits if limit is not None)])


def _affinity(process: int) -> int:
    with suppress(OSError):  # it has ended
        return len(os.sched_getaffinity(process))  # 0: this process
    return 0


def cpu_quota(
    member_of: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> float | None:
    """Return the cores that the control group (v2 or v1) grants in total; None for no limit."""
    try:
        lines = member_of.read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        tops = [root, root / "unified"] if not controllers else [root / "cpu", root / controllers]
        names = ["cpu.cfs_quota_us", "cpu.cfs_period_us"] if controllers else ["cpu.max"]
        for top in tops:
            folder = top / group.lstrip("/")
            for path in (folder, *folder.parents):
                with suppress(OSError, ValueError):  # no such file; v2 writes `max` for no limit
                    text = " ".join((path / name).read_text() for name in names)
                    quota, period = map(int, text.split())
                    quotas += [quota / period] if quota > 0 else []  # v1: -1 is no limit
    return min(quotas, default=None)


class _Stream(FileIO):
    """Stdout or stderr: what cannot be written, to a full disk or a broken pipe, is left out."""

    lost: ClassVar[dict[int, OSError]] = {}
    """Descriptor -> why something was left out."""

    def write(self, content: "ReadableBuffer", /) -> int:
        """Write all, or what is possible; never raise an error."""
        rest = memoryview(content).cast("B")
        size = rest.nbytes
        try:
            while rest:
                if (written := super().write(rest)) is None:  # full, if a process has made it
                    select.select([], [self], [], 1.0)  # non-blocking: wait for its reader
                rest = rest[written or 0 :]
        except OSError as error:
            self.lost[self.fileno()] = error
        return size


def outlive_streams() -> None:
    """Let this process go on, its console quiet, if stdout or stderr is closed, full or broken.

    This serves all that Python code prints, libraries' bars and logs too. Call it first.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:  # closed: an open file would be next
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        given = getattr(sys, name)
        if given is getattr(sys, f"__{name}__"):  # else it is a test's, or a notebook's
            text = TextIOWrapper(
                _Stream(descriptor, "w", closefd=False),
                encoding=getattr(given, "encoding", None),
                errors=getattr(given, "errors", "replace"),
                line_buffering=getattr(given, "line_buffering", True),
                write_through=getattr(given, "write_through", False),
            )
            setattr(sys, name, text)


def require_output() -> None:
    """Raise RunFailed if part of stdout was lost, but not if nobody reads it any more."""
    sys.stdout.flush()
    if (lost := _Stream.lost.get(1)) and lost.errno not in (EPIPE, EIO):
        raise RunFailed(f"stdout: {lost.strerror}: part of what was printed is missing")


def caught() -> list[signal.Signals]:
    """Return the signals to catch: SIGHUP not where it is ignored, as nohup wants it."""
    nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in CAUGHT if not nohup or number != signal.SIGHUP]


class Signals:
    """Records the first signal; a second SIGINT or SIGTERM ends the process at once.

    The handlers do no work: a checkpoint saved in one could meet a half-done step or a held lock. A
    thread reads each signal from a pipe, since Python's handlers run only in the main thread, which
    may be waiting in a collective for a rank that hangs.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def catch(self) -> None:
        """Record the signals in CAUGHT from now on (main thread only)."""
        reads, writes = os.pipe()
        os.set_blocking(writes, False)
        signal.set_wakeup_fd(writes)
        for number in caught():
            signal.signal(number, _ignore)
        Thread(target=self._listen, args=(reads,), name="signals", daemon=True).start()

    def _listen(self, descriptor: int) -> None:
        first_at = 0.0
        while True:
            number, now = os.read(descriptor, 1)[0], time.monotonic()
            if number not in CAUGHT:
                continue
            sent = signal.Signals(number)
            if self.received in (None, signal.SIGHUP):  # a terminal that dies wishes nothing yet
                self.received, first_at = sent, now
            # Slurm signals torchrun and its workers, and torchrun forwards: one request, twice.
            elif sent in DELIBERATE and now - first_at > SAME_REQUEST_S:
                os._exit(128 + number)
            else:
                self.received = min(self.received, sent, key=CAUGHT.index)


def leave_to_parent() -> None:
    """Let a worker process ignore stop requests; a SIGTERM from its parent ends it.

    Ctrl-C reaches all processes of a terminal, Slurm's signals all of a job step, and torchrun's a
    rank's process group, which this process leaves.
    """
    os.setpgid(0, 0)
    for number in CAUGHT:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: the C handler writes to the pipe only if a Python handler is set."""
