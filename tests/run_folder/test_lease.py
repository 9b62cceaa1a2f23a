"""The lease on a run folder, among real processes that are killed and frozen."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from rich.console import Console

from harness.errors import BadInput
from harness.run_folder import lease
from harness.run_folder.lease import Lease

JOB = """
import fcntl, sys
from pathlib import Path
from harness.errors import BadInput
from harness.run_folder import lease

def no_locks(code):
    def flock(fd, operation):
        raise OSError(code, "no locks")
    return flock

print("ready", flush=True)
for line in sys.stdin:
    match line.split():
        case ["no-locks", code]:
            fcntl.flock = no_locks(int(code))
            lease._RACE_S = 2.0  # for slow test machines
            answer = "done"
        case ["elsewhere"]:
            lease._process_identity = lambda: ("another boot", "pid:[1]", 1)
            answer = "done"
        case ["take", folder, heartbeat_s]:
            try:
                held = lease.Lease.take(Path(folder), environ={}, heartbeat_s=float(heartbeat_s))
                answer = "took"
            except BadInput as error:
                answer = str(error)
        case ["mine"]:
            answer = str(held.is_mine())
        case ["release"]:
            answer = str(held.release())
    print(answer, flush=True)
"""


class Job:
    """Another process: takes leases when told to."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "-c", JOB], cwd=ROOT, stdin=pipe, stdout=pipe, text=True
        )
        self.pid = self.process.pid

    def tell(self, *words: object) -> None:
        assert self.process.stdin
        print(*words, file=self.process.stdin, flush=True)

    def answer(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def ask(self, *words: object) -> str:
        self.tell(*words)
        return self.answer()

    def take(self, folder: Path, heartbeat_s: float = 0.1) -> None:
        assert self.ask("take", folder, heartbeat_s) == "took"

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


NewJobs = Callable[[int], list[Job]]


@pytest.fixture
def new_jobs() -> Iterator[NewJobs]:
    jobs: list[Job] = []

    def start(count: int) -> list[Job]:
        more = [Job() for _ in range(count)]
        jobs.extend(more)
        assert [job.answer() for job in more] == ["ready"] * count
        return more

    yield start
    for job in jobs:
        job.end()


@pytest.fixture
def job(new_jobs: NewJobs) -> Job:
    return new_jobs(1)[0]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What must be told at once."""

    def watch(*_: object) -> None:
        raise AssertionError("it was watched")

    monkeypatch.setattr(lease, "_watch", watch)


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Consoles hold the stream that was there when they were made."""
    monkeypatch.setattr(lease, "out", Console(soft_wrap=True, highlight=False))


def take(folder: Path, environ: dict[str, str] | None = None, heartbeat_s: float = 60) -> Lease:
    """Take it with the heart at rest: what touches the file then is someone else."""
    return Lease.take(folder, environ=environ or {}, heartbeat_s=heartbeat_s)


def content(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "lease.json").read_text())
    return found


def mtime_ns(folder: Path) -> int:
    return (folder / "lease.json").stat().st_mtime_ns


def leave(folder: Path, **changes: object) -> None:
    """Leave the lease of this very process in a folder, silent and changed."""
    owner = lease._this_process({}, 0.1)
    folder.mkdir(exist_ok=True)
    (folder / "lease.json").write_text(json.dumps({**owner.model_dump(), **changes}))


def wait_until(true: Callable[[], bool], timeout_s: float = 30) -> None:
    until = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def wait_for_heartbeat(folder: Path) -> None:
    at = mtime_ns(folder)
    wait_until(lambda: mtime_ns(folder) > at)


@pytest.mark.slow
def test_exactly_one_of_many_jobs_gets_it(tmp_path: Path, new_jobs: NewJobs) -> None:
    """A new folder, a dead lease, a silent one; then without locks, or with files in their place.

    One set of processes plays all rounds, as starting them takes longest.
    """
    jobs = new_jobs(8)
    rounds: dict[str, tuple[dict[str, object] | None, int | None]] = {
        "new": (None, None),
        "dead": ({"started_ticks": 1}, None),
        "silent": ({"boot_id": "another"}, None),
        "no-locks": (None, errno.ENOLCK),
        "soft-locks": ({"started_ticks": 1}, errno.ENOSYS),
    }
    for name, (found, without_locks) in rounds.items():
        folder = tmp_path / name
        if found is not None:
            leave(folder, **found)
        for job in jobs if without_locks else []:
            assert job.ask("no-locks", without_locks) == "done"
        for job in jobs:
            job.tell("take", folder, 0.2)
        answers = {job.pid: job.answer() for job in jobs}
        (winner,) = [pid for pid, answer in answers.items() if answer == "took"]
        assert content(folder)["pid"] == winner
        refusals = [answer for pid, answer in answers.items() if pid != winner]
        assert all("another --run.name" in refusal for refusal in refusals)
        if name != "no-locks":
            assert all(f": pid {winner} on " in refusal for refusal in refusals)


