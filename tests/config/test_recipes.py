"""The recipes in configs/: each loads, trains, names what it is held against, is its paper's."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, draw_tree
from trainings import alone

from harness import config as cfg
from harness.config import load as cli
from harness.logging.schema import Row
from harness.models.zoo import MODELS
from harness.results.references import load_references
from harness.schedule import Event, learning_rate, peak_lr, warmup_start_lr
from harness.trainer.loop import evaluate, train_epoch

FOLDER = ROOT / "configs"
RECIPES = sorted(FOLDER.rglob("*.yaml"))
SHELF = load_references()
every_recipe = pytest.mark.parametrize(
    "path", RECIPES, ids=[str(path.relative_to(FOLDER).with_suffix("")) for path in RECIPES]
)


def recipe(name: str, *flags: str) -> cfg.Config:
    return load(FOLDER / f"{name}.yaml", *flags)


def load(path: Path, *flags: str) -> cfg.Config:
    holds_out = "holdout_images" in path.read_text()
    val = [] if holds_out else ["--data.val", "b"]
    return cli.load([str(path), "--data.train", "a", *val, *flags])


@every_recipe
def test_it_loads_and_its_header_says_what_it_is(path: Path) -> None:
    config, text = load(path), path.read_text()
    assert config.run.name == "-".join(path.relative_to(FOLDER).with_suffix("").parts) + "-s0"
    header = " ".join(line.removeprefix("#") for line in text.splitlines() if line[:1] == "#")
    header = " ".join(header.split())
    assert text.startswith("# ")
    assert f"{path.relative_to(ROOT)}" in header or path.stem == "quickstart"
    for word in ("command", *(["paper", "expected", "time"] if path.parent != FOLDER else [])):
        assert f" {word} " in header, word
    for name in config.run.references:
        row = SHELF[name]
        spread = "" if row.std is None else f" +- {row.std:g}"
        unit = "%" if row.metric in ("top1", "top5") else row.metric
        assert f"{row.value:g}{spread} {unit}" in header, f"{name}: value as on the shelf"
        assert row.source in header
        assert row.model == config.model.name
        if row.global_batch is not None:
            assert row.global_batch == config.train.global_batch, name


def test_every_row_of_the_papers_has_a_recipe() -> None:
    named = {name for path in RECIPES for name in load(path).run.references}
    papers = ("he2015-", "goyal2017-", "huang2017-", "torchvision-v1-")
    metrics = ("top1", "top5", "minutes_to_train")
    rows = {row.id for row in SHELF.values() if row.id.startswith(papers) and row.metric in metrics}
    assert rows - named <= {
        f"torchvision-v1-densenet{depth}-top1" for depth in (121, 161, 169, 201)
    }


IMAGENET, CIFAR = 1_281_167, 50_000


class Rates:
    """The learning rate of each step, `found[step]`, and how many there are."""

    def __init__(self, config: cfg.Config, images: int, *events: Event) -> None:
        self.config, self.events = config, events
        self.per_epoch = images // config.train.global_batch
        whole = config.schedule.epochs * self.per_epoch
        self.steps = min(whole, config.schedule.max_steps or whole)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> float:
        return learning_rate(
            step % self.steps,
            schedule=self.config.schedule,
            peak=peak_lr(self.config.optim, self.config.train.global_batch),
            start=warmup_start_lr(self.config),
            steps_per_epoch=self.per_epoch,
            events=self.events,
        )


def at(config: cfg.Config, *epochs: float) -> list[float]:
    per_epoch = IMAGENET // config.train.global_batch
    all_rates = Rates(config, IMAGENET)
    return [float(f"{all_rates[round(epoch * per_epoch)]:.5g}") for epoch in epochs]


@pytest.mark.parametrize("kn", [128 << i for i in range(10)])
def test_goyals_ladder(kn: int) -> None:
    """5.1 and table 1: 0.1 kn / 256, warmed up over 5 epochs, a tenth at 30, 60, 80 of 90."""
    config = recipe(f"goyal2017/resnet50_b{kn}")
    assert (config.train.global_batch, config.model.bn_images) == (kn, 32)
    peak = float(f"{0.1 * kn / 256:.5g}")
    middle = float(f"{0.1 + (peak - 0.1) / 2:.5g}") if kn > 256 else peak
    found = at(config, 0, 2.5, 5, 29.9, 30, 59.9, 60, 79.9, 80, 89.9)
    per_epoch = IMAGENET // kn
    exact_middle = min(0.1, peak) + (peak - min(0.1, peak)) * round(2.5 * per_epoch) / (
        5 * per_epoch
    )
    assert found[1] == pytest.approx(exact_middle, rel=1e-4)
    assert found[1] == pytest.approx(middle, rel=0.05)
    expected = [min(0.1, peak), peak, peak, *2 * [peak / 10], *2 * [peak / 100], *2 * [peak / 1000]]
    assert found[:1] + found[2:] == pytest.approx(expected)
    assert (config.optim.nesterov, config.optim.decay_norm_and_bias) == (True, False)
    assert (config.model.zero_gamma, config.model.fc_init_std) == (True, 0.01)


@pytest.mark.parametrize(
    ("name", "start", "at_1", "at_5", "changed"),
    [
        ("b8192_no_warmup", 3.2, 3.2, 3.2, {"schedule.warmup_epochs"}),
        ("b8192_constant_warmup", 0.1, 0.1, 3.2, {"schedule.warmup"}),
        ("b8192_lr_0.05_per_256", 0.05, 0.36, 1.6, {"optim.lr_per_256"}),
        ("b8192_lr_0.2_per_256", 0.2, 1.44, 6.4, {"optim.lr_per_256"}),
        ("b8192_lr_0.1_fixed", 0.1, 0.1, 0.1, {"optim.lr_per_256", "schedule.warmup_start_lr"}),
        ("b8192_lr_sqrt", 0.1, 0.193, 0.5657, {"optim.lr_per_256", "schedule.warmup_start_lr"}),
        ("b8192_gamma_1", 0.1, 0.72, 3.2, {"model.zero_gamma"}),
        ("b256_lr_0.05", 0.05, 0.05, 0.05, {"optim.lr_per_256"}),
        ("b256_lr_0.2", 0.2, 0.2, 0.2, {"optim.lr_per_256"}),
        ("b256_gamma_1", 0.1, 0.1, 0.1, {"model.zero_gamma"}),
    ],
)
def test_goyals_ablations_change_one_ingredient(
    name: str, start: float, at_1: float, at_5: float, changed: set[str]
) -> None:
    """Table 2 of the paper."""
    config = recipe(f"goyal2017/resnet50_{name}")
    assert at(config, 0, 1, 5, 30) == pytest.approx([start, at_1, at_5, at_5 / 10], rel=2e-3)
    base = cfg.flat(recipe(f"goyal2017/resnet50_{name.split('_')[0]}"))
    ours = cfg.flat(config)
    differing = {key for key in ours if ours[key] != base[key]}
    assert differing == changed | {"run.name", "run.references"}


def test_hes_imagenet_schedule() -> None:
    """3.4: 0.1, divided by 10 when the error plateaus, at most 60e4 iterations of 256 images."""
    config = recipe("he2015/resnet50")
    decided = [Event("dropped", 200_000), Event("dropped", 400_000)]
    found = Rates(config, IMAGENET, *decided)
    assert abs(len(found) - 600_000) < 1000
    assert [found[0], found[199_999], found[200_000], found[-1]] == pytest.approx(
        [0.1, 0.1, 0.01, 0.001]
    )
    assert at(recipe("he2015/resnet50_steps"), 0, 29.9, 30, 60, 89.9) == [
        0.1, 0.1, 0.01, 0.001, 0.001
    ]  # fmt: skip
    for name, shortcut, stride in (("resnet34_a", "A", "3x3"), ("resnet50", "B", "1x1")):
        model = recipe(f"he2015/{name}").model
        assert (model.shortcut, model.stride_in) == (shortcut, stride)


@pytest.mark.parametrize("name", ["resnet20", "resnet56", "resnet1202", "plain32", "resnet20_45k"])
def test_hes_cifar_schedule(name: str) -> None:
    """4.2: 64k iterations, 0.1, a tenth at 32k and 48k."""
    config = recipe(f"he2015/cifar10_{name}")
    images = CIFAR - config.data.holdout_images
    found = Rates(config, images, Event("warmed up", 400))
    assert len(found) == 64_000
    start = 0.01 if "1202" in name else 0.1
    steps = (0, 400, 31_999, 32_000, 47_999, 48_000, 63_999)
    assert [found[step] for step in steps] == pytest.approx(
        [start, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )
    assert (config.train.global_batch, config.data.mean_image) == (128, True)
    assert config.schedule.epochs == math.ceil(64_000 / (images // 128))


def test_huangs_schedules() -> None:
    """4.2: CIFAR 300 epochs of batch 64, a tenth at 50 % and 75 %; ImageNet 90, at 30 and 60."""
    cifar = recipe("huang2017/cifar_densenet_bc_100_12")
    found = Rates(cifar, CIFAR)
    per_epoch = CIFAR // 64
    assert len(found) == 300 * per_epoch
    steps = (0, 150 * per_epoch - 1, 150 * per_epoch, 225 * per_epoch, 300 * per_epoch - 1)
    assert [found[step] for step in steps] == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.001])
    imagenet = recipe("huang2017/densenet201")
    assert at(imagenet, 0, 29.9, 30, 60) == [0.1, 0.1, 0.01, 0.001]
    bare = recipe("huang2017/cifar_densenet_40_12_no_aug")
    assert (bare.model.dropout, bare.data.augment, bare.data.flip) == (0.2, "none", False)


def test_torchvisions_schedule() -> None:
    config = recipe("torchvision_v1/resnet101")
    assert at(config, 0, 29.9, 30, 60) == [0.1, 0.1, 0.01, 0.001]
    assert (config.optim.nesterov, config.optim.decay_norm_and_bias) == (False, True)
    assert (config.model.name, config.model.zero_gamma) == ("resnet101", False)


TINY: dict[str, dict[str, Any]] = {
    "train": {"global_batch": 4, "max_local_batch": None},
    "eval": {"local_batch": 10},
    "engine": {"compile": False, "threads": 1},
    "log": {"every_steps": 1, "wandb": "off"},
}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Ten images each, in ImageNet's shapes and in CIFAR's."""
    root = tmp_path_factory.mktemp("few")
    wide = draw_tree(root / "wide", classes=2, per_class=5, size=lambda k: (70, 90), suffix=".jpg")
    small = draw_tree(
        root / "small", classes=2, per_class=5, size=lambda k: (32, 32), suffix=".png"
    )
    return wide, small


