"""The ladder: its law, its limits, what it says; and the command from its words to the page."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from helpers import TINY, launcher, on_gpu
from hypothesis import given
from hypothesis import strategies as st
from ranks import python, started
from trainings import alone, make_config

from harness import config as cfg
from harness.bench.ladder import rungs, show_ladder
from harness.bench.ladder.advice import Change, first_change
from harness.bench.ladder.limits import Limits
from harness.bench.ladder.rungs import Rung, Turn
from harness.bench.ladder.summary import (
    AllRanksTurn,
    Ladder,
    Law,
    Measured,
    Part,
    _fill_in,
    law_of,
)
from harness.config import load
from harness.data.sets import open_sets
from harness.distributed import World
from harness.trainer.resolve import Resolved, resolve

SECONDS = st.dictionaries(
    st.sampled_from(["data", "compute", "all-reduce"]), st.floats(1e-5, 10), min_size=1
)


@given(SECONDS)
def test_shared_parts_add_up_and_overlapped_ones_do_not(parts: dict[Part, float]) -> None:
    shared, overlapped = Law(shared=True), Law(shared=False)
    assert shared.whole_s(parts) == pytest.approx(sum(parts.values()))
    assert overlapped.whole_s(parts) == max(parts.values())
    for law in (shared, overlapped):
        whole = replace(ladder("data"), law=law, parts_s=parts)
        assert parts[whole.binds] == max(parts.values())
        rates = {part: whole.without(part) or math.inf for part in parts}
        assert rates[whole.binds] >= 1 / law.whole_s(parts)
        assert rates[whole.binds] >= max(rates.values()) * (1 - 1e-9)


def test_a_turn_sets_the_network_to_training_once(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To do so in each step takes 161 modules' time of a host that is to be measured."""
    modes: list[int] = []
    with alone(make_config(photos)) as (t, _, train_set, _):
        batches = t.resolved.loader.train(train_set, t.resolved.split, epoch=0, step=0, epochs=9)
        train = t.model.eval().train
        monkeypatch.setattr(t.model, "train", lambda: (modes.append(t.step), train()))
        whole = rungs._whole(rungs.DDP, t, batches)
        for rung in (whole, *rungs._compute_rungs(t, batches, 12)):
            assert len(rung.turn(3).steps_ms) == 3
            assert t.model.net.training
    assert modes == [0, 4, 4, 4]


def test_steps_that_cannot_be_told_apart_are_not(photos: Path) -> None:
    with alone(make_config(photos)) as (_, resolved, *_):
        turn = rungs._by_steps(lambda: time.sleep(0.001), resolved, apart=False)(3)
    assert turn.steps_ms == []
    assert turn.seconds > 0.003


@pytest.mark.parametrize(
    ("on_gpu", "loader", "compute", "cores", "shared"),
    [(True, 8, 8, 8, False), (False, 2, 2, 2, True), (False, 2, 2, 4, False),
     (False, 1, 2, 2, True)],
)  # fmt: skip
def test_cores_are_shared_where_they_are_too_few(
    on_gpu: bool, loader: int, compute: int, cores: int, shared: bool
) -> None:
    machine = SimpleNamespace(on_gpu=on_gpu, cores=lambda: cores)
    run = SimpleNamespace(world=machine, loader=SimpleNamespace(threads=loader), threads=compute)
    assert law_of(cast(Resolved, run)).shared == shared


def ladder(binds: Part, *, cold: float = 1e6, fits: bool = True) -> Ladder:
    """A ladder in which one part takes nearly all the time."""
    parts: dict[Part, float] = {"data": 1e-3, "compute": 1e-3, "all-reduce": 1e-3} | {binds: 1e-1}
    rates = {rungs.LOADER: 1000.0, rungs.READ_COLD: cold}
    law = Law(shared=True)
    return Ladder(
        what=["network: made up"],
        ranks_per_node=1,
        rungs=[
            Measured(name, about, images_per_second=rates.get(name, 100.0), low=99.0, high=101.0)
            for name, about in rungs.ABOUT.items()
        ],
        law=law, parts_s=parts, predicted=1 / law.whole_s(parts), peak="a peak", mfu_pct=1.0,
        memory_pct=1.0, fits_in_memory=fits,
    )  # fmt: skip


def resolved(*words: str) -> Resolved:
    config = load.load([*TINY, "--data.source", "synthetic", *words])
    images, _ = open_sets(config.model_copy(update={"data": cfg.Data(source="synthetic")}))
    return resolve(config, World(0, 0, 1, 1, torch.device("cpu")), images)


