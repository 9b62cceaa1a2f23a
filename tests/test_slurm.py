"""The launch scripts on a real Slurm: several nodes on one machine, see minislurm.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from slurm_cluster import Cluster

pytest_plugins = ["slurm_fixtures"]
pytestmark = pytest.mark.slurm


def test_a_job_runs_on_several_nodes(slurm: Cluster, tmp_path: Path) -> None:
    script = tmp_path / "hello.sh"
    script.write_text("#!/bin/sh\nsrun --ntasks-per-node=1 hostname\n")
    job = slurm.submit(script, options=("--nodes=4", "--gpus-per-node=8"), cwd=tmp_path)
    assert slurm.wait(job) == "COMPLETED"
    assert sorted(slurm.log(job).split()) == ["node1", "node2", "node3", "node4"]
