"""Pixels: mean, mean image and colour, against the papers' order of doing things."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_net
import torch
from helpers import draw_tree
from trainings import alone, make_config

from harness import config as cfg
from harness.data import augment
from harness.data.dataset import open_folder
from harness.data.loader import Loader
from harness.data.mean import mean_image
from harness.data.sets import mean_of_training, open_sets
from harness.data.stream import Samples
from harness.distributed import from_environment
from harness.errors import BadInput
from harness.models import MODELS
from harness.trainer import setup
from harness.trainer.loop import evaluate, train_step
from harness.trainer.normalize import Normalize
from harness.trainer.resolve import split_batch

CPU = torch.device("cpu")


def data_of(folder: Path, **changes: object) -> cfg.Data:
    asked = {"image_px": 32, "eval_resize_px": 0, "augment": "pad_crop", "pad_px": 3, "threads": 1}
    return cfg.Data(train=str(folder), val=str(folder), **asked | changes)


def test_mean_and_standard_deviation_of_each_channel() -> None:
    data = cfg.Data(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    mean, std = (torch.tensor(t).view(1, 3, 1, 1) for t in (data.mean, data.std))
    pixels = Normalize(data)
    torch.testing.assert_close(pixels(images), (images / 255 - mean) / std)
    assert pixels.of(np.zeros((4, 12), dtype=np.int64), CPU) == ()


def test_the_mean_image_is_exact_and_kept(icons: Path) -> None:
    dataset = open_folder(icons)
    from PIL import Image

    images = [np.asarray(Image.open(dataset.where(i)).convert("RGB")) for i in range(len(dataset))]
    expected = np.stack(images).astype(np.int64).sum(axis=0) / len(dataset)
    np.testing.assert_array_equal(mean_image(dataset, 32), expected)
    kept = list(icons.glob("*-mean-*.npy"))
    assert len(kept) == 1
    kept[0].write_bytes(kept[0].read_bytes()[:100])  # torn: computed again
    np.testing.assert_array_equal(mean_image(dataset, 32), expected)
    part = dataset.part(np.arange(10), "ten")
    assert part.digest != dataset.digest
    np.testing.assert_array_equal(mean_image(part, 32), np.stack(images[:10]).mean(axis=0))


def test_where_images_may_not_be_written_the_mean_is_kept_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = draw_tree(
        tmp_path / "images", classes=2, per_class=2, size=lambda k: (8, 8), suffix=".png"
    )
    dataset = open_folder(root)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != root)
    mean = mean_image(dataset, 8)
    (kept,) = (tmp_path / "cache").rglob("*-mean-*.npy")
    np.testing.assert_array_equal(np.load(kept), mean)
    assert not list(root.glob("*mean*"))


@pytest.mark.parametrize("source", ["dali", "torchvision"])
def test_it_is_subtracted_before_padding_crop_and_mirror(icons: Path, source: str) -> None:
    """He et al. 2015, 4.2: subtract, pad with zeros, crop at random, mirror at random."""
    from PIL import Image

    data = data_of(icons, source=source, mean_image=True, std=(0.5, 0.25, 0.2))
    config = cfg.Config(data=data, train=cfg.Train(global_batch=10))
    train_set, _ = open_sets(config)
    assert train_set is not None
    assert train_set.dataset is not None
    world = from_environment("cpu", {})
    split = split_batch(config.train, 1)
    batches = Loader.resolve(data, world).train(train_set, split, epoch=0, step=0, epochs=1)
    mean = mean_of_training(data)
    pixels = Normalize(data, mean)
    seen = 0
    for batch in batches:
        ours = pixels(batch.images, *pixels.of(batch.rows, CPU))
        samples = Samples.from_rows(batch.rows)
        for i, sample in enumerate(samples.ids):
            image = np.asarray(Image.open(train_set.dataset.where(int(sample))).convert("RGB"))
            padded = np.pad(image - mean, ((3, 3), (3, 3), (0, 0)))
            x, y = samples.cut[i] + 3
            crop = padded[y : y + 32, x : x + 32]
            crop = crop[:, ::-1] if samples.flip[i] else crop
            expected = torch.from_numpy(crop / 255 / np.array(data.std)).permute(2, 0, 1)
            torch.testing.assert_close(ours[i].double(), expected, atol=1e-5, rtol=0)
            seen += 1
    batches.close()
    assert seen == 50


def test_validation_images_are_whole(icons: Path) -> None:
    data = data_of(icons, mean_image=True)
    mean = mean_of_training(data)
    pixels = Normalize(data, mean)
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    expected = (images - torch.from_numpy(mean).permute(2, 0, 1)) / 255
    std = torch.tensor(data.std).view(1, 3, 1, 1)
    torch.testing.assert_close(pixels(images).double(), expected / std, atol=1e-5, rtol=0)


def test_colour_is_added_to_the_bytes_of_each_image() -> None:
    data = cfg.Data(colour_std=0.1)
    rows = np.zeros((4, 15), dtype=np.int64)
    rows[:, 12:] = np.arange(12).reshape(4, 3) * augment.COLOR_UNITS // 255  # 0 ... 11 grey levels
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    pixels = Normalize(data)
    shifted = images + torch.arange(12.0).view(4, 3, 1, 1)
    mean, std = (torch.tensor(t).view(1, 3, 1, 1) for t in (data.mean, data.std))
    expected = (shifted / 255 - mean) / std
    torch.testing.assert_close(pixels(images, *pixels.of(rows, CPU)), expected)
    assert (pixels(images) == Normalize(cfg.Data())(images)).all(), "validation has none"


def test_synthetic_images_have_colour_too() -> None:
    """The ceiling of a recipe's computing is taken with all of its computing."""
    data = cfg.Data(source="synthetic", image_px=32, synthetic_images=64, colour_std=0.1)
    config = cfg.Config(data=data, train=cfg.Train(global_batch=8))
    train_set, _ = open_sets(config)
    assert train_set is not None
    split = split_batch(config.train, 1)
    loader = Loader.resolve(data, from_environment("cpu", {}))
    batch = next(loader.train(train_set, split, epoch=0, step=0, epochs=1))
    pixels = Normalize(data)
    shifted = pixels(batch.images, *pixels.of(batch.rows, CPU))
    assert shifted.shape == (8, 3, 32, 32)
    assert not torch.equal(shifted, pixels(batch.images))


