"""Start the command under trial, and watch its run folder meanwhile."""

import json
import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.doctor.chaos import processes
from harness.errors import EXIT_CANNOT_TELL, EXIT_FAILED, HarnessError
from harness.run_folder import folder as run_folder
from harness.system.console import duration

HANG_S = 300.0  # a start whose log and run folder have not changed for so long hangs
ENDING_S = 120.0  # for torchrun, which gives the remaining ranks 30 s to end by themselves


class CannotTell(HarnessError):
    """The trial could not be completed, so there is no verdict; `log` is the output to show."""

    exit_code = EXIT_CANNOT_TELL

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


class NotRefused(CannotTell):
    """A second start worked in the run folder of a running one: a failed verdict."""

    exit_code = EXIT_FAILED


class Start:
    """One start of the command: torchrun and all its processes, in a session of its own.

    `mark` distinguishes its processes from those of all other starts; `scratch` is for the
    temporary files that killed processes leave behind.
    """

    def __init__(
        self, command: Sequence[str], log: Path, mark: str, scratch: Path, watch: "Watch"
    ) -> None:
        self.log, self.watch, self._mark = log, watch, f"{mark}."  # of start 1, not of start 10
        self.first_row_s: float | None = None
        environ = os.environ | {processes.MARK: self._mark, "TMPDIR": str(scratch)}
        environ["PYTHONUNBUFFERED"] = "1"  # the log is complete up to the kill
        self.began = self._alive_at = time.monotonic()
        self._activity: tuple[int, ...] = ()
        with log.open("wb") as file:
            self.launcher = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                env=environ, start_new_session=True,
            )  # fmt: skip

    @property
    def ended(self) -> bool:
        """Whether the launcher has ended."""
        return self.launcher.poll() is not None

    def ranks(self) -> dict[int, int]:
        """Return the pid of each running rank."""
        return {rank: pid for pid, parent, rank in processes.marked(self._mark)
                if rank is not None and parent == self.launcher.pid}  # fmt: skip

    def kill_all(self) -> None:
        """Kill all its processes at once, as a power cut does; raise CannotTell if one stays."""
        left = processes.kill_marked(self._mark)
        with suppress(subprocess.TimeoutExpired):
            self.launcher.wait(processes.KILL_TIMEOUT_S)
        if left:
            raise CannotTell(f"pid {left[0].pid} does not end when it is killed", self.log)

    def wait_for_end(self, event: str) -> None:
        """Wait until the launcher ends after `event`; raise CannotTell after ENDING_S seconds."""
        try:
            self.launcher.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            why = f"torchrun still runs {duration(ENDING_S)} after {event}"
            raise CannotTell(why, self.log) from None

    def check_active(self) -> None:
        """Raise CannotTell if neither log nor run folder has changed for HANG_S; call it often."""
        now, activity = time.monotonic(), (self.log.stat().st_size, *self.watch.activity())
        if activity != self._activity:
            self._activity, self._alive_at = activity, now
        elif now - self._alive_at > HANG_S:
            raise CannotTell(f"{self.watch.path}: no sign of life for {duration(HANG_S)}", self.log)


class Watch:
    """Observe a run folder from outside: what the current start has written to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.begin()

    def begin(self) -> None:
        """Regard all that the folder holds as old; no process may be working in it."""
        self._old_rows = set(self._read("rows.jsonl").splitlines())
        self._old_attempts = len(run_folder.attempts(self.path))
        self._old_lease = self._read("lease.json")
        self._attempt: dict[str, Any] | None = None

    @property
    def finished(self) -> bool:
        """Whether the run has finished."""
        return run_folder.read_state(self.path) == "finished"

    @property
    def lease_taken(self) -> bool:
        """Whether the start holds the folder's lease."""
        return self._read("lease.json") != self._old_lease

    @property
    def attempt(self) -> dict[str, Any] | None:
        """The record that the start wrote of itself when it took the folder, or None."""
        if self._attempt is None:
            new = run_folder.attempts(self.path)[self._old_attempts :]
            self._attempt = new[-1] if new else None
        return self._attempt

    @property
    def from_step(self) -> int | None:
        """The step from which the start resumed; None before it has."""
        return None if self.attempt is None else int(self.attempt["from_step"])

    @property
    def new_step(self) -> int | None:
        """The step of the last row, if this start wrote it, or None."""
        # Old rows are cut off when the start opens the file, some time after it took the folder.
        rows = self._read("rows.jsonl", last=8192).split(b"\n")[:-1]
        if not rows or rows[-1] in self._old_rows:
            return None
        return int(json.loads(rows[-1])["step"])

    @property
    def last_step(self) -> int | None:
        """The last step that the start is known to have reached; None before it resumed."""
        if self.from_step is None:
            return None
        manifests = (self.path / "checkpoints").glob("step-*.json")
        saved = [int(manifest.stem.removeprefix("step-")) for manifest in manifests]
        return max(self.from_step, self.new_step or 0, *saved)

    def saving(self) -> list[str]:
        """Return the checkpoints that are being written, or were when the writer was killed."""
        return [path.name for path in (self.path / "checkpoints").glob("*.part")]

    def activity(self) -> tuple[int, ...]:
        """Return modification times that change while the run is active."""
        times = []
        for name in ("rows.jsonl", "attempts.jsonl", "checkpoints", "state"):
            with suppress(OSError):
                times.append((self.path / name).stat().st_mtime_ns)
        return tuple(times)

    def _read(self, name: str, last: int | None = None) -> bytes:
        """Return a file, or the lines within its last bytes; empty if it does not exist."""
        with suppress(FileNotFoundError), (self.path / name).open("rb") as file:
            start = 0 if last is None else max(file.seek(0, os.SEEK_END) - last, 0)
            file.seek(start)
            # What comes before the first newline may be the rest of a line.
            return file.read().partition(b"\n")[2] if start else file.read()
        return b""
