"""The lease on a run folder: keeps a second job out while a first one works in it.

`lease.json` names the owner and is written once; the heartbeat is its mtime, which needs no disk
space. A dead owner on this machine is recognized by its process, elsewhere by its silence.
"""

import math
import os
import socket
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

from filelock import FileLock
from pydantic import BaseModel, Field

from harness.errors import BadInput
from harness.system.console import out
from harness.system.process import started_ticks

_LOCK_S = 5.0  # time limit for the lock, which is held only briefly
_RACE_S = 1.0  # without locks: how much later a job that started with this one may write
_POLL_S = 0.2


class Lease:
    """A held lease and its heartbeat thread; on rank 0 only.

    `last_seen` is the last heartbeat of the previous holder, in Unix seconds of its host's clock;
    None in a new folder or if lease.json was damaged.
    """

    def __init__(self, file: Path, owner: "_Owner", last_seen: float | None) -> None:
        self.last_seen = last_seen
        self._file, self._token, self._mine = file, owner.token.encode(), True
        self._stop = Event()
        self._thread = Thread(target=self._heartbeat, args=(owner.heartbeat_s,), daemon=True)
        self._thread.start()

    @staticmethod
    def take(
        folder: Path, *, environ: Mapping[str, str] = os.environ, heartbeat_s: float = 5.0
    ) -> "Lease":
        """Take the lease on a folder, which is created if missing.

        Raises:
            BadInput: another live process holds it.
            OSError: the folder cannot be written.
        """
        file, me = folder / "lease.json", _this_process(environ, heartbeat_s)
        folder.mkdir(parents=True, exist_ok=True)
        old = _claim(file, me)
        return Lease(file, me, old.mtime_ns / 1e9 if old and old.owner else None)

    def is_mine(self) -> bool:
        """Return whether the file still names this lease: another job may take a frozen job's.

        A missing file means that it is lost; if the file cannot be read, the last answer is kept.
        """
        with suppress(OSError):
            current = _read(self._file)
            self._mine = current is not None and self._token in current.text
        return self._mine and not self._stop.is_set()

    def release(self) -> None:
        """Release the lease, so that the next attempt can take it at once. Never raises."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join(timeout=1.0)  # it may hang on a network disk
            with suppress(OSError):
                self._touch(release=True)

    def _heartbeat(self, every_s: float) -> None:
        while not self._stop.wait(every_s):
            with suppress(OSError):
                self._touch()

    def _touch(self, *, release: bool = False) -> None:
        # All through one descriptor: a file by which another job has replaced it is not touched.
        with self._file.open("r+b" if release else "rb", buffering=0) as opened:
            text = opened.read()
            if self._token not in text:
                return
            if release:  # in place and of equal length: that works on a full disk too
                opened.seek(0)
                opened.write(text.replace(b'"released": false', b'"released": true ', 1))
            now = time.time_ns()  # this host's clock, not the file server's
            os.utime(opened.fileno(), ns=(now, now))


def refuse_if_held(folder: Path, environ: Mapping[str, str] = os.environ) -> None:
    """Raise BadInput if another live process holds the lease on a folder; takes nothing."""
    file, me = folder / "lease.json", _this_process(environ, heartbeat_s=5.0)
    current = watched = _read(file)
    if watched and _is_free(watched, me, None) is None:
        _watch(file, watched, me.heartbeat_s)
        current = _read(file)
    if not _is_free(current, me, watched):
        raise _refusal(file, current)


class _Owner(BaseModel):
    """The content of lease.json."""

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


class _Snapshot(NamedTuple):
    """A lease file at one moment; any change shows a live owner. No owner: the file is damaged."""

    text: bytes
    mtime_ns: int
    owner: _Owner | None


def _claim(file: Path, me: _Owner, watched: _Snapshot | None = None) -> _Snapshot | None:
    """Write `me` into the file unless its owner lives; return the former content."""
    with _locked(file.parent) as exclusive:
        current = _read(file)
        free = _is_free(current, me, watched)
        if free:
            _write(file, me)
    if current and free is None:
        _watch(file, current, me.heartbeat_s)  # unlocked, so that other claimants need not wait
        return _claim(file, me, current)
    if not free:
        raise _refusal(file, current)
    if not exclusive:
        time.sleep(_RACE_S)
        if (now := _read(file)) is None or me.token.encode() not in now.text:
            raise _refusal(file, now)
    return current


def _write(file: Path, me: _Owner) -> None:
    me.taken_at = time.time()
    part = file.with_name(f".lease.{me.token}.part")  # pids are not unique across hosts
    try:
        part.write_text(me.model_dump_json(indent=2) + "\n", encoding="utf-8")
        os.utime(part, (me.taken_at, me.taken_at))
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _is_free(current: _Snapshot | None, me: _Owner, watched: _Snapshot | None) -> bool | None:
    """Return whether the lease may be taken; None if the file must be watched to know."""
    if current is None:
        return True
    if owner := current.owner:
        if owner.released:
            return True
        # Compare the user too: /proc may hide other users' processes, so that they seem dead.
        system = (me.boot_id, me.pid_namespace, me.uid)
        if me.started_ticks > 0 and system == (owner.boot_id, owner.pid_namespace, owner.uid):
            return started_ticks(owner.pid) != owner.started_ticks
        # Slurm requeues a job only once its former start has ended.
        same_job = me.slurm_job is not None and me.slurm_job == owner.slurm_job
        if same_job and owner.slurm_restarts < me.slurm_restarts:
            return True
    return current == watched if watched else None


def _watch(file: Path, current: _Snapshot, default_s: float) -> None:
    """Wait until the file changes, or until a live owner must have sent a heartbeat."""
    wait_s = 3 * (current.owner.heartbeat_s if current.owner else default_s) + 0.5
    if wait_s > 2:
        who = current.owner or "the owner of its damaged lease"
        out.print(f"{file.parent}: waiting up to {wait_s:.0f} s to see whether {who} still works")
    # Count the reads, not the seconds: while a file server hangs, no heartbeat can be seen.
    for _ in range(math.ceil(wait_s / _POLL_S)):
        time.sleep(_POLL_S)
        with suppress(OSError):
            if _read(file) != current:
                return


def _refusal(file: Path, current: _Snapshot | None) -> BadInput:
    holder = "another process is working in it"
    if current and (owner := current.owner):
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner.taken_at))
        holder = f"{owner} has been working in it since {since}"
    return BadInput(f"{file.parent}: {holder}; wait for it, stop it, or choose another --run.name")


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Lock out other claimants; yield False if the filesystem does not support locks."""
    lock = FileLock(folder / ".lease.lock", timeout=_LOCK_S)
    # Older versions of filelock raise NotImplementedError if locks are not supported. Timeouts are
    # ignored too: its fallback, lock files, may be left over from a job that was killed.
    with suppress(OSError, NotImplementedError), warnings.catch_warnings(action="ignore"):
        lock.acquire()
    try:
        yield lock.is_locked
    finally:
        lock.release()


def _read(file: Path) -> _Snapshot | None:
    # Opening a file makes NFS ask its server; attributes from a mere stat may be a minute old.
    try:
        with file.open("rb") as opened:
            text, mtime_ns = opened.read(), os.fstat(opened.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
    try:
        return _Snapshot(text, mtime_ns, _Owner.model_validate_json(text))
    except ValueError:
        return _Snapshot(text, mtime_ns, None)


def _this_process(environ: Mapping[str, str], heartbeat_s: float) -> _Owner:
    boot_id, pid_namespace, started_ticks = _process_identity()
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


def _process_identity() -> tuple[str, str, int]:
    """Return boot id, pid namespace and start ticks, unique with the pid; empty if unknown."""
    with suppress(OSError):
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot_id, os.readlink("/proc/self/ns/pid"), started_ticks(os.getpid())
    return "", "", 0
