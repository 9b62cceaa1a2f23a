"""Whole runs, as a user starts them: the record they leave, on one rank and on several."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT, TINY, TRAIN, children, launcher, on_gpu, train, wait_for_rows
from ranks import python
from wandb_helpers import run_sync
from wandb_standin import StandIn

from harness.data.stream import digest_of, hexadecimal
from harness.logging.schema import Result, Row
from harness.run_folder.folder import config_of

pytest_plugins = ["wandb_fixtures"]
pytestmark = pytest.mark.gpu_too

PHOTOS = ("--train.global-batch", "12", "--eval.local-batch", "7", "--log.every-steps", "3")


def flags_of(photos: Path, **extra: str) -> list[str]:
    flags = [*TINY, *PHOTOS, "--data.train", str(photos), "--data.val", str(photos)]
    return flags + [word for key, value in extra.items() for word in (f"--{key}", value)]


def result_of(folder: Path) -> Result:
    return Result.model_validate_json((folder / "result.json").read_text())


def rows_of(folder: Path) -> list[Row]:
    return [Row.model_validate_json(line) for line in (folder / "rows.jsonl").open()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, photos: Path, device: torch.device) -> Path:
    """The same run on one, two and three ranks, and by the torchvision arm."""
    cwd = tmp_path_factory.mktemp("work")
    for ranks in (1, 2, 3):
        done = train(*flags_of(photos, **{"run.name": f"ranks{ranks}"}), ranks=ranks, cwd=cwd)
        assert done.returncode == 0, done.stderr
    arm = {"run.name": "torchvision", "data.source": "torchvision"}
    done = train(*flags_of(photos, **arm), cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "note: images read by the torchvision arm" in done.stdout
    return cwd / "runs"


@pytest.mark.host
def test_a_run_whose_commit_is_unknown_says_so(photos: Path, tmp_path: Path) -> None:
    """As there is no git, or git refuses the checkout."""
    done = python(TRAIN, *flags_of(photos), cwd=tmp_path, environ=os.environ | {"PATH": ""})
    assert done.returncode == 0, done.stderr
    note = f"the commit is unknown: `git -C {ROOT} status` says why"
    assert done.stdout.count(f"note: {note}\n") == 2
    (folder,) = (tmp_path / "runs").iterdir()
    assert result_of(folder).notes == [note]


def test_the_record_is_whole(runs: Path) -> None:
    for name, ranks in (("ranks1", 1), ("ranks2", 2), ("ranks3", 3), ("torchvision", 1)):
        result, rows = result_of(runs / name), rows_of(runs / name)
        assert not (runs / name / "compile").exists(), "an eager run has no graphs"
        assert (runs / name / "state").read_text() == "finished\n"
        assert (result.world_size, result.steps, result.epochs) == (ranks, 8, 1)
        assert (result.local_batch, result.accumulate) == (12 // ranks, 1)
        assert result.images_seen == 96
        assert result.val_images == 101
        assert (result.recompiles, result.graph_breaks) == (0, 0)
        assert sum(result.accounts_s.values()) == pytest.approx(result.wall_s, abs=0.1)
        assert result.images_per_second == pytest.approx(96 / result.accounts_s["train"], rel=0.05)
        assert [(row.kind, row.step) for row in rows] == [
            ("train", 3), ("train", 6), ("train", 8), ("val", 8)
        ]  # fmt: skip
        assert rows[-1].val_top1_pct == result.val_top1_pct
        environment = json.loads((runs / name / "environment.json").read_text())
        assert environment["world_size"] == len(environment["ranks"]) == ranks
        assert (runs / name / "checkpoints" / "final.pt").stat().st_size > 1_000_000


def test_all_see_the_same_whatever_the_world_and_the_loader(runs: Path) -> None:
    names = ("ranks1", "ranks2", "ranks3", "torchvision")
    assert len({str(result_of(runs / name).digests) for name in names}) == 1
    digest = result_of(runs / "ranks1").digests[0]
    seen, tail = int(digest.samples, 16), int(digest.tail, 16)
    assert hexadecimal(seen + tail) == hexadecimal(digest_of(np.arange(101)))


def test_world_sizes_differ_by_rounding_and_bn_groups_only(runs: Path) -> None:
    losses = [rows_of(runs / name)[0].loss or 0 for name in ("ranks1", "ranks2", "ranks3")]
    assert max(losses) - min(losses) < 0.3


def test_the_configs_of_the_same_question_have_the_same_fingerprint(runs: Path) -> None:
    one, two, arm = (result_of(runs / name) for name in ("ranks1", "ranks2", "torchvision"))
    assert one.result_fingerprint == two.result_fingerprint != arm.result_fingerprint


def test_config_yaml_repeats_the_run_bit_by_bit(runs: Path) -> None:
    done = train(runs / "ranks1" / "config.yaml", "--run.name", "again", cwd=runs.parent)
    assert done.returncode == 0, done.stderr
    first, again = (runs / name / "checkpoints" / "final.pt" for name in ("ranks1", "again"))
    assert first.read_bytes() == again.read_bytes()
    assert result_of(runs / "ranks1").digests == result_of(runs / "again").digests


def test_scoring_the_saved_weights_gives_the_same_score(runs: Path, photos: Path) -> None:
    """Also on other ranks than it was trained on."""
    weights = str(runs / "ranks1" / "checkpoints" / "final.pt")
    asked = {"run.mode": "eval", "model.weights": weights, "run.name": "scored"}
    done = train(*flags_of(photos, **asked), ranks=2, cwd=runs.parent)
    assert done.returncode == 0, done.stderr
    trained, scored = result_of(runs / "ranks1"), result_of(runs / "scored")
    assert (scored.val_correct1, scored.val_correct5) == (
        trained.val_correct1,
        trained.val_correct5,
    )
    assert (scored.mode, scored.steps, scored.images_per_second) == ("eval", 0, None)


def test_a_dry_run_says_what_would_be_and_writes_nothing(tmp_path: Path, photos: Path) -> None:
    flags = flags_of(photos, **{"train.max-local-batch": "5", "run.name": "dry"})
    done = train(*flags, "--run.dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for part in ("12 = 1 rank x 3 accumulated x 4 local", "0.012 = 0.256 per 256", "runs/dry",
                 "1 epochs x 8 steps", "dali, decoded on cpu", "channels_last, eager"):  # fmt: skip
        assert part in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_loss_that_explodes_stops_the_run(tmp_path: Path, photos: Path) -> None:
    flags = flags_of(photos, **{"optim.lr-per-256": "1e30", "run.name": "boom"})
    done = train(*flags, cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: step ")
    assert "the loss is" in last
    assert last.endswith("; no good checkpoint is left")
    failure = json.loads((tmp_path / "runs" / "boom" / "failure.json").read_text())
    assert failure["message"] in last
    assert failure["kind"] == "NotFinite"
    assert (tmp_path / "runs" / "boom" / "state").read_text() == "failed\n"


def test_an_undecodable_image_ends_all_ranks_with_its_name(tmp_path: Path, icons: Path) -> None:
    data = copytree(icons, tmp_path / "data", ignore=ignore_patterns(".*"))
    bad = data / "class2" / "0012.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    flags = flags_of(data, **{"data.augment": "pad_crop", "run.name": "bad"})
    done = train(*flags, ranks=2, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1, "one rank says what is wrong, the other follows"
    assert "class2/0012.png: sample 22 does not decode" in done.stderr


@pytest.mark.slow
def test_a_killed_rank_takes_the_job_down(tmp_path: Path, photos: Path) -> None:
    flags = flags_of(photos, **{"run.name": "killed", "schedule.epochs": "10000"})
    job = subprocess.Popen(
        [*launcher(2), TRAIN, *on_gpu(), *flags], cwd=tmp_path, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_for_rows(tmp_path / "runs" / "killed", job)
    ranks = children(job)
    os.kill(ranks[1], signal.SIGKILL)
    _, said = job.communicate(timeout=60)
    assert job.returncode == 1
    assert "SIGKILL" in said[said.index("FAILED") :]
    for rank in ranks:
        assert not Path(f"/proc/{rank}").exists(), "no rank may be left behind"


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("source", ["dali", "torchvision"])
def test_published_weights_score_what_pillow_gives(
    shared_data: Path, tmp_path: Path, source: str
) -> None:
    """8,103 of the 10,000 test images are right when decoded with Pillow."""
    with tarfile.open(shared_data / "data" / "cifar10-jpeg.tar") as tar:
        members = [m for m in tar if m.name.startswith("cifar10/test")]
        tar.extractall(tmp_path, members, filter="data")
    flags: dict[str, Any] = {
        "run.mode": "eval", "run.name": "scored", "model.name": "resnet20",
        "model.weights": shared_data / "weights" / "resnet20.th", "data.source": source,
        "data.val": tmp_path / "cifar10" / "test", "data.image-px": 32, "data.eval-resize-px": 0,
        "data.mean": "0.485,0.456,0.406", "data.std": "0.229,0.224,0.225", "log.wandb": "off",
        "engine.precision": "fp32",
    }  # fmt: skip
    words = [str(word) for key, value in flags.items() for word in (f"--{key}", value)]
    done = train(ROOT / "configs" / "cifar10_resnet20_short.yaml", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = result_of(tmp_path / "runs" / "scored")
    assert result.val_images == 10_000
    assert abs(result.val_correct1 - 8103) <= 15


def test_rows_and_result_reach_wandb(tmp_path: Path, photos: Path, server: StandIn) -> None:
    flags = flags_of(photos, **{"run.name": "mirrored", "log.wandb": "auto"})
    done = train(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "mirrored"
    result, rows = result_of(folder), rows_of(folder)
    assert result.wandb == "online"
    mirrored = server.run(result.run_id)
    assert [row["progress/step"] for row in mirrored.history] == [row.step for row in rows]
    assert mirrored.history[-1]["val/top1_pct"] == result.val_top1_pct
    assert mirrored.summary["result/images_per_second"] == result.images_per_second
    assert mirrored.config["train"]["global_batch"] == 12
    assert (mirrored.state, mirrored.exit_code) == ("finished", 0)


@pytest.mark.slow
def test_a_dead_wandb_server_changes_nothing(tmp_path: Path, photos: Path, server: StandIn) -> None:
    server.hang()
    flags = flags_of(photos, **{"run.name": "unheard", "log.wandb": "online"})
    done = train(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = result_of(tmp_path / "runs" / "unheard")
    assert (result.steps, result.val_images) == (8, 101)
    assert "not mirrored" in result.wandb
    (said,) = [line for line in done.stdout.splitlines() if "; upload with: " in line]
    server.heal()
    run_sync(f"cd {tmp_path} && {said.partition('; upload with: ')[2]}")
    sent = [row["progress/step"] for row in server.run(result.run_id).history]
    assert sent == [row.step for row in rows_of(tmp_path / "runs" / "unheard")]


@pytest.mark.slow
def test_wandbs_own_switches_count_over_all_attempts(
    tmp_path: Path, photos: Path, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = server.fail(status=500)
    flags = flags_of(photos, **{"run.name": "kept", "log.wandb": "auto"})
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    done = train(*flags, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "WANDB_RUN_ID=mine: " in done.stderr
    assert not (tmp_path / "runs" / "kept").exists()
    monkeypatch.delenv("WANDB_RUN_ID")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    done = train(*flags, cwd=tmp_path)
    folder = tmp_path / "runs" / "kept"
    log = config_of(folder).log
    assert (done.returncode, log.wandb, log.project) == (0, "offline", "mine"), done.stderr
    monkeypatch.delenv("WANDB_MODE")
    (folder / "result.json").unlink()
    (folder / "state").write_text("stopped\n")
    done = train(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "W&B: offline, as this run began; to send it after all" in done.stdout
    assert asked.hits == 0


@pytest.mark.host
def test_out_of_memory_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def no_memory(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore.")

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("harness.trainer.run.run", no_memory)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(sys, "argv", ["train.py", "--run.root", str(tmp_path)])
    with pytest.raises(SystemExit, match="1"):
        runpy.run_path(TRAIN, run_name="__main__")
    said = capfd.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("error: out of memory: set --train.max-local-batch lower")


def test_another_data_set_is_not_taken_for_the_finished_run(runs: Path, icons: Path) -> None:
    flags = flags_of(icons, **{"run.name": "ranks1"})
    before = (runs / "ranks1" / "result.json").read_bytes()
    done = train(*flags, cwd=runs.parent)
    assert done.returncode == 2
    assert "holds this run on other images (train_digest differs)" in done.stderr
    assert (runs / "ranks1" / "result.json").read_bytes() == before


@pytest.mark.host
def test_a_start_that_fails_leaves_another_run_alone(tmp_path: Path) -> None:
    """Nobody's folder is marked as failed but one's own."""
    folder = tmp_path / "runs" / "busy"
    folder.mkdir(parents=True)
    (folder / "state").write_text("running\n")
    done = train(*flags_of(tmp_path / "nowhere", **{"run.name": "busy"}), cwd=tmp_path)
    assert done.returncode == 2
    assert [path.name for path in folder.iterdir()] == ["state"]
    assert (folder / "state").read_text() == "running\n"
