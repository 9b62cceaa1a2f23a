"""The W&B mirror: copies rows to Weights & Biases, and never stops, slows or delays training.

A thread owns the client; training only puts rows into a queue. `finish` ends the client's process
and exit hooks within its time limit, so that nothing of W&B is left at interpreter exit.
"""

from __future__ import annotations

import configparser
import contextlib
import netrc
import os
import queue
import shlex
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from harness.record.wandb_keys import result_for_wandb, row_for_wandb

if TYPE_CHECKING:
    import wandb

Mode = Literal["online", "offline", "off"]

QUEUE_ROWS = 4096
FINISH_TIMEOUT_S = 5.0

SETTINGS: dict[str, Any] = {
    "console": "off",
    "disable_git": True,
    "save_code": False,
    "silent": True,
    # The Stop button in the UI sends SIGINT, which could end rank 0 inside a collective.
    "stop_fn": lambda: None,
    "x_save_requirements": False,
    "x_transaction_log_flush_interval": 2.0,
    "init_timeout": 20.0,
    # Less than finish's own limit, so that the client closes its local file by itself.
    "finish_timeout": FINISH_TIMEOUT_S - 1.0,
    "finish_timeout_raises": True,
}
"""Settings of the client; names that an older client lacks are left out."""

WANDB_MODES: dict[str, Mode] = {"online": "online", "offline": "offline", "disabled": "off"}
PUBLIC_HOSTS = frozenset({"api.wandb.ai", "api.forge.coreweave.com", "forge.coreweave.com"})


def choose_mode(
    asked: Literal["auto", "online", "offline", "off"], environ: Mapping[str, str]
) -> tuple[Mode, str | None]:
    """The mode to run in, and one line that says why where a user might wonder."""
    if asked != "auto":
        return asked, None
    if named := WANDB_MODES.get(environ.get("WANDB_MODE", "")):
        return named, None
    if _has_key(environ):
        return "online", None
    return "offline", (
        "no key found, so rows are mirrored offline; to go online run `wandb login` or set "
        "WANDB_API_KEY, for no mirror give --log.wandb off"
    )


