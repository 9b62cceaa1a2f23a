"""Markers and fixtures of all tests.

Only tests marked `gpu` see this machine's GPUs, so that all others do the same on every machine.
One marked `gpu_too` is two tests: the same function on the CPU, and marked `gpu` on a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import harness  # noqa: F401  # isort: skip  (before torch: it says how OpenMP's threads wait)
import pytest
import torch
from helpers import draw_tree, icons_flags, see_gpus, small_disk, train
from hypothesis import settings

GPU = torch.cuda.is_available()
VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES")
DEFAULT = "not slow and not slurm"
ON_CPU = pytest.param("cpu", id=getattr(pytest, "HIDDEN_PARAM", "cpu"))  # since pytest 8.4
ON_GPU = pytest.param("cuda", marks=pytest.mark.gpu)

# Hypothesis' 200 ms for an example are over on any busy machine.
settings.register_profile("quick", deadline=None, max_examples=50)
settings.load_profile("quick")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run `python -m pytest`, without further words, in two processes; no test needs two cores.

    Not what is named, `-m slow` or `-m slurm`, which measure, share one Slurm, or start for less.
    """
    # A worker's own command line has no number of workers either.
    here = getattr(config.option, "numprocesses", 0) is None and not hasattr(config, "workerinput")
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.option.keyword
    if here and whole and config.option.markexpr == DEFAULT and not config.option.usepdb:
        config.option.numprocesses, config.option.dist = 2, "worksteal"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give tests their devices; the GPU's are left out where nobody could or wants to run them."""
    has = metafunc.definition.get_closest_marker
    if has("gpu_too") and not has("host"):
        if not (GPU or "gpu" in metafunc.config.option.markexpr):
            return
        devices = [ON_CPU, ON_GPU]
    elif has("gpu"):
        devices = [pytest.param("cuda", id=getattr(pytest, "HIDDEN_PARAM", "cuda"))]
    else:
        return
    metafunc.parametrize("device", devices, indirect=True, scope="module")


@pytest.fixture(autouse=True, scope="module")
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """What the test computes on. `device auto`, here and in commands, comes to the same."""
    type_ = getattr(request, "param", "cpu")
    with pytest.MonkeyPatch.context() as patch:
        if GPU and type_ == "cpu":
            see_gpus(patch, 0)
        elif GPU:
            if VISIBLE is None:
                patch.delenv("CUDA_VISIBLE_DEVICES")
            else:
                patch.setenv("CUDA_VISIBLE_DEVICES", VISIBLE)
            # Read when cuBLAS starts, in this process once.
            patch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        yield torch.device(type_)
    if type_ == "cuda":
        torch.use_deterministic_algorithms(False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run."""
    no_gpu = pytest.mark.skip(reason="no CUDA device")
    no_data = pytest.mark.skip(reason="HARNESS_SHARED_DATA is not set")
    for item in items:
        if item.get_closest_marker("gpu") and not GPU:
            item.add_marker(no_gpu)
        if item.get_closest_marker("shared_data") and "HARNESS_SHARED_DATA" not in os.environ:
            item.add_marker(no_data)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real images and published weights."""
    return Path(os.environ["HARNESS_SHARED_DATA"])


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the user's cache folder and the GPUs out of it; commands inherit this."""
    os.environ["HARNESS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    if GPU:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    else:  # inductor's worker processes compile for Triton only, and each imports torch
        os.environ["TORCH_WARM_POOL"] = "0"


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
