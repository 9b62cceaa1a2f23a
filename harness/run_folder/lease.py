"""The lease on a run folder: keeps a second job out while a first one works in it.

`lease.json` names the owner and is written once; the heartbeat is its mtime, which needs no disk
space. A dead owner is told by its process on the same machine, by its silence from elsewhere.
"""

from __future__ import annotations

import math
import os
import socket
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

from filelock import FileLock
from pydantic import BaseModel, Field

from harness.errors import BadInput
from harness.system.console import out
from harness.system.process import started_ticks

_LOCK_S = 5.0  # it is held for moments only
_MOMENT_S = 1.0  # without locks: how long the write of a job that started with us may trail ours
_POLL_S = 0.2


class LastHolder(NamedTuple):
    """The attempt before this one, in unix seconds of its host's clock."""

    taken_at: float
    last_seen: float


class Lease:
    """A held lease and its heartbeat, on rank 0 alone.

    `previous` held it last; None in a new folder, or where outside damage hides it.
    """

    def __init__(self, file: Path, owner: _Owner, previous: LastHolder | None) -> None:
        self.previous = previous
        self._file, self._token, self._mine = file, owner.token.encode(), True
        self._stop = Event()
        self._thread = Thread(target=self._beat, args=(owner.heartbeat_s,), daemon=True)
        self._thread.start()

    @staticmethod
    def take(
        folder: Path, *, environ: Mapping[str, str] = os.environ, heartbeat_s: float = 5.0
    ) -> Lease:
        """Take the lease on a folder, which is made where missing.

        Raises:
            BadInput: another live process holds it, or the folder cannot be written.
        """
        file, me = folder / "lease.json", _this_process(environ, heartbeat_s)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found = _claim(file, me)
        except OSError as error:
            raise BadInput(
                f"{folder}: {error.strerror}; set --run.root to a folder you can write"
            ) from None
        owner = found.owner if found else None
        previous = LastHolder(owner.taken_at, found.mtime_ns / 1e9) if found and owner else None
        return Lease(file, me, previous)

    def is_mine(self) -> bool:
        """Whether the file still names this lease: another job may take it from a frozen one.

        A missing file means lost. One that cannot be read says nothing: the last answer stands.
        """
        with suppress(OSError):
            seen = _look(self._file)
            self._mine = seen is not None and self._token in seen.text
        return self._mine and not self._stop.is_set()

    def release(self) -> None:
        """End it cleanly, so that the next attempt takes over at once. Never raises."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join(timeout=1.0)  # it may hang in a network disk
            with suppress(OSError):
                self._touch(release=True)

    def _beat(self, every_s: float) -> None:
        while not self._stop.wait(every_s):
            with suppress(OSError):
                self._touch()

    def _touch(self, *, release: bool = False) -> None:
        # All through one descriptor: a file that another job puts in its place is never touched.
        with self._file.open("r+b" if release else "rb", buffering=0) as opened:
            text = opened.read()
            if self._token not in text:
                return
            if release:  # in place and as long as before: a full disk takes that too
                opened.seek(0)
                opened.write(text.replace(b'"released": false', b'"released": true ', 1))
            now = time.time_ns()  # by this host's clock, where a file server would use its own
            os.utime(opened.fileno(), ns=(now, now))


class _Owner(BaseModel):
    """What lease.json says."""

    released: bool = False
    host: str
    boot_id: str
    pid_namespace: str
    uid: int
    pid: int
    started_ticks: int
    slurm_job: str | None
    slurm_restarts: int
    taken_at: float = Field(gt=0, lt=1e11)
    heartbeat_s: float = Field(gt=0, lt=3600)
    token: str

    def __str__(self) -> str:
        job = f" (Slurm job {self.slurm_job})" if self.slurm_job else ""
        return f"pid {self.pid} on {self.host}{job}"


class _Seen(NamedTuple):
    """A lease file at one moment: any change is a sign of life. No owner: damaged from outside."""

    text: bytes
    mtime_ns: int
    owner: _Owner | None


def _claim(file: Path, me: _Owner, watched: _Seen | None = None) -> _Seen | None:
    """Put `me` into the file unless its owner lives; returns what was there before."""
    with _locked(file.parent) as exclusive:
        found = _look(file)
        free = _is_free(found, me, watched)
        if free:
            _write(file, me)
    if found and free is None:
        _watch(file, found, me.heartbeat_s)  # unlocked, so that nobody has to wait in silence
        return _claim(file, me, found)
    if not free:
        raise _refusal(file, found)
    if not exclusive:
        time.sleep(_MOMENT_S)
        if (now := _look(file)) is None or me.token.encode() not in now.text:
            raise _refusal(file, now)
    return found


def _write(file: Path, me: _Owner) -> None:
    me.taken_at = time.time()
    part = file.with_name(f".lease.{me.token}.part")  # pids are not unique across hosts
    try:
        part.write_text(me.model_dump_json(indent=2) + "\n", encoding="utf-8")
        os.utime(part, (me.taken_at, me.taken_at))
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _is_free(found: _Seen | None, me: _Owner, watched: _Seen | None) -> bool | None:
    """Whether the lease may be taken; None if only watching it can tell."""
    if found is None:
        return True
    if owner := found.owner:
        if owner.released:
            return True
        # The user too: /proc may hide the processes of others, so that they look dead.
        here = (me.boot_id, me.pid_namespace, me.uid)
        if me.started_ticks > 0 and here == (owner.boot_id, owner.pid_namespace, owner.uid):
            return started_ticks(owner.pid) != owner.started_ticks
        # Slurm starts a job again only once it has ended the start before.
        same_job = me.slurm_job is not None and me.slurm_job == owner.slurm_job
        if same_job and owner.slurm_restarts < me.slurm_restarts:
            return True
    return found == watched if watched else None


def _watch(file: Path, found: _Seen, default_s: float) -> None:
    """Wait until the file changes, or for as long as a living owner cannot be silent."""
    wait_s = 3 * (found.owner.heartbeat_s if found.owner else default_s) + 0.5
    if wait_s > 2:
        who = found.owner or "the owner of its damaged lease"
        out.print(f"{file.parent}: waiting up to {wait_s:.0f} s to see whether {who} still works")
    # Looks are counted, not seconds: while a file server hangs, silence means nothing.
    for _ in range(math.ceil(wait_s / _POLL_S)):
        time.sleep(_POLL_S)
        with suppress(OSError):
            if _look(file) != found:
                return


def _refusal(file: Path, found: _Seen | None) -> BadInput:
    who = "another process is working in it"
    if found and (owner := found.owner):
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner.taken_at))
        who = f"{owner} has been working in it since {since}"
    return BadInput(f"{file.parent}: {who}; wait for it, stop it, or choose another --run.name")


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Keep other claimants out for a moment; yields False if the filesystem cannot lock."""
    lock = FileLock(folder / ".lease.lock", timeout=_LOCK_S)
    with ExitStack() as held:
        # NotImplementedError is what older versions of filelock raise where locks are not known.
        # Its timeout too: in place of locks it may use files, which outlive a job that was killed.
        with suppress(OSError, NotImplementedError), warnings.catch_warnings(action="ignore"):
            held.enter_context(lock)
        yield lock.is_locked


