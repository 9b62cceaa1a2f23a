"""Who holds up the others, and what the GPUs use: never said of whom it is not true."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import types
from pathlib import Path
from statistics import median_low

import pytest
import torch
from helpers import TINY, TRAIN, launcher, on_gpu
from hypothesis import given
from hypothesis import strategies as st

from harness.record import energy
from harness.record.energy import Energy, counter_of
from harness.record.peers import LEAST_PERIODS, SLOWER, Stragglers, state_of, who
from harness.record.smi import Gpu, parse

FLAGS = [*TINY, "--data.source", "synthetic", "--data.synthetic-images", "120",
         "--train.global-batch", "12", "--log.every-steps", "2"]  # fmt: skip
SLOW_RANK = f"""
import os, runpy, sys, time
from harness import engine
forward = engine.Classifier.forward
def slow(self, *args):
    time.sleep(0.15)
    return forward(self, *args)
if os.environ["RANK"] == "1":
    engine.Classifier.forward = slow
runpy.run_path({TRAIN!r}, run_name="__main__")
"""


@given(st.lists(st.lists(st.floats(1, 100), min_size=4, max_size=4), min_size=1, max_size=12))
def test_slow_is_who_is_slower_than_the_median_in_most_periods(periods: list[list[float]]) -> None:
    stragglers = Stragglers()
    named = [slow.rank for each in periods for slow in stragglers.period(each, [0.0] * 4)]
    assert len(named) == len(set(named)), "each is named once"
    for rank in range(4):
        slower = [each[rank] > SLOWER * median_low(each) for each in periods]
        ever = any(sum(slower[:n]) > n / 2 for n in range(LEAST_PERIODS, len(periods) + 1))
        assert (rank in named) == ever


def test_who_waits_for_data_longer_than_the_others_is_named_too() -> None:
    stragglers = Stragglers()
    found = [stragglers.period([10.0, 10.0, 10.0], [1.0, 30.0, 2.0]) for _ in range(4)]
    assert [[slow.rank for slow in each] for each in found] == [[], [], [1], []]
    assert "waits for data 30 % of the time, the median rank 2 %" in found[2][0].why


def test_one_rank_has_nobody_to_be_slower_than() -> None:
    stragglers = Stragglers()
    assert not any(stragglers.period([float(n)], [50.0]) for n in range(1, 9))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, device: torch.device) -> tuple[Path, str]:
    """A run of three ranks of which one computes more slowly."""
    cwd = tmp_path_factory.mktemp("slow")
    script = cwd / "slow.py"
    script.write_text(SLOW_RANK)
    command = [*launcher(3), str(script), *on_gpu(), *FLAGS]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
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
    shown = subprocess.run(
        [sys.executable, "-m", "harness", "show", folder], capture_output=True, text=True
    )
    assert "rank 1 (" in shown.stdout


def test_on_a_cpu_energy_is_not_measured(run: tuple[Path, str]) -> None:
    folder, _ = run
    result = json.loads((folder / "result.json").read_text())
    assert result["energy_kj"] is result["images_per_joule"] is None
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert not any({"power_w", "images_per_joule"} & row.keys() for row in rows)
    shown = subprocess.run(
        [sys.executable, "-m", "harness", "show", folder], capture_output=True, text=True
    )
    assert "energy" in shown.stdout
    assert "not measured" in shown.stdout
    assert math.isnan(Energy(counter_of(torch.device("cpu"))).used_j())


def test_of_a_single_rank_there_is_a_median_and_no_slowest(finished_run: Path) -> None:
    rows = [json.loads(line) for line in (finished_run / "rows.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["kind"] == "train"]
    assert trained
    for row in trained:
        assert 0 < row["compute_ms_median"] < row["step_ms_mean"]
        assert not {"slowest_rank", "compute_ms_slowest", "data_wait_most_pct"} & row.keys()


class Nvml(types.ModuleType):
    """As much of pynvml as is used: a GPU of 250 W whose counter has gone round before."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, has_counter: bool = True) -> None:
        super().__init__("pynvml")
        self.millijoules, self.has_counter = 7_000_000, has_counter

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        assert handle == "GPU-1"
        if not self.has_counter:
            raise self.NVMLError
        return self.millijoules


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    monkeypatch.setattr(energy, "gpu_uuid", lambda device: "GPU-1")
    return torch.device("cuda")


def test_joules_are_counted_from_mark_to_mark(
    monkeypatch: pytest.MonkeyPatch, gpu: torch.device
) -> None:
    nvml = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    used = Energy(counter_of(gpu))
    used.mark()
    nvml.millijoules += 2_500_000
    assert used.used_j() == 2500
    nvml.millijoules += 1000
    used.mark()
    nvml.millijoules += 500
    assert used.used_j() == 0.5
    nvml.has_counter = False
    assert math.isnan(used.used_j())


def test_a_gpu_without_a_counter_has_none(
    monkeypatch: pytest.MonkeyPatch, gpu: torch.device
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(has_counter=False))
    assert counter_of(gpu) is None


def test_a_gpu_says_its_serial_clock_and_what_slows_it() -> None:
    xml = """<nvidia_smi_log><gpu><product_name>G</product_name><uuid>GPU-1</uuid>
    <serial>1652</serial><clocks><sm_clock>1410 MHz</sm_clock></clocks>
    <max_clocks><sm_clock>1980 MHz</sm_clock></max_clocks><clocks_event_reasons>
    <clocks_event_reason_hw_thermal_slowdown>Active</clocks_event_reason_hw_thermal_slowdown>
    </clocks_event_reasons></gpu></nvidia_smi_log>"""
    (gpu,) = parse(xml).gpus
    assert isinstance(gpu, Gpu)
    assert state_of(gpu) == ["serial 1652", "1410 of 1980 MHz", "too hot (hardware)"]


@pytest.mark.gpu
def test_a_real_gpu_uses_energy_and_says_who_it_is() -> None:
    device = torch.device("cuda")
    used = Energy(counter_of(device))
    used.mark()
    a = torch.ones(4096, 4096, device=device)
    for _ in range(200):
        a = a @ a
    torch.cuda.synchronize()
    assert used.used_j() > 0
    assert "GPU-" in who(device)
