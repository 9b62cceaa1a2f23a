"""At ImageNet's size: what every rank holds, and that 256 ranks see each image exactly once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.data import augment, indexing
from harness.data.dataset import Dataset, open_folder
from harness.data.stream import Split, Stream, order, train_samples

IMAGES, CLASSES = 1_281_167, 1000
MIB = 2**20


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return np.sort(np.arange(IMAGES, dtype=np.int32) % CLASSES)


def facts(labels: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "labels": labels,
        "width": np.full(IMAGES, 500, dtype=np.int32),
        "height": np.full(IMAGES, 375, dtype=np.int32),
        "size_bytes": np.full(IMAGES, 110_000, dtype=np.int64),
        "digest": np.array("0" * 16),
    }


def made_tree(root: Path, labels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    for label in range(CLASSES):
        (root / f"n{label:08d}").mkdir(parents=True)
    names = np.char.mod(b"n01440764_%05d.JPEG", np.arange(IMAGES) % 100_000)
    monkeypatch.setattr(indexing, "build_tree", lambda *_: facts(labels) | {"names": names})
    return open_folder(root)


def made_shards(root: Path, labels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    root.mkdir()
    for number in range(257):
        (root / f"train-{number:06d}.tar").touch()
    place = np.arange(IMAGES)
    more = {
        "offset": place % 5000 * 112_640 + 512,
        "shard": (place // 5000).astype(np.int32),
        "shards": np.array([f"train-{number:06d}.tar" for number in range(257)]),
        "shard_bytes": np.full(257, 600_000_000),
        "classes": np.array([f"n{label:08d}" for label in range(CLASSES)]),
        "named": np.array(True),
    }
    monkeypatch.setattr(indexing, "build_shards", lambda *_: facts(labels) | more)
    return open_folder(root)


@pytest.mark.parametrize("kind", ["tree", "shards"])
def test_the_index_takes_less_than_64_mib(
    labels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    made = {"tree": made_tree, "shards": made_shards}[kind]
    made(tmp_path / "images", labels, monkeypatch)
    monkeypatch.undo()
    data = open_folder(tmp_path / "images")  # from what was kept
    assert len(data) == IMAGES
    held = {id(each): each.nbytes for part in (data, data.files) for each in vars(part).values()
            if isinstance(each, np.ndarray)}  # fmt: skip
    assert 30 * MIB < sum(held.values()) < 64 * MIB


def test_256_ranks_see_each_image_once(labels: np.ndarray) -> None:
    side = np.full(IMAGES, 400, dtype=np.int32)
    law = augment.resized_crop((0.08, 1.0), (3 / 4, 4 / 3), 224, flip=True)
    stream, split = Stream(3, labels, side, side, law), Split(8192, 32, 1, 256)
    seen = []
    for step in (0, 17, 155):
        for rank in range(256):
            samples = next(train_samples(stream, split, rank, epoch=2, step=step, epochs=3))
            seen.append(samples.ids)
    epoch = order(3, 2, IMAGES)
    due = [epoch[step * 8192 : (step + 1) * 8192] for step in (0, 17, 155)]
    np.testing.assert_array_equal(np.concatenate(seen), np.concatenate(due))
    assert len(np.unique(epoch)) == IMAGES
