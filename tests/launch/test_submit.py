"""launch/submit.py as far as no Slurm is needed: words, plans, verdicts, and the local executor."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import ROOT, TINY, train, wait_for_rows
from ranks import python

from harness.config import load
from harness.doctor.chaos.compare import compare
from harness.errors import BadInput
from launch import ending, options, sweep
from launch.ending import Limits, Note

SUBMIT = str(ROOT / "launch" / "submit.py")
DATA = ("--data.train", "train", "--data.val", "val", "--train.global-batch", "32")
STAMP = "20260102-030405"


def submit(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return python(SUBMIT, *words, cwd=cwd)


# words


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("8h", 480), ("90m", 90), ("1h30m", 90), ("1.5h", 90), ("2d", 2880), ("1d12h", 2160),
        ("45s", 1), ("90", 90), ("30:30", 31), ("8:00:00", 480), ("1-0", 1440), ("1-12:30", 2190),
        ("1-00:00:00", 1440), ("2-01:00:30", 2941),
    ],
)  # fmt: skip
def test_times_as_people_and_slurm_write_them(text: str, minutes: int) -> None:
    assert options.minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "0", "0h", "h", "8x", "1:2:3:4", "1-2:3:4:5", "-5", "8 h"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no time; write 8h, 90m or"):
        options.minutes(text)


def test_sbatch_gets_what_was_asked() -> None:
    words = "--nodes 4 --time 8h --partition gpu --qos long --slurm reservation=may --slurm hold"
    asked, settings = options.parse([*words.split(), "--data.train", "x", "--optim.momentum", "-1"])
    assert settings == ["--data.train", "x", "--optim.momentum", "-1"]
    assert options.parameters(asked) == {
        "nodes": 4, "ntasks_per_node": 8, "gpus_per_node": 8, "exclusive": True, "mem": "0",
        "time": 480, "signal_delay_s": 120, "partition": "gpu", "qos": "long",
        "additional_parameters": {"requeue": True, "reservation": "may", "hold": True},
    }  # fmt: skip
    shared = "--gpus-per-node 0 --tasks-per-node 3 --cpus-per-task 2"
    assert options.parameters(options.parse(shared.split())[0]) == {
        "nodes": 1, "ntasks_per_node": 3, "cpus_per_task": 2, "time": 1440, "signal_delay_s": 120,
        "additional_parameters": {"requeue": True},
    }  # fmt: skip


# plans


def plan(*words: str, sweeps: tuple[str, ...] = (), seeds: int = 1) -> sweep.Plan:
    return sweep.plan(
        [str(ROOT / "configs/resnet50_90ep.yaml"), *DATA, *words], sweeps, seeds, STAMP
    )


def names(of: sweep.Plan) -> list[str | None]:
    return [config.run.name for config in of.runs]


def test_the_time_is_in_the_name_of_a_submission_not_of_its_run() -> None:
    of = plan()
    assert names(of) == ["resnet50_90ep-s0"]
    assert of.folder == Path(f"runs/_submitted/resnet50_90ep-s0-{STAMP}")
    named = plan("--run.name", "mine", "--run.root", "there")
    assert names(named) == ["mine"]
    assert named.folder == Path(f"there/_submitted/mine-{STAMP}")


def test_seeds_and_values_make_every_combination() -> None:
    of = plan("--run.seed=3", sweeps=("optim.lr-per-256=0.05,0.1",), seeds=2)
    assert of.name == f"resnet50_90ep-{STAMP}"
    assert names(of) == [
        f"resnet50_90ep-s{seed}-lr_per_256-{lr}" for lr in ("0.05", "0.1") for seed in (3, 4)
    ]
    assert [(c.optim.lr_per_256, c.run.seed) for c in of.runs] == [
        (0.05, 3), (0.05, 4), (0.1, 3), (0.1, 4)
    ]  # fmt: skip
    assert names(plan("--run.name", "mine", seeds=2)) == ["mine-s0", "mine-s1"]


def test_values_that_are_lists_are_parted_by_semicolons() -> None:
    of = plan(sweeps=("schedule.drop_epochs=30,60;40,80",))
    assert [config.schedule.drop_epochs for config in of.runs] == [(30, 60), (40, 80)]
    with pytest.raises(BadInput, match="is a list; separate its values with ;"):
        plan(sweeps=("schedule.drop-epochs=30,60",))


@pytest.mark.parametrize(
    ("sweeps", "says"),
    [
        (("optim.lr-per-256=0.1,abc",), "--optim.lr-per-256: expected number, got abc"),
        (("optim.lr-per-257=0.1",), "--optim.lr-per-257: no such flag; did you mean --optim.lr-p"),
        (("optim.lr-per-256",), "--sweep optim.lr-per-256: write it as section.key=VALUE,VALUE"),
        (("run.seed=1,2", "run.seed=3"), "run.seed: is varied twice"),
        (("run.name=a,b",), "run.name: runs are named by the varied settings"),
        (("optim.momentum=0.9,0.9",), "gives the same run twice"),
        (("optim.momentum=0.9,0",), "optim.nesterov: needs optim.momentum over 0"),
    ],
)
def test_every_run_of_a_sweep_is_checked(sweeps: tuple[str, ...], says: str) -> None:
    with pytest.raises(BadInput) as refused:
        plan("--optim.nesterov", "true", sweeps=sweeps)
    assert says in str(refused.value)


# the command


def test_a_dry_run_shows_the_script_and_writes_nothing(tmp_path: Path) -> None:
    words = (
        "--nodes",
        "2",
        "--partition",
        "gpu",
        "--time",
        "8h",
        "--seeds",
        "3",
        "--parallel",
        "2",
    )
    done = submit(*words, "--train.global-batch", "32", "--dry-run", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []
    lines = done.stdout.splitlines()
    for line in ("--array=0-2%2", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8",
                 "--time=480", "--signal=USR2@120", "--requeue", "--open-mode=append"):  # fmt: skip
        assert f"#SBATCH {line}" in lines
    (srun,) = [line for line in lines if line.startswith("srun ")]
    assert " --kill-on-bad-exit=1 " in srun
    assert " -m submitit.core._submit " in srun
    assert "job: JOB: 3 runs on 2 nodes x 8 GPUs, up to 8 h 00 min at a time" in done.stdout
    runs = [line.split(": ")[1] for line in lines if line.strip().startswith("run:")]
    assert runs == [f"runs/quickstart-s{n}" for n in range(3)]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("nope.yaml", "nope.yaml: No such file or directory; give a config file, see configs/"),
        ("--optim.momentum x", "--optim.momentum: expected number, got x"),
        (
            "--seeds 2 --sweep optim.lr-per-256=1,-1",
            "--optim.lr-per-256: must be greater than 0, got -1",
        ),
        ("--nodes 3", "train.global_batch: 100 does not divide over 24 ranks; use 96 or 120"),
        ("--nodse 3", "--nodse: no such option; did you mean --nodes?"),
        ("--time 8x", "--time: '8x' is no time; write 8h, 90m or 1-12:00:00"),
        ("--time 1m", "--signal-delay-s: a job of 1 min cannot be told to save 120 s before its"),
        ("--tasks-per-node 2", "--tasks-per-node: there is one rank per GPU; without GPUs add"),
        (
            "--gpus-per-node 1 --run.dry-run",
            "run.dry_run: --dry-run shows the plan and submits nothing",
        ),
        (
            "--gpus-per-node 1 --local --nodes 2",
            "--local: runs on this machine only; leave out --nodes",
        ),
        (
            "--gpus-per-node 1",
            "sbatch: not found; submit on a login node, or run on this machine with --local",
        ),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, says: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no sbatch here
    done = submit(*words.split(), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {says}")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("program", ["check.py", "submit.py"])
def test_a_folder_that_holds_another_run_is_refused_before_anything_is_queued(
    tmp_path: Path, program: str
) -> None:
    held = tmp_path / "runs" / "quickstart-s0"
    held.mkdir(parents=True)
    (held / "config.yaml").write_text(load.dump(load.load(["--optim.lr-per-256", "0.3"])))
    words = ["--dry-run", "--gpus-per-node", "1"] if program == "submit.py" else []
    there = ROOT / "launch" / program
    done = python(there, *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: runs/quickstart-s0: holds a run with another optim.lr_per_256 (0.3 there, 0.256 "
        "here); choose another --run.name, or --run.restart to move it aside\n"
    )
    for more in (["--optim.lr-per-256", "0.3"], ["--run.name", "mine"], ["--run.restart"]):
        assert python(there, *more, *words, cwd=tmp_path).returncode == 0, more


def test_submitting_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from launch.submit import submit; "
        "submit(['--dry-run', '--gpus-per-node', '1']); assert 'torch' not in sys.modules"
    )
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, check=True)


# the end of a job

RUNNING = {"JobState": "RUNNING", "Restarts": "1", "PreemptTime": "None"}
PREEMPTED = RUNNING | {"PreemptTime": "2026-01-02T03:04:05"}
LIMITS = Limits(restarts=3, requeues=10)


def stopped(by: signal.Signals) -> Note:
    return Note(0, "node1", 128 + by, "stopped", signal=by)


BROKE = Note(3, "node2", 1, "RuntimeError: connection reset by peer")
REFUSED = Note(0, "node1", 2, "data.train: no such folder", known=True)
NOT_FINITE = Note(1, "node1", 1, "loss is not finite", known=True)


@pytest.mark.parametrize(
    ("code", "note", "job", "failures", "again"),
    [
        (0, None, RUNNING, 0, False),
        (140, stopped(signal.SIGUSR2), RUNNING, 9, True),
        (138, stopped(signal.SIGUSR1), RUNNING, 0, True),
        (143, stopped(signal.SIGTERM), PREEMPTED, 0, True),
        (143, stopped(signal.SIGTERM), RUNNING, 0, False),
        (130, stopped(signal.SIGINT), RUNNING, 0, False),
        (129, stopped(signal.SIGHUP), RUNNING, 0, False),
        (140, None, RUNNING, 0, True),  # too early for a note
        (140, stopped(signal.SIGUSR2), {"JobState": "CANCELLED"}, 0, False),
        (143, stopped(signal.SIGTERM), {"JobState": "PENDING"}, 0, False),
        (140, stopped(signal.SIGUSR2), RUNNING | {"Restarts": "10"}, 0, False),
        (137, None, RUNNING, 0, True),
        (1, BROKE, RUNNING, 2, True),
        (1, BROKE, RUNNING, 3, False),
        (1, BROKE, PREEMPTED, 3, True),
        (2, REFUSED, RUNNING, 0, False),
        (1, NOT_FINITE, PREEMPTED, 0, False),
        (1, BROKE, {}, 0, False),  # Slurm does not answer
        (140, stopped(signal.SIGUSR2), RUNNING | {"Requeue": "0"}, 0, False),
    ],
)
def test_who_goes_back_into_the_queue(
    code: int, note: Note | None, job: dict[str, str], failures: int, again: bool
) -> None:
    assert ending.decide(code, note, job, failures, LIMITS).again is again


def test_the_first_rank_leaves_the_note(tmp_path: Path) -> None:
    path = ending.note_path(tmp_path, "12_3", 1)
    assert ending.read_note(path) is None
    assert ending.write_note(path, BROKE)
    assert not ending.write_note(path, REFUSED)
    assert ending.read_note(path) == BROKE
    path.write_text('{"rank": 1, "ho')
    assert ending.read_note(path) is None


NEAR = {"StartTime": "2026-01-02T03:04:00", "EndTime": "2026-01-02T03:06:00"}
FAR = NEAR | {"EndTime": "2026-01-03T03:04:00"}


@pytest.mark.parametrize(
    ("job", "after_s", "again"),
    [
        (NEAR, 5, False),  # two minutes, of which the last two are to save
        (NEAR, 29, False),
        (NEAR, 31, True),  # --signal=...@60 comes as early
        (NEAR | {"PreemptTime": "2026-01-02T03:04:03"}, 5, True),
        (FAR, 5, True),  # by somebody's hand
        (FAR | {"Restarts": "3"}, 5, False),
        (FAR | {"Restarts": "3"}, 3600, True),
        (NEAR | {"EndTime": "Unknown"}, 5, True),
        ({}, 5, True),
    ],
)
def test_a_time_limit_that_leaves_no_time_to_train_is_told_and_not_tried_again(
    job: dict[str, str], after_s: float, again: bool
) -> None:
    signaled_at = time.mktime((2026, 1, 2, 3, 4, 0, 0, 0, -1)) + after_s
    note = replace(stopped(signal.SIGUSR1), at=signaled_at)
    verdict = ending.decide(1, note, RUNNING | {"Restarts": "0"} | job, 0, LIMITS)
    assert verdict.again is again
    assert ("give a longer --time" in verdict.why) is not again
    assert verdict.code == (1 if again else 2)


@pytest.mark.parametrize(
    ("state", "fresh", "signals", "job", "expected"),
    [
        ("finished", False, 1, RUNNING, (0, False, "")),
        ("stopped", True, 0, RUNNING, (1, True, "stopped: back into the queue")),
        ("stopped", False, 0, RUNNING, (1, False, "not begun")),  # by an earlier start
        (None, True, 0, RUNNING, (1, False, "not begun")),
        (None, True, 1, RUNNING, (1, True, "stopped: back")),  # before it could save
        ("running", True, 1, RUNNING, (1, True, "stopped: back")),
        ("running", True, 0, RUNNING, (1, False, "was it killed")),
        ("failed", True, 0, RUNNING, (1, False, "failed")),
        ("stopped", True, 0, {"JobState": "CANCELLED"}, (1, False, "by Slurm (CANCELLED)")),
        ("stopped", True, 0, {"JobState": "PENDING"}, (1, False, "by Slurm (PENDING)")),
        ("stopped", True, 0, RUNNING | {"Restarts": "10"}, (1, False, "requeued 10 times")),
    ],
)
def test_the_state_decides_for_a_script(
    state: str | None, fresh: bool, signals: int, job: dict[str, str],
    expected: tuple[int, bool, str], tmp_path: Path, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = "none"
    if state is not None:
        (tmp_path / "state").write_text(f"{state}\n")
        stat = ["stat", "-c", "%i %.9Y", str(tmp_path / "state")]  # as slurm/common.sh
        before = subprocess.run(stat, capture_output=True, text=True, check=True).stdout.strip()
    if fresh and state is not None:
        (tmp_path / "new").write_text(state)
        (tmp_path / "new").replace(tmp_path / "state")
    code, again = ending._end_script(tmp_path, before, signals, ending.Job("12", 0, job), LIMITS)
    printed = "".join(capfd.readouterr())
    assert (code, again) == expected[:2]
    assert expected[2] in printed


# the local executor


@pytest.mark.slow
def test_a_local_run_saves_goes_on_and_ends_as_under_torchrun(tmp_path: Path, photos: Path) -> None:
    flags = [
        *TINY,
        "--data.train",
        str(photos),
        "--data.val",
        str(photos),
        "--schedule.epochs",
        "6",
    ]
    flags += ["--train.global-batch", "12", "--eval.local-batch", "16", "--log.every-steps", "4"]
    flags += ["--engine.bucket-mb", "0.1"]
    done = train(*flags, "--run.name", "plain", ranks=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    words = ["--local", "--gpus-per-node", "0", "--tasks-per-node", "2", "--run.name", "submitted"]
    log = tmp_path / "log"
    with log.open("w") as file:
        here = subprocess.Popen(
            [sys.executable, SUBMIT, *flags, *words], cwd=tmp_path, stdout=file, stderr=file
        )
    rows = tmp_path / "runs" / "submitted" / "rows.jsonl"
    while here.poll() is None and not (rows.exists() and rows.stat().st_size):
        time.sleep(0.1)
    owner = json.loads((rows.parent / "lease.json").read_text())
    os.kill(owner["pid"], signal.SIGUSR2)  # rank 0 alone
    assert here.wait(timeout=240) == 0, log.read_text()
    assert ": stopped by SIGUSR2 at step" in log.read_text()
    assert compare(tmp_path / "runs" / "plain", tmp_path / "runs" / "submitted") == []


@pytest.mark.slow
def test_a_terminal_that_dies_stops_a_local_run_but_not_under_nohup(tmp_path: Path) -> None:
    """SIGHUP to submit.py alone; then to its whole group, as a terminal sends it, twice."""
    words = [*TINY, "--data.source", "synthetic", "--train.global-batch", "8", "--log.every-steps",
             "1", "--schedule.epochs", "1000", "--local", "--gpus-per-node", "0",
             "--tasks-per-node", "1", "--seeds", "2"]  # fmt: skip
    for name, nohup, kill in (("hup", [], os.kill), ("group", [], os.killpg),
                              ("nohup", ["nohup"], os.killpg)):  # fmt: skip
        with (tmp_path / name).open("w") as file:
            job = subprocess.Popen(
                [*nohup, sys.executable, SUBMIT, *words, "--run.name", name], cwd=tmp_path,
                stdout=file, stderr=file, process_group=0,
                preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
            )  # fmt: skip
        folder = tmp_path / "runs" / f"{name}-s0"
        wait_for_rows(folder, job)
        kill(job.pid, signal.SIGHUP)
        if nohup:
            wait_for_rows(folder, job, 2 + (folder / "rows.jsonl").read_bytes().count(b"\n"))
            job.send_signal(signal.SIGTERM)
        else:
            time.sleep(0.1)
            kill(job.pid, signal.SIGHUP)
        assert job.wait(60) == (143 if nohup else 129), (tmp_path / name).read_text()
        assert (folder / "state").read_text() == "stopped\n"
        assert not folder.with_name(f"{name}-s1").exists(), "the next seed does not start"
