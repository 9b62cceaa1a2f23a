"""Who holds up the others, and what the GPUs use: never said of whom it is not true."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from statistics import median_low
from typing import cast
from unittest.mock import Mock

import pynvml as real_pynvml
import pytest
import torch
from fake_pynvml import FakeGpu, FakePynvml
from helpers import TINY, TRAIN, on_gpu
from hypothesis import given
from hypothesis import strategies as st
from ranks import python

from harness.distributed import World
from harness.logging.rows import Recorder
from harness.logging.schema import Row
from harness.monitor import gpus
from harness.monitor.gpus import Nvml, Throttle, in_words
from harness.monitor.stragglers import LEAST_PERIODS, SLOWER, Stragglers, energy_counter, who

FLAGS = [*TINY, "--data.source", "synthetic", "--data.synthetic-images", "120",
         "--train.global-batch", "12", "--log.every-steps", "2"]  # fmt: skip
SLOW_RANK = f"""
import os, runpy, sys, time
from harness.trainer import setup as engine
forward = engine.Classifier.forward
def slow(self, *args):
    time.sleep(0.3)  # more than a loaded machine may add to the others
    return forward(self, *args)
if os.environ["RANK"] == "1":
    engine.Classifier.forward = slow
runpy.run_path({TRAIN!r}, run_name="__main__")
"""


@given(st.lists(st.lists(st.floats(1, 100), min_size=4, max_size=4), min_size=1, max_size=12))
def test_slow_is_who_is_slower_than_the_median_in_most_periods(periods: list[list[float]]) -> None:
    stragglers = Stragglers()
    named = [rank for each in periods for rank in stragglers.period(each, [0.0] * 4)]
    assert len(named) == len(set(named)), "each is named once"
    for rank in range(4):
        slower = [each[rank] > SLOWER * median_low(each) for each in periods]
        ever = any(sum(slower[:n]) > n / 2 for n in range(LEAST_PERIODS, len(periods) + 1))
        assert (rank in named) == ever


def test_who_waits_for_data_longer_than_the_others_is_named_too() -> None:
    stragglers = Stragglers()
    found = [stragglers.period([10.0, 10.0, 10.0], [1.0, 30.0, 2.0]) for _ in range(4)]
    assert [[*each] for each in found] == [[], [], [1], []]
    assert "waits for data 30 % of the time, the median rank 2 %" in found[2][1]


def test_one_rank_has_nobody_to_be_slower_than() -> None:
    stragglers = Stragglers()
    assert not any(stragglers.period([float(n)], [50.0]) for n in range(1, 9))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, device: torch.device) -> tuple[Path, str]:
    """A run of three ranks of which one computes more slowly."""
    cwd = tmp_path_factory.mktemp("slow")
    script = cwd / "slow.py"
    script.write_text(SLOW_RANK)
    done = python(script, *on_gpu(), *FLAGS, ranks=3, cwd=cwd)
    assert done.returncode == 0, done.stderr
    (folder,) = (cwd / "runs").iterdir()
    return folder, done.stdout


@pytest.mark.gpu_too
def test_a_slow_rank_is_named(run: tuple[Path, str]) -> None:
    folder, printed = run
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["kind"] == "train"]
    assert len(trained) == 5
    for row in trained:
        assert row["slowest_rank"] == 1
        assert row["compute_ms_slowest"] > max(150, SLOWER * row["compute_ms_median"])
    result = json.loads((folder / "result.json").read_text())
    (line,) = result["stragglers"]
    assert line.startswith("rank 1 (")
    assert "slow in 3 of the last 3 log periods" in line
    assert printed.count(f"slow: {line}") == 1
    shown = python("-m", "harness", "show", folder)
    assert "rank 1 (" in shown.stdout


def test_on_a_cpu_energy_is_not_measured(run: tuple[Path, str]) -> None:
    folder, _ = run
    result = json.loads((folder / "result.json").read_text())
    assert result["energy_kj"] is result["images_per_joule"] is None
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert not any({"power_w", "images_per_joule"} & row.keys() for row in rows)
    shown = python("-m", "harness", "show", folder)
    assert "energy" in shown.stdout
    assert "not measured" in shown.stdout
    assert math.isnan(Nvml(torch.device("cpu")).used_j())


def test_of_a_single_rank_there_is_a_median_and_no_slowest(finished_run: Path) -> None:
    rows = [json.loads(line) for line in (finished_run / "rows.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["kind"] == "train"]
    assert trained
    for row in trained:
        assert 0 < row["compute_ms_median"] < row["step_ms_mean"]
        assert not {"slowest_rank", "compute_ms_slowest", "data_wait_most_pct"} & row.keys()


HOT, CAPPED, IDLE = 0x40, 0x04, 0x01
EVENTS, THROTTLE = (f"CurrentClocks{name}Reasons" for name in ("Event", "Throttle"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    monkeypatch.setattr(gpus, "gpu_uuid", lambda device: "GPU-1")
    return torch.device("cuda")


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeGpu]:
    """A GPU that is warm, and whose counter has gone round before; without what it lacks."""

    def put(*lacks: str, reasons: object = 0) -> FakeGpu:
        gpu: FakeGpu = {
            "UUID": "GPU-1", "Serial": "1652", "ClockInfo": 1410, "MaxClockInfo": 1980,
            "TotalEnergyConsumption": 7_000_000, EVENTS: reasons, THROTTLE: reasons,
            "MemoryInfo": lambda version: types.SimpleNamespace(used=3 * 2**29),
        }  # fmt: skip
        gpu = {name: value for name, value in gpu.items() if name not in lacks}
        # What an old driver lacks is an error, what an old package lacks is not there.
        missing = [f"nvmlDeviceGet{EVENTS}"] if EVENTS in lacks else []
        monkeypatch.setitem(sys.modules, "pynvml", FakePynvml([gpu], missing=missing))
        return gpu

    return put


@pytest.mark.parametrize("shared", [False, True])
def test_joules_are_counted_from_call_to_call_and_of_no_shared_gpu(
    plant: Callable[..., FakeGpu], gpu: torch.device, shared: bool
) -> None:
    """Each of the ranks on a shared GPU would count all of it."""
    fake = plant()
    used_j = energy_counter(World(0, 0, 1, 1, gpu, shares_gpu=shared))
    assert math.isnan(used_j()), "nothing to count from"
    for joules in (2500, 0, 0.5):
        fake["TotalEnergyConsumption"] += 1000 * joules
        used = used_j()
        assert math.isnan(used) if shared else used == joules
    del fake["TotalEnergyConsumption"]
    assert math.isnan(used_j())


def test_energy_of_a_run_is_that_of_its_rows(tmp_path: Path) -> None:
    """The rows that a resumed run discards do not count, nor do periods that were not measured."""

    def train(images: int, per_joule: float | None) -> Row:
        shares = dict.fromkeys(
            ("loss", "train_top1_pct", "lr", "step_ms_p50", "data_wait_pct"), 0.0
        )
        return Row(kind="train", attempt=1, epoch=1, step=1, images_seen=images, train_s=1,
                   wall_s=1, images_per_second=1, images_per_joule=per_joule, **shares)  # fmt: skip

    path = tmp_path / "rows.jsonl"
    rows = Recorder(path, total_steps=9)
    rows.write(train(100, None), left_s=None)
    assert rows.energy_j() is None
    rows.write(train(300, 0.5), left_s=None)
    keep_bytes = rows.bytes
    rows.write(train(900, 0.5), left_s=None)
    assert rows.energy_j() == 400 + 1200
    resumed = Recorder(path, total_steps=9, keep_bytes=keep_bytes)
    resumed.write(train(500, 0.25), left_s=None)
    assert resumed.energy_j() == 400 + 800


def test_a_gpu_without_a_counter_or_a_name_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, plant: Callable[..., FakeGpu], gpu: torch.device
) -> None:
    plant("TotalEnergyConsumption")
    without = Nvml(gpu)
    plant()
    monkeypatch.setattr(gpus, "gpu_uuid", lambda device: "GPU-of-another-job")
    other = Nvml(gpu)
    used_j = [one.used_j() for one in (without, other) for _ in range(2)]
    assert all(map(math.isnan, used_j))
    assert other.slowed() is None
    assert Nvml(gpu).description() == []


def test_a_gpu_says_its_serial_clock_and_what_slows_it(
    plant: Callable[..., FakeGpu], gpu: torch.device
) -> None:
    plant(reasons=HOT | CAPPED | IDLE)
    assert Nvml(gpu).memory_used_gib() == 1.5
    expected = ["serial 1652", "1410 of 1980 MHz", "too hot (hardware)", "at its power cap"]
    assert Nvml(gpu).description() == expected
    plant("Serial", "MaxClockInfo", "MemoryInfo")
    assert Nvml(gpu).description() == []
    assert Nvml(gpu).memory_used_gib() is None


@pytest.mark.parametrize("lacks", [(), (EVENTS,)])
def test_bits_of_nvml_are_the_reasons_of_nvidia_smi(
    plant: Callable[..., FakeGpu], gpu: torch.device, lacks: tuple[str, ...]
) -> None:
    """By the names that the real pynvml gives them; an old one knows other names of functions."""
    for reason in gpus.SLOWED:
        name = "".join(word.capitalize() for word in reason.split("_"))
        plant(*lacks, reasons=getattr(real_pynvml, f"nvmlClocksThrottleReason{name}") | IDLE)
        assert Nvml(gpu).slowed() == (reason,)
    plant(*lacks, reasons=IDLE)
    assert Nvml(gpu).slowed() == ()
    plant(EVENTS, THROTTLE)
    assert Nvml(gpu).slowed() is None


def slowed_after(gpu: torch.device, looked: Callable[[], bool]) -> list[str]:
    """What is told once it has looked often enough, where another rank has seen nothing."""
    world = types.SimpleNamespace(gather=lambda mine: [[], mine])
    throttle = Throttle(gpu, every_s=0.001)
    until = time.monotonic() + 60
    while not looked():
        assert time.monotonic() < until
        time.sleep(0.002)
    throttle.end(cast(World, world))
    return throttle.slowed


def test_clocks_that_are_held_down_during_a_run_are_seen(
    monkeypatch: pytest.MonkeyPatch, plant: Callable[..., FakeGpu], gpu: torch.device
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("started a process"))
    for bits, expected in ((HOT, ["too hot (hardware): rank 1"]), (CAPPED, [])):
        looks = Mock(return_value=bits)  # a well used GPU is at its cap
        plant(reasons=looks)
        assert slowed_after(gpu, lambda looks=looks: looks.call_count >= 5) == expected
    plant(EVENTS, THROTTLE)
    assert slowed_after(gpu, lambda: True) == []


def test_whose_clocks_were_held_down() -> None:
    assert in_words([[]]) == in_words([[], []]) == []
    hot = "hw_thermal_slowdown"
    assert in_words([[hot]]) == ["too hot (hardware)"]
    assert in_words([[], [hot, "hw_slowdown"], [], [hot]]) == [
        "too hot (hardware): rank 1, 3", "slowed by hardware: rank 1",
    ]  # fmt: skip
    assert in_words([[hot]] * 11) == ["too hot (hardware): rank 0, 1, 2, 3, 4, 5, 6, 7 and 3 more"]


@pytest.mark.gpu
def test_a_real_gpu_uses_energy_and_says_who_it_is() -> None:
    device = torch.device("cuda")
    used_j = Nvml(device).used_j
    used_j()
    a = torch.ones(4096, 4096, device=device)
    for _ in range(200):
        a = a @ a
    torch.cuda.synchronize()
    assert used_j() > 0
    assert "GPU-" in who(device)
    assert Nvml(device).slowed() is not None
    assert (Nvml(device).memory_used_gib() or 0) > 0
