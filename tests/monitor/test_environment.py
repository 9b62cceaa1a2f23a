from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness.data import dali_info
from harness.monitor import environment as env
from harness.monitor.environment import driver_version, environment, git_state, host_facts

SECRETS = {
    "WANDB_API_KEY": "planted-wandb",
    "HF_TOKEN": "planted-hf",
    "AWS_SECRET_ACCESS_KEY": "planted-aws",
    "NCCL_SECRET": "planted-nccl",
    "SLURM_JWT": "planted-slurm",
    "TORCH_TOKEN": "planted-torch",
}


def test_no_secret_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    written = json.dumps([environment(world_size=1), host_facts()])
    assert "planted" not in written
    assert not [name for name in SECRETS if name in written]


def test_variables_that_matter_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    written = environment(world_size=8)
    assert written["variables"]["NCCL_ALGO"] == "Ring"
    assert "OMP_NUM_THREADS" not in written["variables"]
    assert written["slurm"]["SLURM_RESTART_COUNT"] == "2"
    assert written["world_size"] == 8


def test_describes_this_machine() -> None:
    cpu = torch.device("cpu")
    written = json.loads(json.dumps(environment(world_size=1, device=cpu)))
    assert written["versions"]["torch"] == torch.__version__
    assert {"torchvision", "dali", "wandb", "numpy", "cuda", "nccl"} <= written["versions"].keys()
    assert written["cpu"]["capability"] == torch.backends.cpu.get_cpu_capability()
    assert written["cpu"]["cores_available"] <= written["cpu"]["cores"]
    assert written["memory_gib"] > 0
    assert written["device"]["name"] == written["cpu"]["model"] == host_facts(cpu)["cpu"]


def test_describes_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    device = {"type": "cuda", "name": "NVIDIA H100", "count": 8, "memory_gib": 80.0}
    assert environment(world_size=8)["device"] == device
    assert host_facts()["device"] == "NVIDIA H100"


def test_either_flavor_of_dali_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own files, without importing it: its import takes a second and breaks forks."""
    source = tmp_path / "nvidia" / "dali" / "__init__.py"
    source.parent.mkdir(parents=True)
    source.write_text("__version__ = '2.9.0'\n__cuda_version__ = int('13.0.48'.replace('.', ''))\n")
    there = {"nvidia-dali-cuda130": "2.9.0", "nvidia-nvimgcodec-cu13": "0.9", "nvidia-nvjpeg": "13"}
    monkeypatch.setattr(dali_info, "version_of", there.get)
    monkeypatch.setattr(dali_info, "_origin", lambda: str(source))
    assert dali_info.installed() == dali_info.Dali("2.9.0", 13, ("nvidia-dali-cuda130",))
    assert dali_info.versions() == {
        "dali": "2.9.0", "dali_cuda": "13", "nvimgcodec": "0.9", "nvjpeg": "13"
    }  # fmt: skip
    monkeypatch.setattr(
        dali_info, "_origin", lambda: None
    )  # by the packages, where files say nothing
    assert dali_info.installed() == dali_info.Dali("2.9.0", 13, ("nvidia-dali-cuda130",))


def test_an_image_with_its_own_dali_is_told_all_other_packages() -> None:
    setup = configparser.ConfigParser()
    setup.read(env.CHECKOUT / "setup.cfg")
    needed = {
        re.split("[>=;]", line)[0]
        for line in setup["options"]["install_requires"].splitlines()
        if line and not line.startswith("#")
    }
    manual = (env.CHECKOUT / "slurm" / "README.md").read_text()
    packages = manual.split("`pip install --no-deps -e .`, then\n`pip install ")[1].split("`")[0]
    of_the_image = {"torch", "torchvision", "nvidia-dali-cuda120", "numpy", "pillow"}
    assert set(packages.split()) == needed - of_the_image


def test_dali_that_is_not_there_or_twice_there_is_said() -> None:
    both = ("nvidia-dali-cuda120", "nvidia-dali-cuda130")
    assert dali_info.misfit(dali_info.installed()) is None
    assert "is not installed" in str(dali_info.misfit(dali_info.Dali(None, None, ())))
    assert "pip uninstall nvidia-dali-cuda120" in str(
        dali_info.misfit(dali_info.Dali("2.4.0", 13, both))
    )
    newer = dali_info.Dali("2.4.0", 13, both[1:])
    assert dali_info.misfit(newer, 13) is None
    assert "the driver knows CUDA 12, DALI needs 13" in str(dali_info.misfit(newer, 12))


def _git(folder: Path, *command: str) -> None:
    who = ("-c", "user.name=t", "-c", "user.email=t@x.invalid")
    subprocess.run(("git", "-C", str(folder), *who, *command), check=True, capture_output=True)


def test_git_state_of_a_checkout(tmp_path: Path) -> None:
    assert git_state(tmp_path) == (None, None)
    _git(tmp_path, "init")
    (tmp_path / "file").write_text("a")
    _git(tmp_path, "add", "file")
    _git(tmp_path, "commit", "-m", "first")
    commit, dirty = git_state(tmp_path)
    assert commit is not None
    assert len(commit) == 40
    assert dirty is False
    (tmp_path / "file").write_text("b")
    assert git_state(tmp_path) == (commit, True)


def test_an_installed_copy_is_no_checkout(tmp_path: Path) -> None:
    """A virtual environment often lies inside the checkout of something else."""
    _git(tmp_path, "init")
    _git(tmp_path, "commit", "--allow-empty", "-m", "first")
    installed = tmp_path / "venv" / "site-packages"
    installed.mkdir(parents=True)
    assert git_state(installed) == (None, None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
def test_another_users_checkout_is_read_too(tmp_path: Path) -> None:
    """By itself git refuses it (`dubious ownership`): a container's root, a shared checkout."""
    _git(tmp_path, "init")
    _git(tmp_path, "commit", "--allow-empty", "-m", "first")
    head = ("git", "-C", str(tmp_path), "rev-parse", "HEAD")
    commit = subprocess.run(head, check=True, capture_output=True, text=True).stdout.strip()
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, 12345, 12345)
    assert subprocess.run(head, capture_output=True).returncode
    assert git_state(tmp_path) == (commit, False)


def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(env.CHECKOUT) == (None, None)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54  Release", "550.54"),
        ("", None),
    ],
)
def test_driver_version(text: str, version: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    assert driver_version() == version


def test_driver_version_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_file(path: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", no_file)
    monkeypatch.setattr(env, "_output", lambda *command: None)
    assert driver_version() is None
    monkeypatch.setattr(env, "_output", lambda *command: "570.86.10\n")
    assert driver_version() == "570.86.10"


def test_a_command_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*command: object, timeout: float, **more: object) -> None:
        raise subprocess.TimeoutExpired("git", timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    assert git_state(env.CHECKOUT) == (None, None)
