"""MFU and memory share in rows and result; null where no peak is printed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from helpers import TINY, TRAIN
from hypothesis import given
from hypothesis import strategies as st
from ranks import python

from harness.config import load
from harness.models.flops import Costs, roofline_s, training_costs
from harness.monitor import peaks
from harness.monitor.peaks import Peaks, printed, printed_for
from harness.trainer import mfu

FLAGS = [*TINY, "--data.source", "synthetic", "--data.synthetic-images", "64",
         "--train.global-batch", "16", "--log.every-steps", "2"]  # fmt: skip
MADE_UP = f"""
import runpy
from harness.monitor.peaks import Peaks
from harness.trainer import mfu, run
mfu.printed_for = lambda device, precision: Peaks(1e12, 1e11, "made up")
of_run = run.loop.set_up
def with_utilization(resolved, *given):
    t = of_run(resolved, *given)
    t.utilization = mfu.of_printed_peaks(resolved, 10)
    return t
run.loop.set_up = with_utilization
runpy.run_path({TRAIN!r}, run_name="__main__")
"""


def test_rows_and_result_tell_the_share_of_a_printed_peak(tmp_path: Path) -> None:
    (tmp_path / "made_up.py").write_text(MADE_UP)
    done = python(tmp_path / "made_up.py", *FLAGS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    config = load.load(FLAGS)
    costs = training_costs(
        config.model, 10, image_px=32, images=16, precision="fp32",
        momentum=config.optim.momentum > 0,
    )  # fmt: skip
    per_image = sum(op.flops for op in costs.step)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    result = json.loads((folder / "result.json").read_text())
    records = [row for row in rows if row["kind"] == "train"] + [result]
    assert len(records) == 3
    for each in records:
        expected = 100 * per_image * each["images_per_second"] / 1e12
        assert each["mfu_pct"] == pytest.approx(expected, rel=0.01)
        assert 0 < each["memory_pct"] < 100
    shown = python("-m", "harness", "show", folder)
    assert "% of the GPUs' operations (MFU)" in shown.stdout


def test_a_device_without_a_printed_peak_has_none(finished_run: Path) -> None:
    result = json.loads((finished_run / "result.json").read_text())
    assert result["mfu_pct"] is result["memory_pct"] is None
    assert printed_for(torch.device("cpu"), "bf16") is None
    assert printed("A GPU of tomorrow", "bf16") is None
    assert printed("Tesla T4", "bf16") is None


@pytest.mark.parametrize("name", sorted(peaks.table()))
def test_a_row_of_the_table_is_of_this_world(name: str) -> None:
    row = peaks.table()[name]
    assert row.keys() <= {"bf16", "fp16", "tf32", "fp32", "memory", "source"}
    assert row.keys() >= {"fp16", "fp32", "memory", "source"}
    assert re.match(r"(NVIDIA|Tesla|AMD Instinct) \S", name)
    assert re.search(r"(data sheet|white paper|press).* \(?(\w+ )?\d", row["source"])
    assert row["fp16"] >= row.get("tf32", 0) >= 0
    assert row["fp16"] > row["fp32"]
    assert 5 < row["fp32"] < 200
    assert 300 <= row["memory"] <= 8000
    if "bf16" in row:  # Ampere and later, CDNA 3: with sparsity it would be 4 times tf32
        assert row["bf16"] == row["fp16"]
        assert row["bf16"] / row["tf32"] == pytest.approx(2, rel=0.02)
        assert row["tf32"] >= row["fp32"]


def test_each_name_stands_once_in_the_table() -> None:
    lines = peaks.TABLE.read_text().splitlines()
    rows = [line for line in lines if line and not line.startswith("#")]
    assert len(rows) == len(peaks.table()), "a later row of the same name would win silently"


@pytest.mark.parametrize(
    ("name", "bf16_tflops", "gb_per_s"),
    [
        ("NVIDIA H100 NVL", 835.5, 3900),
        ("NVIDIA GH200 480GB", 989.4, 4000),
        ("NVIDIA GB200", 2500, 8000),
        ("NVIDIA B300 SXM6 AC", 2250, 7700),
        ("NVIDIA A10G", 70, 600),
        ("NVIDIA L40", 181.05, 864),
        ("NVIDIA L40S", 362, 864),
        ("NVIDIA GeForce RTX 5090", 209.5, 1792),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 503.8, 1792),
        ("AMD Instinct MI325X", 1307.4, 6000),
    ],
)
def test_names_are_those_that_drivers_give(name: str, bf16_tflops: float, gb_per_s: float) -> None:
    peak = printed(name, "bf16")
    assert peak is not None
    assert (peak.flops_per_s, peak.bytes_per_s) == (
        pytest.approx(1e12 * bf16_tflops), pytest.approx(1e9 * gb_per_s),
    )  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 5090 D", "NVIDIA GeForce RTX 3090 Ti", "NVIDIA H20-3e", "NVIDIA L40G",
    ],
)  # fmt: skip
def test_a_gpu_of_a_longer_name_is_another(name: str) -> None:
    assert any(name.startswith(known) for known in peaks.table())
    assert printed(name, "bf16") is None


@pytest.fixture(scope="module")
def costs() -> Costs:
    return training_costs(
        load.load(FLAGS).model, 10, image_px=32, images=4, precision="fp16", momentum=True
    )


@given(ranks=st.integers(1, 256), name=st.sampled_from(["NVIDIA H100 80GB HBM3", "Tesla T4"]))
def test_at_the_speed_of_light_something_is_used_up(costs: Costs, ranks: int, name: str) -> None:
    peak = printed(name, "fp16")
    assert peak is not None
    used = mfu.utilization(costs, peak, ranks)
    limit = ranks / roofline_s(costs.step, peak.flops_per_s, peak.bytes_per_s, fused=True)
    both = used.mfu_pct(limit) + used.memory_pct(limit)
    assert both >= 100 * (1 - 1e-9)
    assert max(used.mfu_pct(limit), used.memory_pct(limit)) <= 100 * (1 + 1e-9)
    assert used.mfu_pct(2 * limit) == pytest.approx(2 * used.mfu_pct(limit))


def test_more_ranks_share_the_work() -> None:
    one = mfu.Utilization(2e9, 1e6, Peaks(1e12, 1e9, ""), ranks=1)
    two = mfu.Utilization(2e9, 1e6, Peaks(1e12, 1e9, ""), ranks=2)
    assert one.mfu_pct(100) == 20
    assert two.mfu_pct(200) == 20
    assert one.memory_pct(100) == pytest.approx(10)
