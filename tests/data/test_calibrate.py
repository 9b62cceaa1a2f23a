"""`data.decode auto`: what training needs decides; it is remembered, and one process measures."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, train

from harness import config as cfg
from harness.config import load
from harness.data import calibrate, dali_info
from harness.data.batch import Batch
from harness.data.calibrate import MOST_BATCHES, WARM_BATCHES, WAYS, Demand, choose, decode_on
from harness.data.dataset import Dataset
from harness.data.loader import Loader
from harness.data.sets import open_sets
from harness.data.stream import Split
from harness.distributed import World, from_environment
from harness.doctor.chaos import plan
from harness.errors import BadInput

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
        time.sleep(0.001 if self.made < WARM_BATCHES else self.took_s)
        self.made += 1
        return Batch(torch.zeros(2, 3, 1, 1), torch.zeros(2), torch.zeros(2, 12).long().numpy())

    def close(self) -> None:
        self.closed = True


def decode(
    make: Callable[[str], Any], *, bound: float | None = None, key: Any = KEY, **how: Any
) -> str:
    demand = None if bound is None else Demand({"model": "made"}, lambda: bound)
    return decode_on(
        key, WAYS, make, read_once=how.get("read_once", lambda: None), demand=demand
    )  # fmt: skip


@pytest.mark.parametrize(
    ("cpu", "split", "gpu", "bound", "way"),
    [
        (7000, 9000, 12000, 7100, "cpu"),  # enough for training: the GPU is left alone
        (3000, 7000, 12000, 7100, "split"),
        (3000, 5000, 12000, 7100, "gpu"),
        (3000, 5000, 4000, 7100, "split"),  # none is enough: the fastest
        (950, 960, 1000, 7100, "cpu"),  # none is enough, and none is clearly faster
        (3000, 7000, 12000, None, "gpu"),  # nothing is known of the training
        (13000, 7000, 12000, None, "cpu"),
    ],
)
def test_what_is_enough_for_training_and_takes_least_of_the_gpu_is_taken(
    cpu: float, split: float, gpu: float, bound: float | None, way: str
) -> None:
    assert choose({"cpu": cpu, "split": split, "gpu": gpu}, bound) == way
    without_nvjpeg = {"cpu": cpu, "split": split}
    assert choose(without_nvjpeg, bound) in without_nvjpeg


def test_each_way_has_turns_forth_and_back_on_bytes_that_were_read(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On cold files the first way would pay for the disk, and the answer would be kept."""
    done: list[str] = []
    made: list[Slow] = []

    def make(where: str) -> Slow:
        done.append(where)
        made.append(Slow(0.0005 if where == "gpu" else 0.003))
        return made[-1]

    way = decode(make, bound=1e9, read_once=lambda: done.append("read"))
    assert way == "gpu"
    assert done == ["read", "cpu", "split", "gpu", "gpu", "split", "cpu"]
    assert all(each.closed and each.made == WARM_BATCHES + MOST_BATCHES for each in made)
    (path,) = (cache / "decode").glob("*.json")
    content = json.loads(path.read_text())
    assert content["decode"] == "gpu"
    assert set(content["images_per_second"]) == set(WAYS), "all rates are kept"
    assert content["training_bound"] == 1e9
    assert content["of"]["training"] == {"model": "made"}
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("data.decode auto: gpu, from cpu ")


def test_a_turn_has_an_end_where_decoding_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "TURN_S", 0.01)
    batches = Slow(0.004)
    images, seconds = calibrate._turn(batches)
    assert 0 < images < 2 * MOST_BATCHES
    assert 0.01 <= seconds < 0.1
    assert batches.closed


def test_it_is_remembered_for_the_same_and_measured_for_others(cache: Path) -> None:
    measured = []

    def make(where: str) -> Slow:
        measured.append(where)
        return Slow(0.0001 if where == "cpu" else 0.002)

    assert [decode(make) for _ in range(3)] == ["cpu"] * 3
    assert len(measured) == 6
    decode(make, key=KEY | {"threads": 2})
    assert len(measured) == 12
    decode(make, bound=5.0)  # for another training
    assert len(measured) == 18
    for path in (cache / "decode").glob("*.json"):
        path.write_text(path.read_text()[:20])  # torn
    decode(make)
    assert len(measured) == 24