ADVICE: list[tuple[str, Part, tuple[str, ...], dict[str, Any], str]] = [
    ("bare", "data", ("--data.source", "torchvision", "--data.train", "x"), {}, "--data.source"),
    ("disk", "data", ("--data.source", "dali"), {"cold": 1200.0, "fits": False},
     "--data.read-ahead-batches"),
    ("compiled", "compute", ("--engine.threads", "0"), {}, "--engine.compile"),
    ("layout", "compute", ("--engine.channels-last", "false"), {}, "--engine.channels-last"),
    ("buckets", "all-reduce", ("--train.global-batch", "256"), {}, "--engine.bucket-mb"),
    ("batch", "all-reduce", ("--train.global-batch", "16"), {}, "--train.global-batch"),
    ("links", "all-reduce", ("--train.global-batch", "256", "--engine.bucket-mb", "50"), {},
     "harness doctor"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "part", "words", "more", "message"), ADVICE)
def test_advice_names_what_is_open_for_the_part_that_binds(
    name: str, part: Part, words: tuple[str, ...], more: dict[str, Any], message: str
) -> None:
    change = first_change(ladder(part, **more), resolved(*words), kb_per_image=None)
    assert message in change.text


def test_where_decoding_binds_the_gpu_is_given_more_of_it() -> None:
    base = resolved("--data.source", "dali", "--data.threads", "999")
    on_gpu = replace(base, world=World(0, 0, 1, 1, torch.device("cuda", 0)))
    for now, next_one in (("cpu", "data.decode=split"), ("split", "data.decode=gpu")):
        here = replace(on_gpu, loader=replace(base.loader, decode=now))
        assert first_change(ladder("data"), here, kb_per_image=None).arm == next_one


@pytest.mark.parametrize("part", ["data", "compute", "all-reduce"])
@pytest.mark.parametrize(
    "words",
    [(), ("--engine.channels-last", "false"), ("--engine.deterministic", "true"),
     ("--engine.threads", "1", "--engine.compile", "true"), ("--train.global-batch", "256")],
)  # fmt: skip
def test_advised_flags_are_settings(part: Part, words: tuple[str, ...]) -> None:
    change = first_change(ladder(part), resolved(*words), kb_per_image=110.0)
    if change.arm is not None:
        key, value = change.arm.split("=")
        flag = f"--{key.replace('_', '-')}"
        assert change.text.startswith(f"{flag} {value}: ")
        load.load([*TINY, "--data.source", "synthetic", *words, flag, value])


def test_what_is_not_known_well_is_said() -> None:
    good = ladder("compute")
    assert not [
        line for line in show_ladder.lines(good, Change("x"), []) if line.startswith("not known")
    ]
    bad = replace(good, rungs=[*good.rungs[:-1], replace(good.rungs[-1], high=120.0)])
    (line,) = [
        line for line in show_ladder.lines(bad, Change("x"), []) if line.startswith("not known")
    ]
    assert "everything +-20.0 %" in line


def test_turns_of_a_rung_become_a_mean_with_its_interval() -> None:
    bounds = SimpleNamespace(images_per_second=lambda *_, **__: 400.0, ranks=2)
    rung = Rung(rungs.LOADER, lambda _: Turn([], 1.0, 1.0), 8, size_bytes=100.0)
    row = Measured("loader", "")
    turns = [AllRanksTurn(rate, 1.5, [1.0, 3.0]) for rate in (90.0, 100.0, 110.0)]
    _fill_in(row, rung, turns[:1], cast(Limits, bounds))
    assert (row.turns, row.images_per_second, row.low, row.half_width_pct) == (1, 90, None, None)
    _fill_in(row, rung, turns, cast(Limits, bounds))
    assert (row.turns, row.images_per_second, row.step_ms_p50, row.cores) == (3, 100, 2, 1.5)
    assert row.low is not None
    assert row.half_width_pct == pytest.approx(100 - row.low)
    assert row.half_width_pct == pytest.approx(24.84, abs=0.01)  # t of 2 degrees: 4.303
    assert row.bytes_per_second == 100 / 8 * 100 * 2
    assert row.of_limit_pct == 25
    once = [line for line in show_ladder.lines(replace(ladder("compute"), rungs=[
        *ladder("compute").rungs[:-1], replace(ladder("compute").rungs[-1], low=None, high=None)
    ]), Change("x"), []) if line.startswith("not known")]  # fmt: skip
    assert once == ["not known to within 5 %: everything (one turn each); give more --minutes, or "
                    "a quieter machine"]  # fmt: skip


def run(
    *words: str | Path, cwd: Path, ranks: int = 1
) -> tuple[subprocess.CompletedProcess[str], Mapping[str, Any]]:
    command = ("-m", "harness", "bench", "ladder", *on_gpu(), *words)
    done = python(*command, ranks=ranks, cwd=cwd)
    file = cwd / "bench/ladder/ladder.json"
    return done, json.loads(file.read_text()) if file.exists() else {}


