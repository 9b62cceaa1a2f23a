"""Arms in turns: what is promised is so, whatever the machine does meanwhile."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self, cast

import pytest
import torch
import yaml
from helpers import TINY, on_gpu, train
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import python
from torch.profiler import ProfilerActivity

from harness.bench.ladder.rungs import Rung, Turn
from harness.bench.sweep import scaling, show_scaling
from harness.bench.sweep.pairs import MOST_STARTS, Base
from harness.bench.sweep.process import VariantFailed, VariantProcess
from harness.bench.sweep.scaling import Cell, cells_of, efficiencies
from harness.bench.sweep.show_sweep import best_yaml
from harness.bench.sweep.sweep import Swept, largest_batch, sweep
from harness.bench.sweep.switches import candidates
from harness.bench.sweep.variant import WORKERS, Variant, read_variant, worker_in
from harness.bench.sweep.worker import _launches
from harness.bench.turns import TIME_OVER
from harness.config import load
from harness.errors import BadInput
from harness.trainer.loop import Training

WORDS = (*TINY, "--data.source", "synthetic", "--train.global-batch", "16")
BASE = Variant("base", WORDS)
FACTS = {
    "on_gpu": False,
    "cores": 2,
    "came_to": {
        "engine.precision": "bf16", "engine.compile": "false", "engine.threads": "1",
        "data.threads": "1", "data.decode": "cpu", "train.max_local_batch": "16",
    },
}  # fmt: skip


class Machine:
    """A machine on which arms are so much faster than the base, with noise and drift, by law.

    Args:
        speeds: of `key=value`, by which an arm's rate is multiplied.
        luck: by which starts differ, as `noise` is that by which turns do.
        holds: images of a local batch that the memory of all that are alive holds together.
    """

    def __init__(self, speeds: dict[str, float], *, noise: float = 0.0, drift: float = 0.0,
                 luck: float = 0.0, holds: float = math.inf, seed: int = 0) -> None:  # fmt: skip
        self.speeds, self.noise, self.drift, self.holds = speeds, noise, drift, holds
        self.luck = luck
        self.random = random.Random(seed)
        self.turns = 0
        self.alive: list[Made] = []

    def start(self, arm: Variant, log: Path) -> VariantProcess:
        return cast(VariantProcess, Made(self, arm))

    def rate(self, arm: Variant) -> float:
        self.turns += 1
        speed = math.prod(self.speeds[f"{key}={value}"] for key, value in arm.flags.items())
        weather = math.exp(self.random.gauss(0, self.noise)) * (1 - self.drift) ** self.turns
        return 100 * speed * weather


class Made:
    """An arm of it."""

    def __init__(self, machine: Machine, arm: Variant) -> None:
        self.machine, self.arm = machine, arm
        self.images = int(arm.flags.get("train.global_batch", 16))
        alive = sum(each.images for each in machine.alive)
        if alive + self.images > machine.holds:
            raise VariantFailed(arm, "out of memory", memory=True)
        machine.alive.append(self)
        self.facts: dict[str, Any] = dict(FACTS)
        self.luck = math.exp(machine.random.gauss(0, machine.luck))

    def ready(self) -> None:
        pass

    def turn(self, turn_s: float) -> float:
        assert self in self.machine.alive
        return self.luck * self.machine.rate(self.arm)

    def end(self) -> dict[str, Any]:
        return self.facts | {"memory_peak_gib": 1.0}

    def close(self) -> None:
        if self in self.machine.alive:
            self.machine.alive.remove(self)


def arm(**flags: str) -> Variant:
    named = {key.replace("__", "."): value for key, value in flags.items()}
    return Variant(" ".join(f"{k}={v}" for k, v in named.items()), WORDS, named)


def swept(
    machine: Machine, arms: list[Variant], folder: Path, *, any_result: bool = False
) -> Swept:
    return sweep(
        BASE, lambda _: arms, until=time.perf_counter() + 0.5, folder=folder,
        may_change_result=any_result, start=machine.start,
    )  # fmt: skip


@pytest.mark.parametrize("on_gpu", [False, True])
def test_on_a_gpu_an_arm_has_set_itself_up_before_the_next_one_starts(on_gpu: bool) -> None:
    """Both choose kernels by timing them there."""
    seen: list[str] = []

    class Noted(Made):
        def __init__(self, arm: Variant) -> None:
            super().__init__(machine, arm)
            self.facts["on_gpu"] = on_gpu
            self.name = arm.name
            seen.append(f"{self.name} starts")

        def ready(self) -> None:
            seen.append(f"{self.name} is ready")

    machine = Machine({})
    base = Base(BASE, Path(), lambda arm, log: Noted(arm))
    seen.clear()
    base.compare(Variant("arm", WORDS), 0.0)
    base_first = ["base starts", "base is ready", "arm starts", "arm is ready"]
    assert seen == (base_first if on_gpu else [base_first[k] for k in (0, 2, 1, 3)])


@pytest.mark.parametrize("name", ["cudaGraphLaunch", "cudaGraphLaunch_v10000"])
def test_graphs_launched_are_those_of_one_step(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Of each rank's turn of one step, which takes three more before it; seen by CUDA's tracer."""
    t = SimpleNamespace(step=7, resolved=SimpleNamespace(world=SimpleNamespace(on_gpu=True)))

    class Profiler:
        def __init__(self, activities: list[ProfilerActivity]) -> None:
            self.sees = set(activities) == {ProfilerActivity.CPU, ProfilerActivity.CUDA}

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def key_averages(self) -> list[SimpleNamespace]:
            launches = [SimpleNamespace(key=name, count=5 * (t.step - 7))] * self.sees
            return [SimpleNamespace(key="cudaLaunchKernel", count=99), *launches]

    def turn(steps: int) -> Turn:
        t.step += 3 + steps
        return Turn([], 1.0, 1.0)

    monkeypatch.setattr(torch.profiler, "profile", Profiler)
    assert _launches(cast(Training, t), Rung("everything", turn, 8)) == 5
    t.resolved.world.on_gpu = False
    assert _launches(cast(Training, t), Rung("everything", turn, 8)) is None


