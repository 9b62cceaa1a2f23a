"""Slurm's names in torchrun's: who each task of a step is, and where the tasks meet."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import slurm

STEP = {
    "SLURM_JOB_ID": "812345",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_STEP_NODELIST": "gpu[07-09,12]",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "3",
}


def test_a_task_knows_its_rank_and_how_many_share_its_node() -> None:
    told = slurm.identity(STEP)
    assert told == {
        "RANK": "6",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "7",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": told["MASTER_PORT"],
    }
    other = STEP | {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}
    assert slurm.identity(other)["LOCAL_WORLD_SIZE"] == "2"
    assert slurm.identity(other)["MASTER_PORT"] == told["MASTER_PORT"]


@pytest.mark.parametrize(
    "more", [{"RANK": "0"}, {"SLURM_STEP_NUM_TASKS": "1"}], ids=["torchrun's names", "one task"]
)
def test_nothing_is_said_twice_or_needlessly(more: dict[str, str]) -> None:
    assert slurm.identity(STEP | more) == {}
    assert slurm.identity({}) == {}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,other2", "node1"),
        ("gpu[07-09,12],login1", "gpu07"),
        ("gpu[3,5-7]", "gpu3"),
        ("r[1-2]n[05-07]", "r1n05"),
        ("a-[2-4]-ib,b", "a-2-ib"),
        ("login1,gpu[07-09]", "login1"),
    ],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert slurm.first_host(nodes) == first


@given(st.lists(st.integers(1, 128), min_size=1, max_size=40))
def test_tasks_per_node_are_read_as_slurm_shortens_them(tasks: list[int]) -> None:
    runs: list[list[int]] = []
    for number in tasks:
        if runs and runs[-1][0] == number:
            runs[-1][1] += 1
        else:
            runs.append([number, 1])
    text = ",".join(f"{n}(x{times})" if times > 1 else str(n) for n, times in runs)
    assert slurm.tasks_per_node(text) == tasks


def test_jobs_steps_and_restarts_near_each_other_have_ports_of_their_own() -> None:
    def port(job: int, step: int, restart: int) -> int:
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        return slurm.port(dict(zip(names, map(str, (job, step, restart)), strict=True)))

    ports = [port(812345 + job, step, restart)
             for job in range(50) for step in range(3) for restart in range(4)]  # fmt: skip
    assert len(set(ports)) == len(ports)
    assert min(ports) >= 1024
    assert max(ports) < 32768, "the system gives ports from there on to anybody"


def test_a_port_that_is_taken_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        first = taken.getsockname()[1]
        assert slurm.free_port(first) > first
    command = [sys.executable, slurm.__file__]
    printed = subprocess.run(command, env=STEP, capture_output=True, text=True, check=True).stdout
    assert int(printed) >= slurm.port(STEP)
