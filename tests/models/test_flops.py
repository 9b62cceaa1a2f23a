"""Operations and bytes of a step, counted from its graph, against numbers that are known."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import yaml

from harness import config as cfg
from harness import models
from harness.models import summary
from harness.models.flops import Costs, flops, moved_bytes, roofline_s, training_costs
from harness.monitor import peaks
from harness.monitor.peaks import TABLE


@cache
def costs(name: str, *, px: int = 224, images: int = 2, precision: str = "fp32") -> Costs:
    return training_costs(
        cfg.Model(name=name), 1000, image_px=px, images=images, precision=precision, momentum=True
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "px"),
    [("resnet18", 64), ("resnet50", 224), ("resnet20", 32), ("densenet_40_12", 32),
     ("plain18", 160)],
)  # fmt: skip
def test_forward_is_two_for_each_multiply_add_of_the_layers(name: str, px: int) -> None:
    net = models.build(cfg.Model(name=name), 1000)  # type: ignore[arg-type]
    gmacs = summary.total(summary.layers(net, px)).gmacs
    assert flops(costs(name, px=px).forward) == pytest.approx(2e9 * gmacs, rel=1e-6)


def test_resnet50_costs_what_is_published() -> None:
    # He et al. 2015, table 1: 3.8e9 multiply-adds with the stride in the first 1x1; torchvision's
    # has it in the 3x3 and prints 4.09.
    known = costs("resnet50")
    assert flops(known.forward) / 2e9 == pytest.approx(4.09, abs=0.005)


def test_backward_is_twice_forward_but_for_the_pixels_gradient() -> None:
    known = costs("resnet50")
    first_conv = 2 * 112 * 112 * 64 * 3 * 7 * 7
    expected = 2 * flops(known.forward) - first_conv
    assert flops(known.backward) == pytest.approx(expected, rel=1e-6)


def test_half_the_bytes_in_half_the_precision() -> None:
    full, half = costs("resnet50"), costs("resnet50", precision="bf16")
    assert flops(full.forward) == flops(half.forward)
    ratio = moved_bytes(half.forward, fused=True) / moved_bytes(full.forward, fused=True)
    assert ratio == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("name", "px"), [("resnet18", 64), ("densenet_40_12", 32)])
def test_fusing_saves_bytes_and_no_operations(name: str, px: int) -> None:
    known = costs(name, px=px)
    assert 0 < moved_bytes(known.step, fused=True) < moved_bytes(known.step, fused=False)
    fast = roofline_s(known.step, 1e12, 1e11, fused=True)
    slow = roofline_s(known.step, 1e12, 1e11, fused=False)
    assert flops(known.step) / 1e12 <= fast < slow
    assert moved_bytes(known.step, fused=True) / 1e11 <= fast * (1 + 1e-9)


def test_weights_are_shared_by_the_images_of_a_batch() -> None:
    few, many = costs("resnet18", px=64, images=2), costs("resnet18", px=64, images=8)
    assert flops(few.step) == pytest.approx(flops(many.step))
    assert moved_bytes(few.optimizer, fused=False) == 4 * moved_bytes(many.optimizer, fused=False)
    assert moved_bytes(few.step, fused=False) > moved_bytes(many.step, fused=False)


def test_counting_leaves_no_trace() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    costs.__wrapped__("resnet20", px=32)
    assert torch.equal(torch.rand(3), expected)


def test_every_gpu_of_the_table_has_a_source_and_sensible_numbers() -> None:
    table = yaml.safe_load(TABLE.read_text())
    assert len(table) > 10
    for name, row in table.items():
        assert row["source"], name
        assert row.keys() <= {"bf16", "fp16", "tf32", "fp32", "memory", "source"}
        assert 200 <= row["memory"] <= 10_000, name
        assert all(5 <= row[key] <= 5000 for key in row.keys() - {"memory", "source"}), name
        found = peaks.printed(name, "fp32")
        assert found is not None
        assert found.flops_per_s == 1e12 * row["fp32"]


def test_what_is_measured_here_is_reached_here() -> None:
    found = peaks.measured(torch.device("cpu"), "fp32", limit_s=0.1)
    assert found.flops_per_s > 1e8
    assert found.bytes_per_s > 1e8
    assert "measured" in found.source
