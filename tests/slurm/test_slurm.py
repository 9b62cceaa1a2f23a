"""The launch scripts on a real Slurm: several nodes on one machine, see minislurm.py."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import pytest
from helpers import TRAIN, train
from slurm_cases import (
    CONFIG,
    DOCTOR,
    FLAGS,
    MULTI,
    ONE,
    RANKS,
    Place,
    attempts,
    cut,
    disturbed,
)  # fmt: skip
from slurm_cluster import Cluster, cluster
from wandb_standin import StandIn

from harness.config import load
from harness.doctor import nodes

pytest_plugins = ["slurm_fixtures", "wandb_fixtures"]
pytestmark = pytest.mark.slurm

SHORT = ("--schedule.epochs", "1", "--eval.every-epochs", "1")


@pytest.fixture(scope="module")
def place(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Place:
    slurm.environ["HARNESS_PREFLIGHT"] = "off"
    return Place(slurm, tmp_path_factory.mktemp("jobs"), photos)


@pytest.fixture(scope="module")
def calm(place: Place) -> Path:
    """The run that nobody disturbs, without Slurm."""
    done = train(CONFIG, *place.flags("calm"), ranks=RANKS, cwd=place.cwd)
    assert done.returncode == 0, done.stderr
    return place.folder("calm")


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize(
    ("script", "nodes", "nproc"), [(ONE, 1, 2), (MULTI, 3, 1)],
    ids=["one node of two processes", "three nodes with staged images"],
)  # fmt: skip
def test_every_rank_has_its_slice(
    place: Place, calm: Path, tmp_path: Path, script: Path, nodes: int, nproc: int
) -> None:
    staged = {"HARNESS_STAGE": str(tmp_path)} if nodes > 1 else {}
    options, name = (f"--nodes={nodes}", f"--nodelist=node[1-{nodes}]"), f"slices-{nodes}"
    if staged:  # nothing else of this shell: neither PATH nor HOME
        (tmp_path / "env.sh").write_text(f"export PATH={place.slurm.environ['PATH']}")
        staged["HARNESS_ENV"] = str(tmp_path / "env.sh")
        options += ("--export=HARNESS_STAGE,HARNESS_ENV,HARNESS_PREFLIGHT,NPROC_PER_NODE",)
    job = place.submit(script, name, *SHORT, options=options, nproc=nproc, **staged)
    assert place.slurm.wait(job) == "COMPLETED", place.slurm.log(job)
    folder = place.folder(name)
    ended = result(folder)
    assert ended["world_size"] == nodes * nproc
    assert ended["digests"] == result(calm)["digests"][:1]
    environment = json.loads((folder / "environment.json").read_text())
    hosts = {rank["hostname"] for rank in environment["ranks"]}
    assert hosts == {f"node{number}" for number in range(1, nodes + 1)}
    assert len(list((folder / "logs").iterdir())) == nodes * nproc - 1
    assert "Traceback" not in place.slurm.log(job)
    if staged:
        (copy,) = [path for path in tmp_path.iterdir() if path.is_dir()]
        data = load.load([str(folder / "config.yaml")]).data
        assert (data.train, data.val) == (str(copy), str(copy))


def assert_disturbed(place: Place, calm: Path, name: str, job: str, times: int) -> None:
    """The job went on after each disturbance, and ended in the same weights."""
    assert place.slurm.wait(job) == "COMPLETED", place.slurm.log(job)
    assert place.differences(calm, name) == []
    tries = attempts(place.folder(name))
    assert len(tries) >= times + 1, "the job was not disturbed"
    assert {each["slurm_job"] for each in tries} == {job}


def test_a_job_near_its_time_limit_ends_in_the_same_weights(place: Place, calm: Path) -> None:
    assert_disturbed(place, calm, "cut", cut(place, "cut"), 1)


def test_a_killed_rank_and_a_requeue_leave_the_same_weights(place: Place, calm: Path) -> None:
    job = disturbed(place, "disturbed", "rank_killed", "requeued")
    assert_disturbed(place, calm, "disturbed", job, 2)


def test_a_preempted_job_that_loses_a_node_ends_in_the_same_weights(
    calm: Path, place: Place, tmp_path: Path
) -> None:
    with cluster() as slurm:
        slurm.environ["HARNESS_PREFLIGHT"] = "off"
        own = Place(slurm, tmp_path, place.photos)
        job = disturbed(own, "lost", "preempted", "node_lost")
        assert_disturbed(own, calm, "lost", job, 2)
        assert "DUE TO NODE FAILURE" in slurm.log(job)


def test_a_preempted_run_is_one_run_in_wandb(place: Place, calm: Path, server: StandIn) -> None:
    options = ("--nodes=2",)
    flags = ("--log.wandb", "online")
    job = place.submit(MULTI, "mirrored", *flags, options=options, **server.environ())
    place.wait_for_rows("mirrored", job)
    place.slurm.output("scancel", "--batch", "--signal=USR1", job)
    assert place.slurm.wait(job) == "COMPLETED", place.slurm.log(job)
    ended = result(place.folder("mirrored"))
    assert (ended["attempt"], ended["wandb"]) == (2, "online")
    rows = (place.folder("mirrored") / "rows.jsonl").read_text().splitlines()
    steps = [json.loads(row)["step"] for row in rows]
    assert [row["progress/step"] for row in server.run(ended["run_id"]).history] == steps


def test_jobs_of_an_array_share_nodes_and_differ_in_their_seed(place: Place) -> None:
    options = ("--array=0-1", "--nodelist=node1,node2", "--oversubscribe")
    array = place.submit(MULTI, None, *SHORT, options=options)
    for seed in (0, 1):
        assert place.slurm.wait(f"{array}_{seed}") == "COMPLETED"
        folder = place.folder(f"resnet50_90ep-s{seed}")
        assert load.load([str(folder / "config.yaml")]).run.seed == seed
        assert result(folder)["world_size"] == 2


def test_tasks_without_torchrun_are_ranks_too(place: Place, calm: Path) -> None:
    """Two tasks on one node, one on the other."""
    words = " ".join(place.flags("tasks"))
    cores = "--cpus-per-task=2"
    step = f"srun --ntasks=3 {cores} python {TRAIN} {CONFIG} {words}"
    options = ("--nodes=2", "--ntasks=3", cores, "--gpus-per-node=8", "--parsable")
    job = place.slurm.run("sbatch", *options, f"--wrap={step}", cwd=place.cwd).stdout.strip()
    assert place.slurm.wait(job) == "COMPLETED", place.slurm.log(job)
    assert place.differences(calm, "tasks") == []


def test_a_task_takes_the_cores_that_slurm_gave_it(place: Place) -> None:
    free = ("--engine.threads", "0", "--data.threads", "0")
    words = " ".join(place.flags(None, *free, "--run.dry-run", "true"))
    steps = (f"srun --cpus-per-task={cpus} python {TRAIN} {CONFIG} {words}" for cpus in (1, 2))
    options = ("--ntasks=2", "--cpus-per-task=2", "--parsable", "--wait")
    done = place.slurm.run("sbatch", *options, f"--wrap={'; '.join(steps)}", cwd=place.cwd)
    log = place.slurm.log(done.stdout.strip())
    for cpus in (1, 2):
        here = min(cpus, len(os.sched_getaffinity(0)))
        assert f"{here} CPU threads per rank" in log, log
        assert f"decoded on cpu, {here} threads per rank" in log, log


def test_a_wrong_config_is_never_queued(place: Place) -> None:
    words = [*FLAGS, "--optim.lr-per-255", "1"]
    before = place.slurm.output("sacct", "-X", "-n")
    by_hand = place.slurm.run(ONE, "--time=10", *words, cwd=place.cwd)
    assert by_hand.returncode == 2
    assert by_hand.stderr.splitlines() == [
        "error: --optim.lr-per-255: no such flag; did you mean --optim.lr-per-256?"
    ]
    assert place.slurm.output("sacct", "-X", "-n") == before
    job = place.submit(ONE, "wrong", "--optim.lr-per-255", "1")  # who queues it all the same
    assert place.slurm.wait(job) == "FAILED"
    assert place.slurm.about(job)["ExitCode"] == "2:0"
    assert place.slurm.log(job) == by_hand.stderr


def test_what_sbatch_refuses_is_said_once(place: Place) -> None:
    by_hand = place.slurm.run(ONE, "--partition=gpu", *place.flags("refused"), cwd=place.cwd)
    assert by_hand.returncode == 1
    assert by_hand.stderr.count("invalid partition specified: gpu") == 1
    assert not place.folder("refused").exists()


def test_the_first_rank_that_failed_has_the_last_word(
    place: Place, icons: Path, tmp_path: Path
) -> None:
    data = copytree(icons, tmp_path / "data", ignore=ignore_patterns(".*"))
    torn = data / "class2" / "0012.png"
    torn.write_bytes(torn.read_bytes()[:-60])
    flags = ("--data.train", str(data), "--data.val", str(icons), "--data.augment", "pad_crop")
    options = ("--nodes=3",)
    job = place.submit(MULTI, "torn", *flags, options=options, HARNESS_MAX_RESTARTS="0")
    assert place.slurm.wait(job) == "FAILED"
    failure = json.loads((place.folder("torn") / "failure.json").read_text())
    log = place.slurm.log(job)
    last = log.splitlines()[-1]
    assert last.startswith(f"rank {failure['rank']} on {failure['host']} failed first: ")
    assert f"{torn}: sample " in last
    assert [line.startswith("error: ") for line in log.splitlines()].count(True) == 1
    if failure["rank"] > 0:
        assert f"end of runs/torn/logs/rank_{failure['rank']}.log:" in log


def test_a_cancelled_job_is_not_queued_again_and_the_same_command_goes_on(place: Place) -> None:
    name, command = "resnet50_90ep-s7", ("--run.seed", "7", "--schedule.epochs", "300")
    job = place.submit(ONE, None, *command, nproc=2)
    place.wait_for_rows(name, job)
    place.slurm.output("scancel", job)
    while place.slurm.output("squeue", "--noheader", f"--jobs={job}"):  # its ranks still save
        time.sleep(0.5)
    about = place.slurm.about(job)
    assert (about["JobState"], about["Restarts"]) == ("CANCELLED", "0")
    again = place.submit(ONE, None, *command, nproc=2)
    place.wait_for_rows(name, again, attempt=2)
    second = place.submit(ONE, None, *command, nproc=2)
    assert place.slurm.wait(second) == "FAILED"
    (line,) = place.slurm.log(second).splitlines()
    assert line.startswith(f"error: runs/{name}: pid ")
    assert f"(Slurm job {again}) has been working in it since " in line
    place.slurm.output("scancel", again)
    assert [each["slurm_job"] for each in attempts(place.folder(name))] == [job, again]


def test_a_node_without_its_gpus_is_told_of_and_not_trained_on(place: Place) -> None:
    """Slurm gave eight that torch does not see: the devices are fake."""
    flags = ("--engine.device", "auto")
    job = place.submit(
        MULTI, "missing", *flags, nproc=1, options=("--nodes=2",), HARNESS_PREFLIGHT="on"
    )
    assert place.slurm.wait(job) == "FAILED"
    log = place.slurm.log(job)
    assert "0 of 8 expected" in log
    assert log.splitlines()[-1] == f"job {job}: not begun"
    assert not place.folder("missing").exists()


def test_the_doctor_looks_at_each_node_by_itself_and_is_red_where_gpus_are_missing(
    place: Place,
) -> None:
    job = place.submit(DOCTOR, None, options=("--nodelist=node[1-2]", "--gpus-per-node=0"))
    auto = ("--engine.device", "auto")
    missing = place.submit(DOCTOR, None, *auto, options=("--nodelist=node[3-4]",))
    state, log = place.slurm.wait(job), place.slurm.log(job)
    reports = [nodes.read(place.cwd / f"doctor-{job}" / f"node{n}.json") for n in (1, 2)]
    assert [[node.host for node in report] for report in reports] == [["node1"], ["node2"]]
    red = "red" in {check.status for report in reports for node in report for check in node.checks}
    assert state == ("FAILED" if red else "COMPLETED"), log
    assert "node1" in log
    assert "node2" in log
    assert place.slurm.wait(missing) == "FAILED"
    lines = [line for line in place.slurm.log(missing).splitlines() if "0 of 8 expected" in line]
    assert [line.split(": ")[:2] for line in lines] == [["red", "node3"], ["red", "node4"]]
