"""The schedule against tables computed by hand; parameter groups by structure."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import pytest
import torch

from harness import config as cfg
from harness import models
from harness.models.summary import DECAY, decay_group
from harness.optim import OPTIMIZERS, sgd
from harness.schedule import learning_rate, peak_lr, warmup_start_lr

STEPS = 5004  # of an epoch of ImageNet at batch 256


def lr_at(epoch: float, config: cfg.Config, steps_per_epoch: int = STEPS) -> float:
    return learning_rate(
        round(epoch * steps_per_epoch),
        schedule=config.schedule,
        peak=peak_lr(config.optim, config.train.global_batch),
        start=warmup_start_lr(config),
        steps_per_epoch=steps_per_epoch,
    )


def goyal(global_batch: int) -> cfg.Config:
    return cfg.Config(
        train=cfg.Train(global_batch=global_batch), schedule=cfg.Schedule(warmup_epochs=5)
    )


@pytest.mark.parametrize(
    ("global_batch", "peak"),
    [(128, 0.05), (256, 0.1), (512, 0.2), (1024, 0.4), (2048, 0.8), (4096, 1.6), (8192, 3.2),
     (16384, 6.4), (32768, 12.8), (65536, 25.6)],
)  # fmt: skip
def test_linear_scaling_gives_the_papers_rates(global_batch: int, peak: float) -> None:
    """Goyal et al. 2017, table of batch sizes."""
    assert peak_lr(cfg.Optim(), global_batch) == pytest.approx(peak)


@pytest.mark.parametrize(
    ("epoch", "lr"),
    [(0, 0.1), (1, 0.72), (2.5, 1.65), (4, 2.58), (5, 3.2), (29.99, 3.2), (30, 0.32),
     (59.99, 0.32), (60, 0.032), (80, 0.0032), (89.99, 0.0032)],
)  # fmt: skip
def test_goyals_schedule_at_batch_8192(epoch: float, lr: float) -> None:
    """From 0.1 to 3.2 over five epochs, then a tenth at 30, 60 and 80."""
    assert lr_at(epoch, goyal(8192), 156) == pytest.approx(lr, rel=4e-3)


def test_the_warmup_rises_by_the_same_amount_each_step() -> None:
    config = goyal(8192)
    rates = [lr_at(step / 156, config, 156) for step in range(5 * 156 + 1)]
    rises = {round(b - a, 10) for a, b in itertools.pairwise(rates)}
    assert rises == {round(3.1 / (5 * 156), 10)}


def test_no_warmup_from_above_the_peak() -> None:
    assert [lr_at(epoch, goyal(128)) for epoch in (0, 2, 5, 10)] == [0.05] * 4


@pytest.mark.parametrize(
    ("epoch", "share"),
    [(0, 0), (2.5, 0.5), (5, 1), (5 + 85 / 4, (1 + math.sqrt(0.5)) / 2), (47.5, 0.5), (90, 0)],
)
def test_cosine(epoch: float, share: float) -> None:
    config = cfg.Config(schedule=cfg.Schedule(decay="cosine", warmup_epochs=5, warmup_start_lr=0))
    assert lr_at(epoch, config) == pytest.approx(0.1 * share, abs=2e-6)


def test_constant_stays() -> None:
    config = cfg.Config(schedule=cfg.Schedule(decay="constant"))
    assert {lr_at(epoch, config) for epoch in range(90)} == {0.1}


def test_every_optimizer_that_the_config_names_can_be_built() -> None:
    assert set(OPTIMIZERS) == set(get_args(cfg.Optim.model_fields["name"].annotation))


@pytest.mark.parametrize("everywhere", [True, False])
def test_decay_leaves_out_norm_and_bias_where_asked(everywhere: bool) -> None:
    net = models.build(cfg.Model(name="resnet18"), 10)
    optim = cfg.Optim(weight_decay=0.25, decay_norm_and_bias=everywhere)
    for group in sgd(net.parameters(), optim).param_groups:
        for parameter in group["params"]:
            decays = everywhere or decay_group(parameter) == DECAY
            assert group["weight_decay"] == (0.25 if decays else 0)


@pytest.mark.gpu_too
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_the_papers(nesterov: bool, device: torch.device) -> None:
    """Goyal et al. 2017, 3: v = m v + g; w = w - lr v, and no momentum correction is needed."""
    w = torch.nn.Parameter(torch.tensor([[2.0, -1.0]], device=device))
    optimizer = sgd([w], cfg.Optim(momentum=0.9, nesterov=nesterov, weight_decay=0.1))
    by_hand, v = w.detach().clone(), torch.zeros(1, 2, device=device)
    for lr in (0.5, 0.5, 0.05):
        for group in optimizer.param_groups:
            group["lr"] = lr
        w.grad = torch.tensor([[1.0, 3.0]], device=device) * w.detach()
        g = w.grad + 0.1 * by_hand
        v = 0.9 * v + g
        by_hand = by_hand - lr * (g + 0.9 * v if nesterov else v)
        optimizer.step()
    torch.testing.assert_close(w.detach(), by_hand)


@pytest.mark.gpu_too
def test_a_first_step_that_fp16_skips_leaves_nothing_behind(device: torch.device) -> None:
    """torch would keep the momentum that it made without filling it."""
    w = torch.nn.Parameter(torch.ones(1000, 1000, device=device))
    optimizer, scaler = sgd([w], cfg.Optim(weight_decay=0)), torch.amp.GradScaler(device.type)
    for group in optimizer.param_groups:
        group["lr"] = 1.0
    for factor in (math.inf, 1.0):
        scaler.scale((w * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    torch.testing.assert_close(w.detach(), torch.zeros_like(w))