@given(drift=st.floats(0, 0.02), true=st.floats(0.5, 2.0), seed=st.integers(0, 999))
@settings(max_examples=30)
def test_a_steady_drift_of_the_machine_leaves_the_ratio_alone(
    drift: float, true: float, seed: int
) -> None:
    machine = Machine({"engine.bucket_mb=1": true}, drift=drift, seed=seed)
    base = Base(BASE, Path(), machine.start)
    trial = base.compare(arm(engine__bucket_mb="1"), 0.01)
    # Pairs turn round: of an odd number one is left over.
    assert abs(math.log(trial.ratio / true)) <= -math.log(1 - drift) / len(trial.pairs) + 1e-9


def test_starts_that_differ_are_not_taken_for_a_difference() -> None:
    """Each start is luckier or not, by far more than its turns tell; intervals know of it."""
    covered = 0
    for seed in range(400):
        machine = Machine({"engine.bucket_mb=1": 1.1}, noise=0.001, luck=0.03, seed=seed)
        trial = Base(BASE, Path(), machine.start).compare(arm(engine__bucket_mb="1"), 10)
        assert len(trial.starts) == MOST_STARTS
        low, high = trial.interval
        covered += low <= 1.1 <= high
    assert 0.92 < covered / 400 < 0.98


def test_intervals_cover_the_truth() -> None:
    covered = 0
    for seed in range(400):
        machine = Machine({"engine.bucket_mb=1": 1.1}, noise=0.03, seed=seed)
        low, high = (
            Base(BASE, Path(), machine.start).compare(arm(engine__bucket_mb="1"), 0).interval
        )
        covered += low <= 1.1 <= high
    assert 0.92 < covered / 400 < 0.98


