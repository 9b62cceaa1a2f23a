"""`--profile.steps`: a trace of just these steps, a table by phase, and nothing else is changed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from helpers import TINY, icons_flags, train
from rich.console import Console

from harness.monitor.clock import Clock
from harness.trainer import profiler
from harness.trainer.profiler import Profile


def run(icons: Path, tmp_path: Path, name: str, *words: str) -> tuple[Path, str]:
    done = train(
        *TINY, *icons_flags(icons), "--run.name", name, "--log.every-steps", "1", *words,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return tmp_path / "runs" / name, done.stdout


@pytest.mark.gpu_too
@pytest.mark.slow
def test_two_steps_are_profiled_and_the_weights_are_the_same(icons: Path, tmp_path: Path) -> None:
    plain, _ = run(icons, tmp_path, "plain")
    profiled, said = run(icons, tmp_path, "profiled", "--profile.steps", "1:3")
    assert not (plain / "profile").exists()
    assert "note: steps 1:3 were profiled, which slows them" in said
    assert "profile of steps 1 to 2: runs/profiled/profile/kernels.txt; open trace" in said
    trace = json.loads(gzip.decompress((profiled / "profile" / "trace.json.gz").read_bytes()))
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    # A phase has a second event, of its kernels, where there is a GPU.
    names = [event["name"] for event in events if event.get("cat") != "gpu_user_annotation"]
    for part in ("wait for data", "forward", "loss", "backward", "counts", "optimizer"):
        assert names.count(f"phase: {part}") == 2
    table = (profiled / "profile" / "kernels.txt").read_text()
    assert "forward: " in table
    assert "backward: " in table
    assert "aten::" in table
    weights = [torch.load(at / "checkpoints" / "final.pt")["model"] for at in (plain, profiled)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize("steps", ["3:3", "5:2", "1:1000"])
def test_steps_that_are_not_in_the_run(icons: Path, tmp_path: Path, steps: str) -> None:
    done = train(*TINY, *icons_flags(icons), "--profile.steps", steps, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: profile.steps: {steps} is not FIRST:LAST with FIRST < L")
    assert not (tmp_path / "runs").exists()


def test_time_is_told_by_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "out", Console())
    left, clock = torch.randn(200, 200), Clock(torch.device("cpu"))
    seen = Profile(1, 3, tmp_path / "profile")
    assert [seen.before(0)] == [False]
    for step in range(1, 5):
        took = seen.before(step)
        assert took == (step in (1, 3)), "where it begins and where it ends"
        with clock.phase("forward"):
            left @ left
        with clock.phase("backward"):
            torch.sort(left)
    seen.close()
    assert {path.name for path in (tmp_path / "profile").iterdir()} == {
        profiler.TRACE, profiler.KERNELS,
    }  # fmt: skip
    rows = (tmp_path / "profile" / profiler.KERNELS).read_text().splitlines()
    (product,) = [row.split() for row in rows if row.strip().startswith("aten::mm ")]
    (sort,) = [row.split() for row in rows if row.strip().startswith("aten::sort ")]
    assert product[2] == sort[2] == "2"
    assert float(product[1]) > 0
    text = "\n".join(rows)
    assert all(f"{part}: " in text for part in ("forward", "backward"))


def test_nothing_is_written_without_a_step(tmp_path: Path) -> None:
    seen = Profile(5, 6, tmp_path / "profile")
    assert not any(seen.before(step) for step in range(5))
    seen.close()
    assert not (tmp_path / "profile").exists()
