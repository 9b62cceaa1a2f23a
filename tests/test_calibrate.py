"""`data.decode auto`: the faster way wins, is remembered, and is measured by one process alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import TINY, train

from harness.data.batch import Batch
from harness.data.calibrate import BATCHES, WARM_BATCHES, decode_on

KEY = {"device": "made"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    return tmp_path


class Slow:
    """Batches of two images that take so long each, but for those that do not count."""

    def __init__(self, took_s: float) -> None:
        self.took_s, self.made, self.closed = took_s, 0, False

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        time.sleep(0.01 if self.made < WARM_BATCHES else self.took_s)
        self.made += 1
        return Batch(torch.zeros(2, 3, 1, 1), torch.zeros(2), torch.zeros(2, 12).long().numpy())

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("faster", ["gpu", "cpu"])
def test_the_faster_one_is_taken(faster: str, capsys: pytest.CaptureFixture[str]) -> None:
    made: dict[str, Slow] = {}

    def make(where: str) -> Slow:
        made[where] = Slow(0.0005 if where == faster else 0.003)
        return made[where]

    assert decode_on(KEY, make) == faster
    assert set(made) == {"gpu", "cpu"}
    assert all(each.closed and each.made == WARM_BATCHES + BATCHES for each in made.values())


def test_it_is_remembered_for_the_same_and_measured_for_others(cache: Path) -> None:
    measured = []

    def make(where: str) -> Slow:
        measured.append(where)
        return Slow(0.001 if where == "cpu" else 0.002)

    assert [decode_on(KEY, make) for _ in range(3)] == ["cpu"] * 3
    assert measured == ["gpu", "cpu"]
    decode_on(KEY | {"threads": 2}, make)
    assert len(measured) == 4
    for path in (cache / "decode").glob("*.json"):
        path.write_text(path.read_text()[:20])  # torn
    decode_on(KEY, make)
    assert len(measured) == 6


def test_the_ranks_of_a_node_agree() -> None:
    measured, answers = [], []

    def make(where: str) -> Slow:
        measured.append(where)
        return Slow(0.001)

    ranks = [
        threading.Thread(target=lambda: answers.append(decode_on(KEY, make))) for _ in range(4)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert len(set(answers)) == 1
    assert len(answers) == 4
    assert measured == ["gpu", "cpu"]


@pytest.mark.gpu
def test_auto_is_settled_on_a_gpu(photos: Path, tmp_path: Path, cache: Path) -> None:
    words = [*TINY, "--data.train", photos, "--data.val", photos, "--train.global-batch", "16"]
    done = train(*words, "--run.dry-run", "--data.decode", "auto", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((cache / "decode").glob("*.json"))) == 1
    assert "remembered in" in done.stdout
    assert "data: dali, decoded on" in done.stdout
