"""Faults on the way, on three ranks under torchrun: runs go on, with the bits of a quiet one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import pytest
import torch
from helpers import ROOT, TINY, TRAIN, children, icons_flags, launcher, on_gpu, small_disk, train
from helpers import wait_for_rows as wait
from ranks import python
from ranks import started as started_alone

from harness.distributed import World, own_part
from harness.doctor.chaos.compare import compare
from harness.errors import RunFailed
from harness.run_folder.folder import attempts

pytestmark = pytest.mark.gpu_too

RANKS = 3
SIGNALS = ("--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGUSR1,SIGUSR2")


def flags_of(photos: Path, name: str, *more: str) -> list[str]:
    """24 steps in 3 epochs, a row every 3 and a checkpoint every 2, several buckets."""
    return [
        *TINY, "--data.train", str(photos), "--data.val", str(photos), "--run.name", name,
        *("--train.global-batch", "12", "--eval.local-batch", "16", "--log.every-steps", "3"),
        *("--checkpoint.every-steps", "2", "--engine.bucket-mb", "0.1"),
        *("--schedule.epochs", "3", *more),
    ]  # fmt: skip


@contextmanager
def started(cwd: Path, flags: list[str], *torchrun: str) -> Iterator[subprocess.Popen[str]]:
    """Ranks under torchrun; whatever happens, none is left."""
    with (cwd / "said").open("a+") as said:
        job = subprocess.Popen(
            [*launcher(RANKS), *torchrun, TRAIN, *on_gpu(), *flags],
            cwd=cwd, text=True, stdout=said, stderr=said,
        )  # fmt: skip
        ranks: list[int] = []
        try:
            wait(cwd / "runs" / flags[flags.index("--run.name") + 1], job)
            ranks = children(job)
            yield job
        finally:
            for pid in (*ranks, job.pid) if job.poll() is None else ():
                os.kill(pid, signal.SIGKILL)
            job.wait()


def said_in(cwd: Path) -> str:
    return (cwd / "said").read_text()


def alive(pid: int) -> bool:
    """Whether a process works: neither gone nor waited for by its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition: Any, timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def block(image: Path) -> None:
    """Put a pipe that nobody writes to in its place: to open it never ends, as on a dead disk."""
    os.mkfifo(image.with_suffix(".pipe"))
    image.with_suffix(".pipe").replace(image)


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, photos: Path, device: torch.device
) -> Path:
    cwd = tmp_path_factory.mktemp("undisturbed")
    done = train(*flags_of(photos, "quiet"), ranks=RANKS, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "runs" / "quiet"


@pytest.mark.slow
def test_every_signal_stops_all_ranks_after_the_same_step(
    tmp_path: Path, photos: Path, undisturbed: Path
) -> None:
    """To torchrun, which forwards it and then ends with 1 by itself; to one rank: it ends with 0.

    torchrun starts nothing again, though it might. SIGTERM to torchrun: test_stopping.py.
    """
    flags, folder = flags_of(photos, "stopped"), tmp_path / "runs" / "stopped"
    for number, (by, of_one_rank, code) in enumerate(
        [(signal.SIGUSR1, False, 1), (signal.SIGUSR2, True, 0), (signal.SIGHUP, False, 1)], start=1
    ):
        with started(tmp_path, flags, *SIGNALS, "--max-restarts", "3") as job:
            if number > 1:
                until(lambda: (folder / "state").read_text() == "running\n")
                wait(folder, job, rows=(folder / "rows.jsonl").read_bytes().count(b"\n") + 1)
            ranks = children(job)
            os.kill(ranks[2] if of_one_rank else job.pid, by)
            assert job.wait(60) == code, said_in(tmp_path)
        assert not any(map(alive, ranks))
        assert said_in(tmp_path).count("stopped by") == number
        assert (folder / "state").read_text() == "stopped\n"
        assert not (folder / "stacks").exists()
        assert len(attempts(folder)) == number
        last = json.loads((folder / "rows.jsonl").read_text().splitlines()[-1])
        assert last["kind"] == "stop"
        assert (folder / "checkpoints" / f"step-{last['step']:09d}.json").exists()
    done = train(*flags, ranks=RANKS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert compare(undisturbed, folder) == []
    ended = [each.get("previous_ended") for each in attempts(folder)]
    assert ended == [None, "stopped", "stopped", "stopped"]


@pytest.mark.slow
def test_a_second_signal_ends_a_rank_that_waits_for_another(tmp_path: Path, photos: Path) -> None:
    """No step comes to an end any more, and the main thread waits in a collective."""
    flags = flags_of(photos, "impatient", "--schedule.epochs", "1000")
    with started(tmp_path, flags) as job:
        first, _, frozen = children(job)
        os.kill(frozen, signal.SIGSTOP)
        time.sleep(1)
        os.kill(first, signal.SIGTERM)
        time.sleep(2.5)
        assert alive(first), "the first signal is a wish"
        os.kill(first, signal.SIGTERM)
        until(lambda: not alive(first), timeout_s=10)
        os.kill(frozen, signal.SIGKILL)  # torchrun would wait for it
        assert job.wait(60) == 1
    assert "exitcode  : 143" in said_in(tmp_path)


@pytest.mark.slow
def test_torchrun_starts_again_what_hung_and_what_was_killed(
    tmp_path: Path, photos: Path, undisturbed: Path
) -> None:
    """First one hangs, opening an image; then the one that writes is killed, and then another."""
    data = copytree(photos, tmp_path / "data", ignore=ignore_patterns(".*"))
    # Without read-ahead: another rank might come to the image of its next epoch.
    flags = flags_of(photos, "hung", "--data.train", str(data), "--engine.timeout-s", "5",
                     "--data.read-ahead-batches", "0")  # fmt: skip
    folder = tmp_path / "runs" / "hung"
    with started(tmp_path, flags, "--max-restarts", "4") as job:
        image = data / "class2" / "0002.jpg"
        whole = image.read_bytes()
        block(image)
        ranks = children(job)
        until(lambda: not any(map(alive, ranks)))
        image.unlink()
        image.write_bytes(whole)
        for number, rank in ((2, 0), (3, 2)):
            until(lambda number=number: len(attempts(folder)) == number)
            wait(folder, job, rows=(folder / "rows.jsonl").read_bytes().count(b"\n") + 1)
            os.kill(children(job)[rank], signal.SIGKILL)
        assert job.wait(120) == 0, said_in(tmp_path)
    assert compare(undisturbed, folder) == []
    said = said_in(tmp_path)
    assert re.search(r"error: waited \d+ s for another rank, which hangs or needs a higher", said)
    failure = json.loads((folder / "failure-1.json").read_text())
    assert failure["message"].endswith("where each one stood is in runs/hung/stacks")
    stacks = sorted((folder / "failure-1-stacks").iterdir())
    assert [path.name for path in stacks] == [f"attempt-1-rank-{r}.txt" for r in range(RANKS)]
    hung = [rank for rank, path in enumerate(stacks) if "in mapped" in path.read_text()]
    assert len(hung) == 1
    assert all("harness/trainer/loop.py" in path.read_text() for path in stacks)
    assert f"error: rank {hung[0]} hangs: no step for" in said
    assert not (folder / "stacks").exists()
    tries = attempts(folder)
    assert [each["attempt"] for each in tries] == [1, 2, 3, 4]
    from_steps = [each["from_step"] for each in tries]
    assert from_steps == sorted(from_steps)  # a kill may come before a checkpoint is on the disk
    assert from_steps[1] > 0
    assert {each["previous_ended"] for each in tries[1:]} <= {"killed", "failed"}
    logs = {path.name: path.read_text() for path in (folder / "logs").iterdir()}
    assert logs.keys() == {"rank_1.log", "rank_2.log"}
    heads = [line for line in logs["rank_1.log"].splitlines() if line.startswith("---")]
    assert [head.split(",")[0] for head in heads] == [f"--- attempt {n}" for n in (1, 2, 3, 4)]


@pytest.mark.host
def test_ranks_that_start_again_never_take_the_dead_for_the_living() -> None:
    """Three starts on one store, as torchrun keeps it; the others come well before rank 0."""
    store, cpu = torch.distributed.HashStore(), torch.device("cpu")
    worlds = [World(rank, rank, RANKS, RANKS, cpu) for rank in range(RANKS)]
    for start in range(3):
        with ThreadPoolExecutor(RANKS) as pool:
            others = [pool.submit(own_part, store, world, 60) for world in worlds[1:]]
            time.sleep(0.3)
            assert not any(other.done() for other in others)
            first = own_part(store, worlds[0], 60)
            first.set("address", str(start))
            assert [other.result(30).get("address") for other in others] == [b"%d" % start] * 2
    with pytest.raises(RunFailed, match=r"rank 2: rank 0 has not come within 0.1 s"):
        own_part(store, worlds[2], 0.1)


@pytest.mark.slow
def test_a_rank_that_hangs_alone_ends_too(tmp_path: Path, photos: Path) -> None:
    """No collective gives up, as nobody comes to one."""
    data = copytree(photos, tmp_path / "data", ignore=ignore_patterns(".*"))
    flags = flags_of(photos, "alone", "--data.train", str(data), "--engine.timeout-s", "3")
    folder = tmp_path / "runs" / "alone"
    with started_alone(TRAIN, *on_gpu(), *flags, "--schedule.epochs", "1000", cwd=tmp_path) as job:
        wait(folder, job)
        for image in data.glob("class2/*"):
            block(image)
        _, said = job.communicate(timeout=60)
    assert job.returncode == 1
    line = r"error: rank 0 hangs: no step for \d+ s, more than engine.timeout_s .*; where it .*\n"
    assert re.fullmatch(line, said), said
    assert "in mapped" in (folder / "stacks" / "attempt-1-rank-0.txt").read_text()
    assert json.loads((folder / "failure.json").read_text())["message"] in said
    assert (folder / "state").read_text() == "failed\n"


SICK = """
import os, runpy, sys
sys.path[0] = {root!r}
from harness.trainer.metrics import EvalMetrics, TrainMetrics

kind, calls = {{"training": TrainMetrics, "validation": EvalMetrics}}[{where!r}], 0
add = kind.add

def sick(self, first, *rest, **named):
    global calls
    calls += 1
    add(self, first * float("nan") if calls == {call} else first, *rest, **named)

if os.environ["RANK"] == "2":
    kind.add = sick
sys.argv[0] = {train!r}
runpy.run_path({train!r}, run_name="__main__")
"""
"""launch/train.py, but what rank 2 alone counts is once not a number; its weights stay sound."""


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_rank_is_never_saved(
    tmp_path: Path, photos: Path, undisturbed: Path
) -> None:
    """First in training, two steps before the next row; then in the last validation.

    What is left is named by whichever rank speaks first, and is good: from there the run goes on.
    """
    flags, folder = flags_of(photos, "sick"), tmp_path / "runs" / "sick"
    flags[flags.index("--checkpoint.every-steps") + 1] = "1"

    def fail(where: str, call: int) -> tuple[str, list[int], str]:
        script = tmp_path / "sick.py"
        script.write_text(SICK.format(root=str(ROOT), train=TRAIN, where=where, call=call))
        done = python(script, *on_gpu(), *flags, ranks=RANKS, cwd=tmp_path)
        assert done.returncode == 1
        output = done.stdout + done.stderr
        message = json.loads((folder / "failure.json").read_text())["message"]
        saved = [int(path.stem[5:]) for path in sorted(folder.glob("checkpoints/step-*.pt"))]
        last = folder.relative_to(tmp_path) / "checkpoints" / f"step-{saved[-1]:09d}.pt"
        assert message.endswith(f"; the last good checkpoint is {last}")
        assert f"error: {message}\n" in output
        return message, saved, output

    message, saved, output = fail("training", 4)
    assert message.startswith("step 4: the loss is nan; lower optim.lr_per_256 or lengthen")
    assert saved[-1] <= 3
    assert "step 5: not saved, as losses or weights are not finite" in output
    message, saved, _ = fail("validation", 7)  # of three batches each
    assert message.startswith("validation: the loss is nan; the weights have diverged; ")
    assert saved[-1] < 24
    assert list(folder.glob("checkpoints/aside/*-step-000000024.pt"))
    done = train(*flags, ranks=RANKS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert compare(undisturbed, folder) == []


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.parametrize("size", ["16k", "64k", "1m"])
def test_shared_memory_that_is_too_small_for_the_workers(
    tmp_path: Path, photos: Path, size: str
) -> None:
    """As in a container, where it has 64 MiB: one line with the remedy, and no wait for an hour."""
    own = ["unshare", "--mount", "bash", "-c", 'mount -t tmpfs -o size=$0 tmpfs /dev/shm && "$@"']
    if subprocess.run([*own, size, "true"], capture_output=True).returncode:
        pytest.skip("may not mount a tmpfs here")
    flags = flags_of(photos, "shm", "--data.source", "torchvision", "--data.prefetch-batches", "64",
                     "--data.threads", "2", "--train.global-batch", "50")  # fmt: skip
    done = subprocess.run([*own, size, *launcher(1), TRAIN, *flags], cwd=tmp_path, text=True,
                          capture_output=True, timeout=60)  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.endswith("make /dev/shm larger: docker --shm-size 8g, or mount -o "
                         "remount,size=8g /dev/shm")  # fmt: skip


@pytest.mark.host
@pytest.mark.parametrize(
    ("size", "goes_on_from"),
    [
        pytest.param("3m", "step-000000005.pt", marks=pytest.mark.slow),
        pytest.param(
            "1m",
            "the start, as no checkpoint could be written either",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_disk_that_is_full_at_the_end(
    tmp_path: Path, icons: Path, finished_run: Path, size: str, goes_on_from: str
) -> None:
    """All is trained, and with more room the same command finishes."""
    with small_disk(tmp_path / "disk", size) as disk:
        flags = [*icons_flags(icons), "--run.root", str(disk)]
        folder = disk / "icons-s0"
        done = train(*flags, cwd=tmp_path)
        assert done.returncode == 1
        *_, last = done.stderr.splitlines()
        assert last.startswith(f"error: {folder}: No space left on device: all is trained, but ")
        assert last.endswith(goes_on_from)
        assert (folder / "state").read_text() == "failed\n"
        assert json.loads((folder / "failure.json").read_text())["message"] in last
        assert not (folder / "result.json").exists()
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        done = train(*flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert attempts(folder)[1]["from_step"] == (5 if size == "3m" else 0)
        assert compare(finished_run, folder) == []
        assert not (folder / "stacks").exists()
