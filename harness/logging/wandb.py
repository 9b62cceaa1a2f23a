"""The W&B mirror: copies final rows to Weights & Biases, and never stops, slows or delays training.

What W&B has cannot be taken back, so a row is sent once a published checkpoint covers it. A thread
owns the client and reads rows from rows.jsonl, so none is ever dropped. `finish` ends the client's
process and exit hooks within its time limit, so that nothing of W&B is left at interpreter exit.
"""

import contextlib
import json
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.config import wandb_says
from harness.errors import one_line
from harness.logging.wandb_run import result_for_wandb, row_for_wandb

if TYPE_CHECKING:
    import wandb

Ending = tuple[dict[str, Any], int]  # summary and exit code
FINISH_TIMEOUT_S = 5.0
LIVE_EVERY_S = 5.0
SETTINGS: dict[str, Any] = {
    "console": "off",
    "disable_git": True,
    "save_code": False,
    "silent": True,
    # The Stop button in the UI sends SIGINT, which could end rank 0 inside a collective.
    "stop_fn": lambda: None,
    "sagemaker_disable": True,  # it would give the run another id
    "use_dot_wandb": False,
    "x_save_requirements": False,
    "x_skip_transaction_log": False,
    "x_transaction_log_flush_interval": 2.0,
    "init_timeout": 20.0,
    # Well before finish kills it, so that the client closes its local file by itself.
    "finish_timeout": FINISH_TIMEOUT_S - 1.5,
    "finish_timeout_raises": True,
}
"""Settings of the client; names that an older client lacks are left out."""


def without_effect(environ: Mapping[str, str]) -> list[str]:
    """Name the switches of W&B's that ask for something else than the harness always sets."""
    fixed = SETTINGS | {"dir": "the run folder", "error_reporting": False}
    said = wandb_says.said(environ).items()
    return [
        given.source
        for name, given in said
        if name in fixed and given.value.lower() != str(fixed[name]).lower()
    ]


