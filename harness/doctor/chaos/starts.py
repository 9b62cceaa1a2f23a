"""Start: one start of the command under trial. Watch: what its run folder tells meanwhile."""

from __future__ import annotations

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

HANG_S = 300.0
ENDING_S = 120.0
"""torchrun gives the ranks that are left 30 s to end by themselves."""


class CannotTell(HarnessError):
    """The trial did not come to its end, so that nothing is known."""

    exit_code = EXIT_CANNOT_TELL

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


class NotRefused(CannotTell):
    """Two starts worked in one folder: what this one was for is known too well."""

    exit_code = EXIT_FAILED


class Start:
    """torchrun and all that comes of it, in a session of its own, its output in a file.

    Args:
        mark: tells its processes from those of all other starts.
        scratch: takes the temporary files that those who are killed leave behind.
    """

    def __init__(self, command: Sequence[str], log: Path, mark: str, scratch: Path) -> None:
        self.log, self._mark = log, mark
        self.first_row_s: float | None = None
        # The dot ends the mark: start 1 is not the beginning of start 10.
        environ = os.environ | {processes.MARK: f"{mark}.", "TMPDIR": str(scratch)}
        environ["PYTHONUNBUFFERED"] = "1"  # the log is whole up to the kill
        self.began = self._alive_at = time.monotonic()
        self._signs: tuple[int, ...] = ()
        with log.open("wb") as file:
            self.launcher = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                env=environ, start_new_session=True,
            )  # fmt: skip

    @property
    def over(self) -> bool:
        """Whether the launcher has ended."""
        return self.launcher.poll() is not None

    def ranks(self) -> dict[int, int]:
        """The pid of each rank that lives."""
        pid = self.launcher.pid
        found = processes.marked(f"{self._mark}.")
        return {each.rank: each.pid for each in found
                if each.rank is not None and each.parent == pid}  # fmt: skip

    def kill_all(self) -> None:
        """Kill every process of it, as a machine that loses its power does."""
        left = processes.end(f"{self._mark}.")
        with suppress(subprocess.TimeoutExpired):
            self.launcher.wait(processes.END_S)
        if left:
            raise CannotTell(f"pid {left[0].pid} does not end when it is killed", self.log)

    def wait_for_end(self, of_what: str, limit_s: float = ENDING_S) -> None:
        """Return once the launcher has ended.

        Raises:
            CannotTell: it does not.
        """
        try:
            self.launcher.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise CannotTell(
                f"torchrun still runs {duration(limit_s)} after {of_what}", self.log
            ) from None

    def expect_life(self, watch: Watch) -> None:
        """To be called again and again.

        Raises:
            CannotTell: neither the log nor the run folder has changed for minutes.
        """
        now, signs = time.monotonic(), (self.log.stat().st_size, *watch.signs())
        if signs != self._signs:
            self._signs, self._alive_at = signs, now
        elif now - self._alive_at > HANG_S:
            raise CannotTell(f"{watch.path}: no sign of life for {duration(HANG_S)}", self.log)


class Watch:
    """A run folder, watched from outside: what has come since the last start was made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.begin()

    def begin(self) -> None:
        """No process works in the folder now; what it holds is old."""
        self._old_rows = set(self._read("rows.jsonl").splitlines())
        self._old_attempts = len(run_folder.attempts(self.path))
        self._old_lease = self._read("lease.json")
        self._attempt: dict[str, Any] | None = None

    @property
    def finished(self) -> bool:
        """Whether all is trained and written."""
        return run_folder.read_state(self.path) == "finished"

    @property
    def taken(self) -> bool:
        """Whether the start holds the folder's lease."""
        return self._read("lease.json") != self._old_lease

    @property
    def attempt(self) -> dict[str, Any] | None:
        """What the start wrote down of itself when it had taken the folder."""
        if self._attempt is None:
            new = run_folder.attempts(self.path)[self._old_attempts :]
            self._attempt = new[-1] if new else None
        return self._attempt

    @property
    def from_step(self) -> int | None:
        """Where the start went on from, once it has."""
        return None if self.attempt is None else int(self.attempt["from_step"])

    @property
    def new_step(self) -> int | None:
        """Step of the last row if the start has written it."""
        # Old rows are cut off only when the start opens the file, some time after it took it.
        whole, _, _torn = self._read("rows.jsonl", last=8192).rpartition(b"\n")
        line = whole.rpartition(b"\n")[2]
        if not line or line in self._old_rows:
            return None
        return int(json.loads(line)["step"])

    @property
    def reached(self) -> int | None:
        """Steps that the start is known to have come to; none before it went on."""
        if self.from_step is None:
            return None
        manifests = (self.path / "checkpoints").glob("step-*.json")
        saved = [int(manifest.stem.removeprefix("step-")) for manifest in manifests]
        return max(self.from_step, self.new_step or 0, *saved)

    def saving(self) -> list[str]:
        """Checkpoints that are being written, or were when the writer was killed."""
        with suppress(FileNotFoundError), os.scandir(self.path / "checkpoints") as entries:
            return [entry.name for entry in entries if entry.name.endswith(".part")]
        return []

    def signs(self) -> tuple[int, ...]:
        """What changes while the run is alive."""
        found = []
        for name in ("rows.jsonl", "attempts.jsonl", "checkpoints", "state"):
            with suppress(OSError):
                found.append((self.path / name).stat().st_mtime_ns)
        return tuple(found)

    def _read(self, name: str, last: int | None = None) -> bytes:
        """A file, or its end; nothing if it is not there."""
        with suppress(FileNotFoundError), (self.path / name).open("rb") as file:
            if last is not None:
                file.seek(-min(last, file.seek(0, os.SEEK_END)), os.SEEK_END)
            return file.read()
        return b""
