"""What ends or changes a run on the way: a target, a time limit, its own history. At run level."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
from helpers import TRAIN, icons_flags, launcher, on_gpu, train, wait_for_rows

from harness.logging.schema import Result

pytestmark = pytest.mark.gpu_too

LOOKS_BACK = (
    *("--schedule.epochs", "6", "--schedule.decay", "plateau", "--schedule.plateau-epochs", "1"),
    *("--schedule.plateau-gain-pct", "30", "--schedule.warmup-until-top1-pct", "5"),
    *("--schedule.warmup-start-lr", "0.001", "--schedule.warmup-epochs", "0"),
    *("--log.every-steps", "2"),
)
"""Five steps an epoch; a rate that is almost sure to drop."""


def result_in(folder: Path) -> Result:
    return Result.model_validate_json((folder / "result.json").read_text())


def kinds(result: Result) -> list[str]:
    return [event.kind for event in result.events]


def test_a_run_ends_at_its_target(tmp_path: Path, icons: Path) -> None:
    words = ("--schedule.epochs", "50", "--schedule.stop-at-top1-pct", "0.5")
    done = train(*icons_flags(icons), *words, ranks=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = result_in(tmp_path / "runs" / "icons-s0")
    target = result.target
    assert target is not None
    assert kinds(result) == ["target reached"]
    assert 0 < result.steps == target.step < 250
    assert target.val_top1_pct == result.val_top1_pct >= target.top1_pct == 0.5
    assert result.epochs == target.epoch == len(result.digests)
    assert 0 < target.train_s < target.wall_s < result.wall_s
    assert "0.5 % reached after" in done.stdout


@pytest.mark.slow
def test_a_run_ends_when_its_time_is_up(tmp_path: Path, icons: Path) -> None:
    """In the middle of an epoch too; it is then validated as at any end."""
    words = ("--schedule.epochs", "10000", "--schedule.max-minutes", "0.02")
    done = train(*icons_flags(icons), *words, "--eval.every-epochs", "10000", ranks=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = result_in(tmp_path / "runs" / "icons-s0")
    assert kinds(result) == ["time is up"]
    assert result.steps == result.events[0].step > 5
    assert 1.2 <= result.accounts_s["train"] < 30
    assert result.val_images == 50
    assert sum(digest.images for digest in result.digests) == result.images_seen
    again = train(*icons_flags(icons), *words, "--eval.every-epochs", "10000", cwd=tmp_path)
    assert "this run is finished" in again.stdout


@pytest.mark.slow
def test_what_was_decided_survives_a_stop(tmp_path: Path, icons: Path) -> None:
    """Stopped by a SIGTERM to torchrun and gone on, it decides the same and has the same bits."""
    ranks = 3
    flags = [*icons_flags(icons), *LOOKS_BACK, "--train.global-batch", "9"]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    straight.mkdir()
    broken.mkdir()
    done = train(*flags, ranks=ranks, cwd=straight)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "output").open("w") as output:
        job = subprocess.Popen(
            [*launcher(ranks), TRAIN, *on_gpu(), *flags], cwd=broken, text=True,
            stdout=output, stderr=output,
        )  # fmt: skip
        wait_for_rows(broken / "runs" / "icons-s0", job, rows=10)
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=60) == 1, "torchrun's own"
    assert (broken / "runs" / "icons-s0" / "state").read_text() == "stopped\n"
    done = train(*flags, ranks=ranks, cwd=broken)
    assert done.returncode == 0, done.stderr
    one, other = (result_in(each / "runs" / "icons-s0") for each in (straight, broken))
    assert other.attempt == 2
    assert one.events == other.events
    assert kinds(one).count("warmed up") == 1
    assert "dropped" in kinds(one)
    weights = [each / "runs/icons-s0/checkpoints/final.pt" for each in (straight, broken)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    rates = [
        [(row["step"], row.get("lr"), row.get("events")) for row in map(json.loads, file)]
        for each in (straight, broken)
        for file in [(each / "runs/icons-s0/rows.jsonl").open()]
    ]
    assert rates[0] == rates[1]
    assert one.median_last5_top1_pct is not None