def _look(file: Path) -> _Seen | None:
    # Opening makes a network disk ask its server; its answer to a mere stat may be a minute old.
    try:
        with file.open("rb") as opened:
            text, mtime_ns = opened.read(), os.fstat(opened.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
    try:
        return _Seen(text, mtime_ns, _Owner.model_validate_json(text))
    except ValueError:
        return _Seen(text, mtime_ns, None)


def _this_process(environ: Mapping[str, str], heartbeat_s: float) -> _Owner:
    boot_id, pid_namespace, started_ticks = _here()
    restarts = environ.get("SLURM_RESTART_COUNT", "")
    return _Owner(
        host=socket.gethostname(),
        boot_id=boot_id,
        pid_namespace=pid_namespace,
        uid=os.getuid(),
        pid=os.getpid(),
        started_ticks=started_ticks,
        slurm_job=environ.get("SLURM_JOB_ID"),
        slurm_restarts=int(restarts) if restarts.isdecimal() else 0,
        taken_at=time.time(),
        heartbeat_s=heartbeat_s,
        token=uuid.uuid4().hex,
    )


def _here() -> tuple[str, str, int]:
    """Boot, pid namespace and start, which with the pid name one process; empty if unknown."""
    with suppress(OSError):
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot_id, os.readlink("/proc/self/ns/pid"), started_ticks(os.getpid())
    return "", "", 0