def test_the_ranks_of_a_node_agree() -> None:
    measured, answers = [], []

    def make(where: str) -> Slow:
        measured.append(where)
        return Slow(0.001)

    ranks = [threading.Thread(target=lambda: answers.append(decode(make))) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert len(set(answers)) == 1
    assert len(answers) == 4
    assert measured == [*WAYS, *reversed(WAYS)]


def test_bytes_are_read_of_all_batches_that_are_measured(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "MOST_BATCHES", 2)
    data = cfg.Data(train=str(photos), val=str(photos), image_px=32)
    train_set, _ = open_sets(cfg.Config(data=data, train=cfg.Train(global_batch=8)))
    assert train_set is not None
    assert train_set.dataset is not None
    read: list[int] = []
    monkeypatch.setattr(Dataset, "content", lambda self, sample: read.append(sample))
    split = Split(8, 8, 1, 1)
    loader = Loader.resolve(data, from_environment("cpu", {}))
    samples = loader.samples(train_set, split)
    calibrate.read_once(loader.data, train_set, samples, loader.threads)
    batches = WARM_BATCHES + 2 + data.read_ahead_batches + data.prefetch_batches + 1
    first = itertools.islice(loader.samples(train_set, split), batches)
    assert sorted(read) == sorted(sample for batch in first for sample in batch.ids.tolist())


def test_equal_bits_on_a_gpu_are_asked_of_the_cpu_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nvJPEG shares a batch out among decoders that do not give the same pixels."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(plan, "_resolved", lambda config, ranks: config)

    def decoded(*more: str) -> str:
        words = [*TINY[: TINY.index("--data.decode")], "--data.source", "synthetic", *more]
        made = plan.make(words, ranks=2, steps=4, folder=tmp_path)
        return load.load(made.args, prog="x").data.decode

    assert decoded("--engine.device", "auto") == "cpu"
    assert decoded("--engine.device", "cpu") == "auto"


REFUSED = [
    ({"decode": "split"}, {}, False, "data.decode: split was asked for, but this process has no"),
    ({"decode": "gpu"}, {}, False, "data.decode: gpu was asked for, but this process has no GPU"),
    ({"decode": "gpu"}, {"has_nvjpeg": False}, True, "data.decode: gpu needs nvJPEG, and no"),
    ({}, {"driver_cuda": 11}, True, "data.source: the driver knows CUDA 11, DALI needs 12; in"),
    ({}, {"installed": dali_info.Dali("2.4.0", 12, ("a", "b"))}, False,
     "data.source: a and b are installed over each other; pip uninstall a b, then install one"),
    ({}, {"installed": dali_info.Dali(None, None, ())}, False,
     "data.source: DALI is not installed; in"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "machine", "on_gpu", "message"), REFUSED)
def test_a_dali_that_cannot_do_it_is_refused_before_training(
    data: dict[str, str], machine: dict[str, Any], on_gpu: bool, message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, answer in ({"driver_cuda": 13, "has_nvjpeg": True} | machine).items():
        monkeypatch.setattr(dali_info, name, lambda *args, answer=answer: answer)
    world = World(0, 0, 1, 1, torch.device("cuda:0" if on_gpu else "cpu"))
    with pytest.raises(BadInput) as raised:
        Loader.resolve(cfg.Data(**data), world)  # type: ignore[arg-type]
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


@pytest.mark.gpu
def test_auto_is_settled_on_a_gpu(photos: Path, tmp_path: Path, cache: Path) -> None:
    words = [*TINY, "--data.train", photos, "--data.val", photos, "--train.global-batch", "16"]
    done = train(*words, "--run.dry-run", "--data.decode", "auto", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((cache / "decode").glob("*.json"))) == 1
    assert "stored in" in done.stdout
    assert "data: dali, decoded on" in done.stdout
