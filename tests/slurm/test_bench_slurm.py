"""Benches over several nodes of a real Slurm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import ROOT, TINY
from slurm_cluster import Cluster

pytest_plugins = ["slurm_fixtures"]
pytestmark = pytest.mark.slurm

CONFIG = ROOT / "configs" / "quickstart.yaml"


def test_scaling_over_two_nodes(slurm: Cluster, tmp_path: Path) -> None:
    words = (*TINY, "--data.source", "synthetic", "--train.global-batch", "16")
    job = slurm.submit(
        ROOT / "slurm" / "scaling.sh", CONFIG, *words, "--minutes", "2", "--ranks", "1,4",
        options=("--nodes=2",), cwd=tmp_path, environ={"NPROC_PER_NODE": "2"},
    )  # fmt: skip
    assert slurm.wait(job) == "COMPLETED", slurm.log(job)
    report = json.loads((tmp_path / f"bench/scaling-{job}/scaling.json").read_text())
    assert {cell["ranks"] for cell in report["cells"]} == {1, 4}
    assert all(cell["rates"] and not cell["failed"] for cell in report["cells"])
    assert set(report["efficiency"]) == {"weak", "strong"}
    assert "4 ranks do" in slurm.log(job)
    page = (tmp_path / f"bench/scaling-{job}/scaling.html").read_text()
    assert "<svg" in page
    assert "<script" not in page


def test_the_ladder_over_two_nodes(slurm: Cluster, tmp_path: Path) -> None:
    words = (*TINY, "--data.source", "synthetic", "--train.global-batch", "16")
    job = slurm.submit(
        ROOT / "slurm" / "bench.sh", CONFIG, *words, "--minutes", "0.2",
        options=("--nodes=2",), cwd=tmp_path, environ={"NPROC_PER_NODE": "1"},
    )  # fmt: skip
    assert slurm.wait(job) == "COMPLETED", slurm.log(job)
    ladder = json.loads((tmp_path / f"bench/ladder-{job}/ladder.json").read_text())
    rungs = {rung["name"]: rung for rung in ladder["rungs"]}
    assert rungs["all-reduce"]["images_per_second"] > 0
    assert rungs["+ DDP"]["images_per_second"] > 0
    assert rungs["loader"]["missing"] == "data.source is synthetic"
    assert slurm.log(job).count("change first: ") == 1