def test_winners_are_put_together_and_measured_anew(tmp_path: Path) -> None:
    speeds = {
        "engine.bucket_mb=1": 1.2, "engine.channels_last=false": 0.7, "data.threads=2": 1.3,
        "data.threads=3": 1.25, "engine.precision=fp32": 2.0, "engine.static_graph=true": 1.005,
    }  # fmt: skip
    machine = Machine(speeds, noise=0.001)
    tried = [Variant(name, WORDS, dict([name.split("=")])) for name in speeds]
    found = swept(machine, tried, tmp_path)
    assert found.best is not None
    assert found.best.variant.flags == {"data.threads": "2", "engine.bucket_mb": "1"}
    assert found.best.ratio == pytest.approx(1.2 * 1.3, rel=0.01)
    assert all(found.best is not trial for trial in found.trials)
    assert not machine.alive
    best = swept(machine, tried, tmp_path, any_result=True).best
    assert best is not None
    assert best.variant.flags["engine.precision"] == "fp32"


def test_where_nothing_is_faster_all_stays_as_it_was(tmp_path: Path) -> None:
    machine = Machine({"engine.bucket_mb=1": 1.0, "engine.static_graph=true": 0.9}, noise=0.002)
    found = swept(machine, [arm(engine__bucket_mb="1"), arm(engine__static_graph="true")], tmp_path)
    assert (found.best, found.finals) == (None, [])
    config = load.load(WORDS)
    (tmp_path / "best.yaml").write_text(best_yaml(found, config))
    again = load.load([str(tmp_path / "best.yaml")])
    assert again.engine == config.engine
    assert again.data == config.data


def test_winners_that_contradict_each_other_are_not_put_together(tmp_path: Path) -> None:
    words = (*WORDS, "--optim.momentum", "0.9")
    first = Variant("a", words, {"optim.nesterov": "true"})
    second = Variant("b", words, {"optim.momentum": "0"})
    with pytest.raises(BadInput):
        load.load([*words, "--optim.nesterov", "true", "--optim.momentum", "0"])
    machine = Machine({"optim.nesterov=true": 1.5, "optim.momentum=0": 1.4})
    found = swept(machine, [first, second], tmp_path)
    assert found.best is not None
    assert found.best.variant.flags == {"optim.nesterov": "true"}


def test_what_does_not_fit_beside_the_base_is_measured_apart() -> None:
    machine = Machine({"train.global_batch=64": 1.5}, holds=70)
    base = Base(BASE, Path(), machine.start)
    trial = base.compare(arm(train__global_batch="64"), 0.01)
    assert not trial.together
    assert trial.ratio == pytest.approx(1.5)
    assert trial.facts["memory_peak_gib"] == 1.0


@given(holds=st.integers(16, 1000), most=st.sampled_from([2, 4, 16]))
def test_the_largest_batch_that_fits_is_found(holds: int, most: int) -> None:
    machine = Machine({}, holds=holds)
    machine.rate = lambda arm: 1.0  # type: ignore[method-assign]
    base = Base(BASE, Path(), machine.start)
    found = largest_batch(base, lambda n: arm(train__global_batch=str(16 * n)), most, math.inf)
    fitting = [n for n in (2, 4, 8, 16) if n <= most and 16 * n <= holds]
    assert (found is None) == (not fitting)
    if found is not None:
        assert found.flags == {"train.global_batch": str(16 * max(fitting))}


def test_a_failing_arm_is_told_and_a_failing_base_ends_all(tmp_path: Path) -> None:
    machine = Machine({"engine.bucket_mb=1": 1.1})

    def start(arm: Variant, log: Path) -> Made:
        if arm.flags.get("engine.bucket_mb") == "2":
            raise VariantFailed(arm, "it broke")
        return machine.start(arm, log)

    arms = [arm(engine__bucket_mb="2"), arm(engine__bucket_mb="1")]
    found = sweep(
        BASE, lambda _: arms, until=time.perf_counter() + 0.5, folder=tmp_path,
        may_change_result=False, start=start,
    )  # fmt: skip
    assert [each.failed for each in found.trials] == ["it broke", None]

    def broken(arm: Variant, log: Path) -> Made:
        raise VariantFailed(arm, "the base broke")

    with pytest.raises(VariantFailed, match="base: the base broke"):
        sweep(BASE, lambda _: arms, until=0, folder=tmp_path, may_change_result=False, start=broken)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_every_switch_is_a_setting_that_training_takes(
    ranks: int, on_gpu: bool, compiled: str
) -> None:
    words = ["--data.train", "x", "--data.val", "x", "--engine.compile", compiled,
             "--engine.device", "cuda" if on_gpu else "cpu"]  # fmt: skip
    config = load.load(words)
    came_to = FACTS["came_to"] | {"engine.compile": compiled}  # type: ignore[operator]
    found = candidates(config, ranks, FACTS | {"on_gpu": on_gpu, "came_to": came_to})
    assert found
    for key, values in found.items():
        now = came_to.get(key, load.as_text(getattr(config, key.split(".")[0])))
        assert values
        assert now not in values
        for value in values:
            load.load([*words, f"--{key.replace('_', '-')}", value])