def _has_key(environ: Mapping[str, str]) -> bool:
    """Whether the client would find a key in one of its places; imports and asks nothing."""
    folder = Path(environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    settings = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(OSError, configparser.Error):
        settings.read(folder / "settings")
    if {"WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"} & environ.keys():
        return True
    if settings.has_option("default", "api_key"):
        return True
    server = environ.get("WANDB_BASE_URL") or settings.get("default", "base_url", fallback="")
    host = urlsplit(server).netloc
    try:
        known = netrc.netrc(Path(environ.get("NETRC") or "~/.netrc").expanduser()).hosts.keys()
    except (OSError, netrc.NetrcParseError):
        return False
    return bool(known & (PUBLIC_HOSTS if not host or host in PUBLIC_HOSTS else {host}))


@dataclass(kw_only=True, eq=False)
class WandbMirror:
    """One run in W&B, written by rank 0. `log` and `finish` never raise."""

    mode: Mode
    run_id: str  # stable over restarts: a later attempt continues the same run
    name: str
    group: str
    job_type: str
    tags: Sequence[str]
    config: dict[str, Any]
    project: str
    entity: str | None
    folder: Path  # the run folder: the client writes into its wandb/

    def __post_init__(self) -> None:
        self.status: str = self.mode
        self._logged = self._sent = 0
        self._gave_up = False
        self._unsynced: str | None = None
        self._queue: queue.Queue[dict[str, Any] | tuple[dict[str, Any], int]]
        self._queue = queue.Queue(QUEUE_ROWS)
        self._thread = threading.Thread(target=self._mirror, name="wandb-mirror", daemon=True)
        if self.mode != "off":
            self._thread.start()

    def log(self, row: dict[str, Any]) -> None:
        """Hand over one row; where the client cannot keep up, the oldest waiting row is dropped."""
        self._logged += 1
        if self._thread.is_alive():
            self._put(row)

    def finish(
        self, summary: Mapping[str, Any], exit_code: int, timeout_s: float = FINISH_TIMEOUT_S
    ) -> str:
        """Send what waits and the summary, and end the client, by force after the time limit.

        Args:
            summary: the Result as a dict; empty if there is none.
            exit_code: of this process, for W&B to show.

        Returns:
            `status`: off, online, offline, or what went wrong and how many rows that cost.
        """
        if self.mode == "off":
            return self.status
        self._put((result_for_wandb(summary), exit_code))
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._gave_up = True
            self.status = f"incomplete: the client did not end within {timeout_s:g} s"
            _kill_client()
            self._thread.join(1.0)
        if missing := self._logged - self._sent:
            self.status += f"; {missing} of {self._logged} rows not mirrored"
        return self.status

    @property
    def sync_command(self) -> str | None:
        """The command that uploads what so far lies in the run folder only, if there is any."""
        on_disk_only = self._unsynced and self.status != "online"
        return f"wandb sync {self._unsynced}" if on_disk_only else None

    def _put(self, item: dict[str, Any] | tuple[dict[str, Any], int]) -> None:
        while True:
            try:
                return self._queue.put_nowait(item)
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    self._queue.get_nowait()

    def _mirror(self) -> None:
        """Own the client from its first call to its last; the first failure ends the mirror."""
        try:
            run = self._open()
            while isinstance(item := self._queue.get(), dict):
                run.log(row_for_wandb(item))
                self._sent += 1
            summary, exit_code = item
            run.summary.update(summary)
            run.finish(exit_code=exit_code)
        except Exception as error:  # whatever it is, training goes on
            if not self._gave_up:
                self.status = f"incomplete: {_one_line(error)}"
        finally:
            _teardown()

    def _open(self) -> wandb.Run:
        """Start the client; online falls back to offline, with the same id."""
        if self.mode == "online":
            try:
                return self._start("online")
            except Exception as error:
                if self._gave_up:
                    raise
                self.status = f"offline, as online failed: {_one_line(error)}"
                # Until then the client counts the id as in use.
                _teardown()
        return self._start("offline")

    def _start(self, mode: Literal["online", "offline"]) -> wandb.Run:
        # With error reporting on, the client's exit hook waits 10 s for a server that hangs.
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        import wandb

        known = {k: v for k, v in SETTINGS.items() if k in wandb.Settings.model_fields}
        # Set up before init: else a client without a key asks for one on the terminal.
        wandb.setup(wandb.Settings(**known))
        run = wandb.init(
            id=self.run_id,
            resume="allow",
            mode=mode,
            name=self.name,
            group=self.group,
            job_type=self.job_type,
            tags=self.tags,
            config=self.config,
            project=self.project,
            entity=self.entity,
            dir=str(self.folder),
            settings=wandb.Settings(**known),
        )
        run.define_metric("*", step_metric="progress/images")
        here = Path(run.dir).parent
        # Offline, each attempt has a folder of its own; one command uploads them as one run.
        folders = f"offline-run-*-{self.run_id}" if mode == "offline" else here.name
        flag = "" if mode == "offline" else "--include-online "
        self._unsynced = f"{flag}{shlex.quote(str(here.parent))}/{folders}"
        return run


def _teardown() -> None:
    """End the client's process and unhook it from interpreter exit."""
    # SystemExit: how the client says that its process was killed.
    with contextlib.suppress(Exception, SystemExit):
        import wandb

        wandb.teardown()


def _kill_client() -> None:
    """Kill the client's process: while it lives, the client waits for it."""
    for children in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for pid in map(int, children.read_text().split()):
                if Path(f"/proc/{pid}/comm").read_text() == "wandb-core\n":
                    os.kill(pid, signal.SIGKILL)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
