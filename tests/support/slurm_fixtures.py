"""Fixtures of the Slurm tests, as a pytest plugin: one cluster for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from slurm_cluster import Cluster, cluster, missing


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """Four nodes, whose GPUs and cores nobody checks; skips where there can be none."""
    if lack := missing():
        pytest.skip(f"no Slurm: {lack}")
    with cluster() as running:
        yield running
