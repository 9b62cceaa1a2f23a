"""Slurm's names in torchrun's: who each task of a step is, and where the tasks meet."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
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
    names = slurm.identity(STEP)
    assert names == {
        "RANK": "6",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "7",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": names["MASTER_PORT"],
    }
    other = STEP | {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}
    assert slurm.identity(other)["LOCAL_WORLD_SIZE"] == "2"
    assert slurm.identity(other)["MASTER_PORT"] == names["MASTER_PORT"]
    alone = STEP | {"SLURM_STEP_NODELIST": "gpu07", "SLURM_STEP_TASKS_PER_NODE": "7"}
    assert slurm.identity(alone | {"SLURM_NODEID": "0"})["MASTER_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize(
    "more", [{"RANK": "0"}, {"SLURM_STEP_NUM_TASKS": "1"}], ids=["torchrun's names", "one task"]
)
def test_nothing_is_said_twice_or_needlessly(more: dict[str, str]) -> None:
    assert slurm.identity(STEP | more) == {}
    assert slurm.identity({}) == {}


@pytest.mark.parametrize(
    ("nodes", "first", "last"),
    [
        ("node1", "node1", "node1"),
        ("node1,other2", "node1", "other2"),
        ("gpu[07-09,12],login1", "gpu07", "login1"),
        ("gpu[3,5-7]", "gpu3", "gpu7"),
        ("r[1-2]n[05-07]", "r1n05", "r2n07"),
        ("a-[2-4]-ib,b", "a-2-ib", "b"),
        ("login1,gpu[07-09]", "login1", "gpu09"),
    ],
)
def test_the_first_and_the_last_host_of_a_list(nodes: str, first: str, last: str) -> None:
    assert slurm.end_hosts(nodes) == (first, last)


def own_address() -> tuple[str, str]:
    """An interface of this machine that is no loopback, and its address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        addresses = {name: slurm.address(probe, name) for _, name in socket.if_nameindex()}
    found = [(name, own) for name, own in addresses.items() if own and name != "lo"]
    return found[0] if found else pytest.skip("no network here")


def test_gloo_gets_the_interface_to_the_other_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    name, own = own_address()
    assert slurm.interface_to(own) == name
    assert slurm.interface_to("127.0.0.1") == "lo"
    assert slurm.interface_to("no-such-host.invalid") == ""

    monkeypatch.setattr(slurm, "interface_to", {"gpu07": "ib0", "gpu12": "ib1", "a1": "lo"}.get)
    assert slurm.network(STEP) == {"GLOO_SOCKET_IFNAME": "ib0"}
    assert slurm.identity(STEP)["GLOO_SOCKET_IFNAME"] == "ib0"
    assert slurm.network(STEP | {"SLURM_NODEID": "0"}) == {"GLOO_SOCKET_IFNAME": "ib1"}, "not to me"
    assert slurm.network(STEP | {"GLOO_SOCKET_IFNAME": "eth9"}) == {}, "as it is set"
    assert slurm.network(STEP | {"SLURM_STEP_NODELIST": "gpu07"}) == {}, "nobody else"
    assert slurm.network(STEP | {"SLURM_STEP_NODELIST": "a[1-2]"}) == {}, "a small Slurm's"
    assert slurm.network({}) == {}


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


SRUN = """#!/usr/bin/env bash
# Starts its command here, as srun does on each node.
while [[ $1 == -* ]]; do shift; done
exec "$@"
"""


def test_a_job_goes_on_when_its_log_is_full() -> None:
    script = f"""
        set -euo pipefail
        source {ROOT}/slurm/common.sh
        ulimit -n 1000
        check_limits
        echo "job 12"
    """
    with open("/dev/full", "w") as full:
        assert subprocess.run(["bash", "-c", script], stdout=full, stderr=full).returncode == 0


def test_the_scripts_ask_torchrun_only_for_what_it_knows(tmp_path: Path) -> None:
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    (tmp_path / "rank.py").write_text("import os; open(os.environ['RANK'] + '.started', 'w')")
    script = f"""
        set -euo pipefail
        source {ROOT}/slurm/common.sh
        nproc=2
        set_variables
        run_step torchrun_on_each_node 3 {tmp_path}/rank.py
    """
    step = {"SLURM_JOB_NUM_NODES": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_CPUS_ON_NODE": "2"}
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environ = os.environ | step | {"PATH": path, "HARNESS_ENV": "/dev/null"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {path.stem for path in tmp_path.glob("*.started")} == {"0", "1"}