@dataclass(kw_only=True, eq=False)
class WandbMirror:
    """One run in W&B, written by rank 0. No method blocks, but `finish`; none raises."""

    mode: Literal["online", "offline"]
    run_id: str  # stable over restarts: a later attempt continues the same run
    name: str
    group: str
    job_type: str
    tags: Sequence[str]
    notes: str | None = None
    config: dict[str, Any]
    project: str
    entity: str | None
    folder: Path  # the run folder: the client writes into its wandb/
    rows: Path  # the run's rows.jsonl; need not exist before rows are released
    settings: Mapping[str, Any] = field(default_factory=dict)  # over SETTINGS
    say: Callable[[str], object] = lambda _: None  # called with a failure, at once

    def __post_init__(self) -> None:
        self._state: str = self.mode
        self._released = 0  # lines of `rows` that are final
        self._seen = 0  # of these, what the thread knows of
        self._read = 0  # of these, what W&B has or gets
        self._offset = 0  # where in the file the next one begins
        self._live: dict[str, Any] | None = None
        self._live_at = 0.0
        self._ending: Ending | None = None
        self._gave_up = False
        self._unsynced: str | None = None
        self._log: Path | None = None  # of the client
        self.url: str | None = None  # of the run's page, once it is known
        # Its lock is reentrant: a signal handler may finish what the same thread has begun.
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._mirror, name="wandb-mirror", daemon=True)
        self._thread.start()

    def release(self, rows: int) -> None:
        """Say that the first `rows` lines of rows.jsonl are final; from any thread."""
        with self._changed:
            self._released = max(self._released, rows)
            self._changed.notify()

    def live(self, row: dict[str, Any]) -> None:
        """Show a row that is not final yet in the summary, unless a newer one comes first."""
        if self._state == "online":
            with self._changed:
                if self._live is None:
                    self._changed.notify()
                self._live = row

    def finish(
        self, summary: Mapping[str, Any], exit_code: int, timeout_s: float = FINISH_TIMEOUT_S
    ) -> str:
        """Send the released rows and the summary, and end the client, by force if it takes long.

        The summary is a Result, or empty. Returns `status`.
        """
        latest = time.monotonic() + 0.95 * timeout_s
        with self._changed:
            self._ending = result_for_wandb(summary), exit_code
            self._changed.notify()
        self._thread.join(0.95 * timeout_s - min(0.5, 0.35 * timeout_s))
        if self._thread.is_alive():
            self._gave_up = True
            self._state = f"incomplete: the client did not end within {timeout_s:g} s"
            kill_client()
        while self._thread.is_alive() and time.monotonic() < latest:
            self._thread.join(0.02)
            kill_client()  # again: the thread may have been about to start it
        return self.status

    @property
    def status(self) -> str:
        """Online, offline, or what went wrong; once it has ended, also how many rows that cost."""
        missing = self._released - self._read
        if missing <= 0 or (self._thread.is_alive() and not self._gave_up):
            return self._state
        return f"{self._state}; {missing} of {self._released} rows not mirrored"

    @property
    def sync_command(self) -> str | None:
        """What uploads rows that lie in the run folder only; not for a run that goes on later."""
        on_disk_only = self._unsynced and self.status != "online"
        return f"wandb sync {self._unsynced}" if on_disk_only else None

    def _mirror(self) -> None:
        """Own the client from its first call to its last; the first failure ends the mirror."""
        try:
            run = self._open()
            ending = None
            while ending is None:
                live, ending = self._wait()
                if self._seen > self._read:
                    self._send(run)
                if live is not None:
                    run.summary.update({f"live/{k}": v for k, v in row_for_wandb(live).items()})
            summary, exit_code = ending
            run.summary.update(summary)
            run.finish(exit_code=exit_code)
            self._raise_what_it_only_logs()
        except Exception as error:  # whatever it is, training goes on
            if not self._gave_up:
                self._state = f"incomplete: {_one_line(error)}"
                if self._ending is None:
                    self.say(self._state)
        finally:
            teardown()

    def _wait(self) -> tuple[dict[str, Any] | None, Ending | None]:
        """Sleep until rows are released, it is time to show the live row, or the run ends."""
        with self._changed:
            while self._ending is None and self._released <= self._seen:
                left_s = None if self._live is None else self._live_at - time.monotonic()
                if left_s is not None and left_s <= 0:
                    break
                self._changed.wait(left_s)
            self._seen = self._released
            self._live_at = time.monotonic() + LIVE_EVERY_S
            live, self._live = self._live, None
            return live, self._ending

    def _send(self, run: "wandb.Run") -> None:
        """Send the rows released since the last call, but those that the server has already."""
        # A row is one call without `step`, so W&B's steps count rows: this is the first it lacks.
        first = run.starting_step
        with self.rows.open("rb") as file:
            file.seek(self._offset)
            while self._read < self._seen and (line := file.readline()).endswith(b"\n"):
                if self._read >= first:
                    run.log(row_for_wandb(json.loads(line)))
                self._read += 1
                self._offset += len(line)

    def _open(self) -> "wandb.Run":
        """Start the client; online falls back to offline, with the same id."""
        if self.mode == "online":
            try:
                return self._start("online")
            except Exception as error:
                if self._gave_up:
                    raise
                self._state = f"offline, as online failed: {_one_line(error)}"
                self.say(self._state)
                # Until then the client counts the id as in use.
                teardown()
        return self._start("offline")

    def _start(self, mode: Literal["online", "offline"]) -> "wandb.Run":
        tidy_environment()
        import wandb

        if self._gave_up:
            raise TimeoutError("no time left to start the client")
        self._set_aside()
        wanted = SETTINGS | dict(self.settings)
        if given := wandb_says.said(os.environ).get("base_url"):
            # One mistake in a settings file, and the client would go on with the public server.
            wanted["base_url"] = given.value
        known = {k: v for k, v in wanted.items() if k in wandb.Settings.model_fields}
        # Set up before init: else a client without a key asks for one on the terminal.
        wandb.setup(wandb.Settings(**known))
        run = wandb.init(
            id=self.run_id,
            # Offline, this folder alone is the whole run: its upload replaces all that W&B has.
            resume="allow" if mode == "online" else None,
            mode=mode,
            name=self.name,
            group=self.group,
            job_type=self.job_type,
            tags=self.tags,
            notes=self.notes,
            config=self.config,
            project=self.project,
            entity=self.entity,
            dir=str(self.folder),
            settings=wandb.Settings(**known),
        )
        run.define_metric("*", step_metric="progress/images")
        self.url = run.url
        flag = "" if mode == "offline" else "--include-online "
        self._log = Path(run.dir).parent / "logs" / "debug-internal.log"
        self._unsynced = flag + shlex.quote(str(Path(run.dir).parent))
        return run

    def _raise_what_it_only_logs(self) -> None:
        """Raise if the client has given up sending, as after 401 or 404, and finished all the same.

        Raises:
            ConnectionError: with the client's reason.
        """
        if self._log is not None and self._log.exists():
            for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines():
                if '"filestream: fatal error' in line:
                    raise ConnectionError(json.loads(line)["msg"])

    def _set_aside(self) -> None:
        """Move away what earlier attempts left on disk, maybe in part: this one sends it again."""
        written = self.folder / "wandb"
        with contextlib.suppress(OSError):  # the sync command names one folder, whatever remains
            for old in written.glob(f"*run-????????_??????-{self.run_id}"):
                (written / "superseded").mkdir(exist_ok=True)
                old.rename(written / "superseded" / f"{old.name}.{time.time_ns()}")


def tidy_environment() -> None:
    """Take from the client what would make it fail or wait; before it is imported."""
    # With error reporting on, the client's exit hook waits 10 s for a server that hangs.
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    # Offline, WANDB_RESUME would end up in the upload.
    unwanted = {"WANDB_RESUME"} | {f"WANDB_{name}".upper() for name in SETTINGS}
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        if name in unwanted or not os.environ[name].strip():
            del os.environ[name]


def teardown() -> None:
    """End the client's process and unhook it from interpreter exit."""
    # SystemExit: how the client says that its process was killed.
    with contextlib.suppress(Exception, SystemExit):
        import wandb

        wandb.teardown()


def kill_client() -> None:
    """Kill the client's process: while it lives, the client waits for it."""
    for children in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for pid in map(int, children.read_text().split()):
                if Path(f"/proc/{pid}/comm").read_text() == "wandb-core\n":
                    os.kill(pid, signal.SIGKILL)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"[:200]