def test_a_mean_image_needs_images_of_one_size(tmp_path: Path) -> None:
    root = draw_tree(tmp_path / "mixed", classes=2, per_class=2,
                     size=lambda k: (32, 32 + (k == 3)), suffix=".png")  # fmt: skip
    with pytest.raises(BadInput, match=r"0003\.png: is 32 x 33 px; data\.mean_image needs"):
        open_sets(cfg.Config(data=data_of(root, mean_image=True), train={"global_batch": 2}))


def test_images_held_out_are_validated_and_not_trained(icons: Path) -> None:
    data = cfg.Data(train=str(icons), image_px=32, eval_resize_px=0, holdout_images=10)
    train_set, val_set = open_sets(cfg.Config(data=data, train=cfg.Train(global_batch=10)))
    assert train_set is not None
    assert train_set.dataset is not None
    assert val_set.dataset is not None
    sets = (train_set.dataset, val_set.dataset)
    names = [{each.where(k) for k in range(len(each))} for each in sets]
    assert [len(each) for each in names] == [40, 10]
    assert not names[0] & names[1]
    assert len({train_set.digest, val_set.digest, open_folder(icons).digest}) == 3
    too_many = cfg.Config(data=data.model_copy(update={"holdout_images": 50}))
    with pytest.raises(BadInput, match=r"data\.holdout_images: 50 of the 50 images in"):
        open_sets(too_many)


@pytest.mark.gpu_too
@pytest.mark.slow
def test_what_is_shifted_image_by_image_is_compiled_once(
    icons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With shortcuts and in this machine's own precision: the other compiled tests have neither.
    monkeypatch.setitem(MODELS, "resnet20", replace(small_net.SMALL, width=16, shortcut="A"))
    data = {"augment": "pad_crop", "eval_resize_px": 0, "mean_image": True, "colour_std": 0.1}
    engine = {"compile": True, "bucket_mb": 25}
    config = make_config(icons, data=data, model={"name": "resnet20"}, engine=engine)
    with alone(config) as (t, resolved, train_set, val_set):
        warm = setup.graph_counts()
        batches = resolved.loader.train(train_set, resolved.split, epoch=0, step=0, epochs=1)
        train_step(t, batches)
        train_step(t, batches)
        val_batches = resolved.loader.eval(val_set, resolved.eval_images)
        evaluate(t.model, val_batches, len(val_set), resolved, t.control)
        assert setup.graph_counts() == warm