def test_refusal_tells_who_where_since_when_and_what_to_do(run: Path) -> None:
    held = take(run, {"SLURM_JOB_ID": "77"})
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(content(run)["taken_at"]))
    with pytest.raises(BadInput) as refused:
        take(run)  # by the same process: refused too
    assert str(refused.value) == (
        f"{run}: pid {os.getpid()} on {os.uname().nodename} (Slurm job 77) has been working in it "
        f"since {since}; wait for it, stop it, or choose another --run.name"
    )
    held.release()


@pytest.mark.usefixtures("no_watch")
def test_a_killed_owner_is_replaced_at_once(run: Path, job: Job) -> None:
    job.take(run)
    job.process.kill()
    # Nobody has asked for its exit code yet, so that it ends as a zombie.
    wait_until(lambda: "Z" in Path(f"/proc/{job.pid}/stat").read_text().rpartition(")")[2])
    held = take(run)
    assert held.last_seen
    assert held.is_mine()
    held.release()


@pytest.mark.usefixtures("no_watch")
def test_a_released_lease_is_free_and_tells_when_it_was_last_seen(run: Path) -> None:
    first = take(run)
    between = time.time()
    assert first.last_seen is None
    first.release()
    first.release()
    after = time.time()
    assert not first.is_mine()
    second = take(run)
    assert second.last_seen
    assert between <= second.last_seen <= after
    second.release()


@pytest.mark.usefixtures("no_watch")
def test_last_seen_of_a_killed_owner_is_its_last_heartbeat(run: Path, job: Job) -> None:
    job.take(run, 0.1)
    taken = mtime_ns(run)
    wait_for_heartbeat(run)
    last = mtime_ns(run)
    job.end()
    ended = time.time()
    held = take(run)
    assert held.last_seen
    assert taken / 1e9 < last / 1e9 <= held.last_seen <= ended
    held.release()


@pytest.mark.usefixtures("no_watch")
def test_another_process_with_the_pid_of_the_owner_is_not_the_owner(run: Path) -> None:
    leave(run, started_ticks=1)
    take(run).release()


@pytest.mark.usefixtures("no_watch")
def test_a_frozen_owner_on_this_machine_is_alive(run: Path, job: Job) -> None:
    job.take(run)
    os.kill(job.pid, signal.SIGSTOP)
    with pytest.raises(BadInput, match=f"pid {job.pid} on "):
        take(run)
    os.kill(job.pid, signal.SIGCONT)
    assert job.ask("mine") == "True"


def test_an_owner_elsewhere_is_alive_while_its_heart_beats(run: Path, job: Job) -> None:
    job.ask("elsewhere")
    job.take(run, 1)
    with pytest.raises(BadInput, match=f"pid {job.pid} on "):
        take(run)
    assert job.ask("mine") == "True"
    job.ask("release")
    take(run).release()