def without_numbers(path: Path) -> str:
    """A recipe but for its names, its batch and its rates: all that two small steps depend on."""
    config = load(path).model_dump(mode="json", exclude={"run", "engine", "log", "checkpoint"})
    config["train"].pop("global_batch")
    config["optim"].pop("lr_per_256")
    config["schedule"] = {
        key: value if isinstance(value, str | bool) else value is None
        for key, value in config["schedule"].items()
    }
    return json.dumps(config)


@pytest.mark.gpu_too
@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    {without_numbers(path): path for path in RECIPES}.values(),
    ids=lambda path: str(path.relative_to(FOLDER).with_suffix("")),
)
def test_it_trains_two_steps_and_validates(path: Path, few: tuple[Path, Path]) -> None:
    config = load(path)
    on_cifar = MODELS[config.model.name].cifar and config.data.image_px == 32
    images = str(few[on_cifar])
    data = {"train": images, "image_px": 32, "threads": 1, "decode": "cpu"}
    if not on_cifar:
        data |= {"eval_resize_px": 36, "jitter_px": (36, 48)}
    data |= {"holdout_images": 2, "val": None} if config.data.holdout_images else {"val": images}
    model = {} if config.model.bn_images is None else {"bn_images": 4}
    changes = TINY | {"data": data, "model": model, "schedule": {"max_steps": 2}}
    sections = {name: section.model_copy(update=changes.get(name, {})) for name, section in config}
    with alone(cfg.Config(**sections)) as (t, resolved, train_set, val_set):
        batches = resolved.loader.train(train_set, resolved.split, epoch=0, step=0, epochs=1)
        rows: list[Row] = []
        with t.clock.account("train"):
            train_epoch(t, batches, rows.append)
        val_batches = resolved.loader.eval(val_set, resolved.eval_images)
        score = evaluate(t.model, val_batches, len(val_set), resolved, t.control)
        batches.close()
        val_batches.close()
    assert [row.step for row in rows] == [1, 2]
    assert all(math.isfinite(row.loss or math.nan) for row in rows)
    assert score.images == len(val_set)


def test_a_header_names_no_value_that_is_not_on_the_shelf() -> None:
    for path in RECIPES:
        for name in re.findall(
            r"\b(?:he2015|goyal2017|huang2017)-[a-z0-9.-]+[a-z0-9]", path.read_text()
        ):
            assert name in SHELF, f"{path}: {name}"
