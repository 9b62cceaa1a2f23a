"""Markers and fixtures of all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import harness  # noqa: F401  # isort: skip  (before torch: it says how OpenMP's threads wait)
import pytest
import torch
from helpers import draw_tree, icons_flags, small_disk, train


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run."""
    no_gpu = pytest.mark.skip(reason="no CUDA device")
    no_data = pytest.mark.skip(reason="HARNESS_SHARED_DATA is not set")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(no_gpu)
        if item.get_closest_marker("shared_data") and "HARNESS_SHARED_DATA" not in os.environ:
            item.add_marker(no_data)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real images and published weights."""
    return Path(os.environ["HARNESS_SHARED_DATA"])


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the user's cache folder out of it; commands inherit this."""
    os.environ["HARNESS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """101 JPEGs in 4 classes, 60 to 160 px, wide and tall, some too wide for any crop."""
    root = tmp_path_factory.mktemp("photos")
    sizes = [(160, 90), (90, 160), (101, 101), (160, 30), (60, 80), (130, 125)]
    draw_tree(root, classes=4, per_class=25, size=lambda k: sizes[k % 6], suffix=".jpg")
    draw_tree(root, classes=1, per_class=1, size=lambda k: (77, 143), suffix=".jpeg")
    return root


@pytest.fixture(scope="session")
def icons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 PNGs in 5 classes of 32 px: CIFAR's shape."""
    root = tmp_path_factory.mktemp("icons")
    return draw_tree(root, classes=5, per_class=10, size=lambda k: (32, 32), suffix=".png")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, icons: Path) -> Path:
    """Folder of a run that has finished, `runs/icons-s0`; tests copy it, and leave it as it is."""
    cwd = tmp_path_factory.mktemp("finished")
    done = train(*icons_flags(icons), cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "runs" / "icons-s0"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    with small_disk(tmp_path / "disk", "2m") as where:
        yield where