SMALL = (*TINY, "--minutes", "0.03", "--train.global-batch", "16")


@pytest.mark.gpu_too
def test_from_the_command_to_the_page(tmp_path: Path, photos: Path, device: torch.device) -> None:
    data = ("--data.train", photos, "--data.val", photos)
    done, report = run(*SMALL, *data, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    rows = {rung["name"]: rung for rung in report["rungs"]}
    assert list(rows) == list(rungs.ABOUT)
    none_here = {rungs.ALL_REDUCE} | ({rungs.COPY} if device.type == "cpu" else set())
    assert {name for name, row in rows.items() if row["missing"]} == none_here
    for row in rows.values():
        if not row["missing"]:
            assert row["images_per_second"] > 0
            assert row["turns"] >= 1
            assert (row["high"] is None) == (row["turns"] == 1)
    shares = [row["share_pct"] for row in rows.values() if row["share_pct"] is not None]
    assert sum(shares) == pytest.approx(100)
    assert report["binds"] in report["parts_s"]
    whole_s = Law(**report["law"]).whole_s(report["parts_s"])
    assert report["predicted"] == pytest.approx(1 / whole_s)
    assert rows[rungs.READ_WARM]["bytes_per_second"] > 0
    assert rows[rungs.FORWARD]["limit"] > rows[rungs.BACKWARD]["limit"] > 0
    assert rows[rungs.FORWARD]["limit_unfused"] < rows[rungs.FORWARD]["limit"]
    assert done.stdout.count("change first: ") == 1
    if device.type == "cpu":  # what binds on a GPU depends on the GPU
        (gives,) = re.findall(r"to measure its effect: harness bench sweep (.*)\n", done.stdout)
        assert gives.startswith("--minutes 5 --arm engine.compile=true --model.name resnet20 ")
    page = (tmp_path / "bench/ladder/ladder.html").read_text()
    assert "<svg" in page
    assert not re.search(r'<script|(src|href)="http', page)
    assert not (tmp_path / "runs").exists()


@pytest.mark.gpu_too
@pytest.mark.slow
def test_two_ranks_that_accumulate_print_once(tmp_path: Path) -> None:
    words = (*SMALL, "--data.source", "synthetic", "--train.max-local-batch", "4")
    done, report = run(*words, cwd=tmp_path, ranks=2)
    assert done.returncode == 0, done.stderr
    rows = {rung["name"]: rung for rung in report["rungs"]}
    assert rows[rungs.ALL_REDUCE]["images_per_second"] > 0
    assert rows[rungs.ALL_REDUCE]["limit"] > 0
    assert rows[rungs.EVERYTHING]["missing"] == "data.source is synthetic"
    assert done.stdout.count("change first: ") == 1
    assert set(report["parts_s"]) == {"compute", "all-reduce"}


@pytest.mark.gpu_too
@pytest.mark.slow
def test_torchvisions_loader_has_a_ladder_too(tmp_path: Path, photos: Path) -> None:
    data = ("--data.source", "torchvision", "--data.train", photos, "--data.val", photos)
    done, report = run(*SMALL, *data, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {rung["name"]: rung for rung in report["rungs"]}
    assert rows[rungs.DECODE]["missing"] == "data.source is not dali"
    assert rows[rungs.EVERYTHING]["images_per_second"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--minutes", "0"), "must be more than 0"),
        (("--engine.bukket-mb", "1"), "did you mean --engine.bucket-mb?"),
        ((*SMALL, "--data.source", "synthetic", "--out", "/proc/none"), "name a folder"),
    ],
)
def test_bad_words_are_one_line(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    done, _ = run(*words, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert message in done.stderr


@pytest.mark.slow
def test_bad_input_is_told_once_by_two_ranks(tmp_path: Path) -> None:
    words = (*SMALL, "--data.train", str(tmp_path / "none"), "--data.val", str(tmp_path))
    command = [*launcher(2), "-m", "harness", "bench", "ladder", *on_gpu(), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode
    assert done.stderr.count(f"\nerror: {tmp_path / 'none'}: No such file or directory") == 1


def test_ctrl_c_ends_it_with_a_word(tmp_path: Path) -> None:
    words = [*SMALL, "--data.source", "synthetic", "--minutes", "5"]
    with started("-m", "harness", "bench", "ladder", *words, cwd=tmp_path) as job:
        while job.poll() is None and "\ntiming" not in job.streams[0].read_text():
            time.sleep(0.1)
        time.sleep(1)
        job.send_signal(signal.SIGINT)
        _, said = job.communicate(timeout=60)
    assert job.returncode == 130
    assert said == "interrupted\n"