def test_arms_are_read(tmp_path: Path) -> None:
    text = f"engine.bucket-mb=3 python={sys.executable} data.threads=2"
    read = read_variant(text, BASE, tmp_path)
    assert read.flags == {"engine.bucket_mb": "3", "data.threads": "2"}
    assert read.python == Path(sys.executable)
    here = read_variant("commit=HEAD", BASE, tmp_path)
    assert worker_in(here.code) == WORKERS[0]
    assert tmp_path in here.code.parents


def test_an_older_commit_has_its_worker_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        worker_in(tmp_path)
    (tmp_path / "harness" / "bench").mkdir(parents=True)
    (tmp_path / "harness" / "bench" / "arm.py").touch()
    arm = Variant("older", ("--engine.compile", "false"), code=tmp_path)
    assert arm.command("port")[1:] == ["-m", "harness.bench.arm", "port"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fast", "write section.key=value"),
        ("engine.bukket_mb=3", "no such flag"),
        ("engine.bucket_mb=0", "must be greater than 0"),
        ("python=/no/such/python", "no such program"),
        ("commit=0123456789", "commit=0123456789"),
    ],
)
def test_an_arm_that_is_none_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_variant(text, BASE, tmp_path)


def bench(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return python("-m", "harness", "bench", *words, cwd=cwd)


@pytest.mark.gpu_too
@pytest.mark.slow
def test_a_sweep_from_its_command_to_the_config(tmp_path: Path) -> None:
    arms = ("--arm", "engine.channels-last=false", "--arm", "optim.momentum=-1")
    refused = bench("sweep", *WORDS, *arms, cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "bench").exists()
    done = bench(
        "sweep", *WORDS, *on_gpu(), "--minutes", "0.01", *arms[:2],
        "--arm", "train.max_local_batch=100000000000", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "bench/sweep/sweep.json").read_text())
    first, _ = report["trials"]
    assert sum(map(len, first["starts"])) >= 3
    assert first["facts"]["recompiles"] == first["facts"]["breaks"] == 0
    low, high = first["interval"]
    assert low < first["ratio"] < high
    assert "train.max_local_batch=100000000000: not measured: the time was over" in done.stdout
    best = tmp_path / "bench/sweep/best.yaml"
    trained = train(best, "--data.synthetic-images", "64", "--run.dry-run", "true", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert yaml.safe_load(best.read_text())["run"]["name"] is None


@pytest.mark.gpu_too
@pytest.mark.slow
def test_ranks_of_an_arm_are_measured_together(tmp_path: Path) -> None:
    working = VariantProcess(Variant("two", (*WORDS, *on_gpu()), ranks=2), tmp_path / "log")
    try:
        working.ready()
        assert working.turn(0.1) > 0
        assert working.end()["buckets"] >= 1
    finally:
        working.close()


def test_an_arm_that_ends_with_an_error_names_it_and_its_log(tmp_path: Path) -> None:
    done = bench("sweep", "--data.train", tmp_path / "none", "--data.val", tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: base: ")
    assert "bench/sweep/logs/001.log" in done.stderr
    assert "Traceback" not in done.stderr


@given(
    rates=st.lists(st.tuples(*[st.floats(10, 1000)] * 3), min_size=3, max_size=6),
    factor=st.floats(0.1, 10),
)
def test_efficiency_does_not_know_how_fast_the_machine_is(
    rates: list[tuple[float, ...]], factor: float
) -> None:
    def cells(scale: float) -> list[Cell]:
        columns = list(zip(*rates, strict=True))
        return [
            Cell(("weak",), n, 8 * n, [scale * rate for rate in column])
            for n, column in zip((1, 2, 4), columns, strict=True)
        ]

    one, other = efficiencies(cells(1), "weak"), efficiencies(cells(factor), "weak")
    for n in (1, 2, 4):
        assert one[n].value == pytest.approx(other[n].value)
        assert one[n].low <= one[n].value <= one[n].high
    assert one[1] == scaling.Efficiency(1, 1, 1)


def test_perfect_scaling_is_one() -> None:
    cells = [Cell(("weak",), n, 8 * n, [100.0 * n, 110.0 * n, 90.0 * n]) for n in (1, 2, 8)]
    for each in efficiencies(cells, "weak").values():
        assert (each.value, each.low, each.high) == pytest.approx((1, 1, 1))


@given(st.sets(st.sampled_from([1, 2, 4, 8, 16]), min_size=1), st.sampled_from([16, 64, 8192]))
def test_cells_hold_what_weak_and_strong_mean(ranks: set[int], batch: int) -> None:
    config = load.load([*TINY, "--data.source", "synthetic", "--train.global-batch", str(batch)])
    cells = cells_of(config, sorted(ranks))
    weak = {c.global_batch / c.ranks for c in cells if "weak" in c.kinds}
    strong = {c.global_batch for c in cells if "strong" in c.kinds}
    assert (weak, strong) == ({batch / max(ranks)}, {batch})
    for kind in ("weak", "strong"):
        assert {c.ranks for c in cells if kind in c.kinds} == ranks


def test_a_batch_that_cannot_be_shared_out_is_one_line() -> None:
    config = load.load([*TINY, "--data.source", "synthetic", "--train.global-batch", "16"])
    with pytest.raises(BadInput, match="multiple of each number"):
        cells_of(config, [1, 2, 3])


@pytest.mark.parametrize("measured", [1, 2, 3])
def test_scaling_shows_what_the_time_sufficed_for(tmp_path: Path, measured: int) -> None:
    cells = [Cell(("weak",), 1, 8), Cell(("strong",), 1, 16), Cell(("weak", "strong"), 2, 16)]
    for cell in cells[:measured]:
        cell.rates.append(100.0 * cell.ranks)
    for cell in cells[measured:]:
        cell.failed = TIME_OVER
    show_scaling.show(cells, BASE, tmp_path)
    report = json.loads((tmp_path / "scaling.json").read_text())
    assert [cell["failed"] for cell in report["cells"]].count(TIME_OVER) == 3 - measured
    line = "intervals are not known after one round; give more --minutes"
    assert report["lines"].count(line) == 1
    both = {"value": 1.0, "low": None, "high": None}
    assert report["efficiency"]["strong"].get("2") == (both if measured == 3 else None)
    assert "<svg" in (tmp_path / "scaling.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("sweep", "--minutes", "0"), "must be more than 0"),
        (("sweep", "--ranks", "0"), "must be at least 1"),
        (("scaling", "--ranks", "1,two"), "--ranks: write numbers from 1 on"),
        (("scaling", "--engine.bukket-mb", "1"), "did you mean --engine.bucket-mb?"),
        (("scaling", *WORDS, "--ranks", "3"), "multiple of each number"),
        (("sweep", *WORDS, "--out", "/proc/none"), "name a folder"),
    ],
)
def test_bad_words_are_one_line(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    done = bench(*words, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert message in done.stderr


def test_torchrun_is_not_asked_for(tmp_path: Path) -> None:
    done = python("-m", "harness", "bench", "sweep", *WORDS, ranks=2, cwd=tmp_path)
    assert done.returncode == 2
    assert "with --ranks" in done.stderr
