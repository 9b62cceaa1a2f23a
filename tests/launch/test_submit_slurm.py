"""launch/submit.py on a real Slurm: whatever befalls a job, it ends as one under torchrun."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import TINY, train
from slurm_cluster import Cluster
from submit_fates import FATES, LIMIT, SUBMIT, Job, reach_limit, submit

from harness.doctor.chaos.compare import compare

pytest_plugins = ["slurm_fixtures"]
pytestmark = pytest.mark.slurm
TERMS = [
    *TINY,
    *("--train.global-batch", "12", "--eval.local-batch", "16", "--log.every-steps", "4"),
    *("--engine.bucket-mb", "0.1", "--schedule.epochs", "12"),
]
"""96 steps of 4 ranks, with several buckets of gradients."""
ON_TWO_NODES = ["--nodes", "2", "--gpus-per-node", "0", "--tasks-per-node", "2"]


@pytest.fixture(scope="module", autouse=True)
def _no_look(slurm: Cluster) -> None:
    """The nodes here claim GPUs that are not there."""
    slurm.environ["HARNESS_PREFLIGHT"] = "off"


@pytest.fixture(scope="module")
def flags(photos: Path) -> list[str]:
    data = ["--data.train", str(photos), "--data.val", str(photos)]
    return [*TERMS, *data]


@pytest.fixture(scope="module")
def cwd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("submit")


@pytest.fixture(scope="module")
def undisturbed(cwd: Path, flags: list[str]) -> Path:
    """The run folder of the same under torchrun, without a Slurm."""
    done = train(*flags, "--run.name", "undisturbed", ranks=4, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "runs" / "undisturbed"


def assert_the_same(undisturbed: Path, job: Job) -> None:
    assert job.slurm.wait(job.name) == "COMPLETED", job.printed()[-3000:]
    assert compare(undisturbed, job.run) == []


def test_a_job_outlives_whatever_befalls_it(
    slurm: Cluster, cwd: Path, flags: list[str], undisturbed: Path
) -> None:
    half = [*flags, *ON_TWO_NODES, "--cpus-per-task", "2", "--slurm"]

    def run_into_limit() -> Job:
        (limited,) = submit(slurm, cwd, *half, "exclude=node[1-2]", *LIMIT, "--run.name", "limited")
        limited.wait_for_row(1)
        reach_limit(limited)
        return limited

    with ThreadPoolExecutor() as meanwhile:
        future = meanwhile.submit(run_into_limit)
        (job,) = submit(slurm, cwd, *half, "exclude=node[3-4]", "--run.name", "outlives")
        run_ids = set()
        for attempt, befalls in enumerate(FATES.values(), start=1):
            job.wait_for_row(attempt)
            run_ids.add((job.run / "run_id").read_text())
            befalls(job)
        limited = future.result()
    assert_the_same(undisturbed, limited)
    assert len(limited.attempts) > 1
    assert "stopped by SIGUSR2" in limited.printed()
    assert_the_same(undisturbed, job)
    assert {(job.run / "run_id").read_text()} == run_ids
    assert [each["attempt"] for each in job.attempts] == list(range(1, len(FATES) + 2))
    assert "restart 1 of 3" in job.printed()


def test_an_array_has_a_run_for_each_seed_and_who_is_cancelled_stays_out(
    slurm: Cluster, cwd: Path, flags: list[str], undisturbed: Path
) -> None:
    first, second = submit(slurm, cwd, *flags, *ON_TWO_NODES, "--seeds", "2")
    second.wait_for_row(1)
    slurm.output("scancel", second.name)
    assert slurm.wait(second.name) == "CANCELLED"
    assert_the_same(undisturbed, first)
    assert slurm.state(second.name) == "CANCELLED"
    assert "back into the queue" not in second.printed()


def test_what_only_a_node_can_find_wrong_fails_the_job_once(
    slurm: Cluster, cwd: Path, flags: list[str]
) -> None:
    nowhere = ("--data.train", "/not/there", "--run.name", "nowhere")
    (job,) = submit(slurm, cwd, *flags, *ON_TWO_NODES, *nowhere)
    assert slurm.wait(job.name) == "FAILED"
    assert "/not/there: No such file or directory; give a folder" in job.printed()
    assert job.printed().splitlines()[-3].endswith(": would end the same way again")
    assert (
        slurm.output("sacct", "-X", "-D", "-n", "-P", "-j", job.name, "-o", "ExitCode") == "2:0\n"
    )


def test_the_doctor_looks_at_the_nodes_first_and_a_red_one_fails_the_job_once(
    slurm: Cluster, cwd: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(slurm.environ, "HARNESS_PREFLIGHT", "on")
    monkeypatch.setitem(slurm.environ, "SBATCH_EXPORT", "NONE")
    words = [*flags, "--engine.device", "cpu", "--gpus-per-node", "0", "--schedule.epochs", "1"]
    nowhere = ["--data.train", "/not/there"]
    (good,) = submit(slurm, cwd, *words, "--nodes", "2", "--run.name", "seen")
    (red,) = submit(slurm, cwd, *words, "--nodes", "1", "--run.name", "red", *nowhere)
    assert slurm.wait(good.name) == "COMPLETED", good.printed()[-3000:]
    assert "2: as Slurm gave" in good.printed()
    assert slurm.wait(red.name) == "FAILED"
    printed = red.printed()
    assert "HARNESS_PREFLIGHT=off goes without it" in printed
    assert printed.splitlines()[-3].endswith(": would end the same way again")


def test_slurm_s_refusal_is_told_once_and_leaves_nothing(
    slurm: Cluster, tmp_path: Path, flags: list[str]
) -> None:
    words = [*flags, *ON_TWO_NODES, "--partition", "nope"]
    done = slurm.run(sys.executable, SUBMIT, *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.count("invalid partition specified: nope") == 1
    assert not list(tmp_path.rglob("*.*"))