def test_a_look_refuses_whom_a_lease_would_and_takes_nothing(
    run: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease.refuse_if_held(run, {})
    assert not run.exists()
    job.take(run, 0.2)
    with pytest.raises(BadInput, match=f"pid {job.pid} on "):
        lease.refuse_if_held(run, {})
    job.ask("release")
    before = (run / "lease.json").read_bytes(), mtime_ns(run)
    lease.refuse_if_held(run, {})
    assert ((run / "lease.json").read_bytes(), mtime_ns(run)) == before
    job.ask("elsewhere")
    job.take(run, 1)
    with pytest.raises(BadInput, match=f"pid {job.pid} on "):
        lease.refuse_if_held(run, {})
    os.kill(job.pid, signal.SIGSTOP)
    monkeypatch.setattr(lease, "_watch", lambda *_: None)  # as if in vain
    lease.refuse_if_held(run, {})


def test_an_owner_elsewhere_that_releases_while_it_is_watched_is_replaced(
    run: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.ask("elsewhere")
    job.take(run, 60)
    watch = lease._watch

    def release_and_watch(*args: Any) -> None:
        job.ask("release")
        watch(args[0], args[1]._replace(owner=None), 0.1)

    monkeypatch.setattr(lease, "_watch", release_and_watch)
    take(run).release()


def test_an_owner_elsewhere_that_froze_is_replaced_and_hears_of_it(run: Path, job: Job) -> None:
    job.ask("elsewhere")
    job.take(run, 0.1)
    os.kill(job.pid, signal.SIGSTOP)
    held = take(run)
    at = mtime_ns(run)
    os.kill(job.pid, signal.SIGCONT)
    assert job.ask("mine") == "False"
    time.sleep(0.5)
    job.ask("release")
    assert mtime_ns(run) == at, "its heartbeat or its release reached the lease of another"
    assert held.is_mine()
    assert content(run)["released"] is False
    held.release()


@pytest.mark.usefixtures("console")
@pytest.mark.parametrize(("beat_s", "said"), [(0.1, False), (0.6, True)])
def test_a_long_watch_says_what_it_waits_for(
    run: Path, capsys: pytest.CaptureFixture[str], beat_s: float, said: bool
) -> None:
    leave(run, boot_id="another", host="node7", pid=5, slurm_job="77", heartbeat_s=beat_s)
    take(run).release()
    line = f"{run}: waiting up to 2 s to see whether pid 5 on node7 (Slurm job 77) still works\n"
    assert capsys.readouterr().out == (line if said else "")


@pytest.mark.usefixtures("no_watch")
@pytest.mark.parametrize("last", [0, 2])
def test_a_requeued_slurm_job_replaces_its_former_start_at_once(run: Path, last: int) -> None:
    leave(run, boot_id="another", slurm_job="77", slurm_restarts=last, heartbeat_s=60)
    take(run, {"SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": str(last + 1)}).release()


@pytest.mark.usefixtures("no_watch")
@pytest.mark.parametrize(
    "environ",
    [{}, {"SLURM_JOB_ID": "77"}, {"SLURM_JOB_ID": "78", "SLURM_RESTART_COUNT": "1"}],
)
def test_other_slurm_jobs_and_the_same_start_are_watched(
    run: Path, environ: dict[str, str]
) -> None:
    leave(run, boot_id="another", slurm_job="77", slurm_restarts=0)
    with pytest.raises(AssertionError, match="it was watched"):
        take(run, environ)


@pytest.mark.parametrize("text", ["", '{"released": true}', "\xff"])
def test_a_damaged_lease_counts_as_dead_after_the_watch(
    run: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_POLL_S", 0.01)
    run.mkdir()
    (run / "lease.json").write_text(text, encoding="latin-1")
    held = take(run, heartbeat_s=0.01)
    assert held.last_seen is None
    held.release()


def test_a_lost_file_is_not_mine_but_one_that_cannot_be_read_may_be(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = take(run, heartbeat_s=0.05)

    def hiccup(_: Path) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(lease, "_read", hiccup)
        assert held.is_mine()
    run.rename(run.with_name("aside"))
    assert not held.is_mine()
    time.sleep(0.2)
    assert not run.exists()
    run.with_name("aside").rename(run)
    assert held.is_mine()
    wait_for_heartbeat(run)
    held.release()
    assert not held.is_mine()


def test_a_full_disk_stops_neither_heartbeat_nor_release(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("may not mount")
    try:
        held = take(tmp_path / "run", heartbeat_s=0.1)
        with pytest.raises(OSError, match="No space"):
            (tmp_path / "fill").write_bytes(bytes(100_000))
        with pytest.raises(OSError, match="No space"):
            (tmp_path / "more").write_bytes(bytes(1))
        wait_for_heartbeat(tmp_path / "run")
        wait_for_heartbeat(tmp_path / "run")
        held.release()
        assert content(tmp_path / "run")["released"] is True
        with pytest.raises(OSError, match="No space left on device"):
            take(tmp_path / "run")
        left = {path.name for path in (tmp_path / "run").iterdir()}
        assert left <= {"lease.json", ".lease.lock"}
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "run"
    with pytest.raises(NotADirectoryError):
        take(folder)
