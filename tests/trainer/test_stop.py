"""Signals at run level: all ranks stop after the same step, saved; the same command goes on."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from helpers import TINY, TRAIN, on_gpu, train, wait_for_rows
from ranks import started
from wandb_standin import StandIn

from harness.logging.wandb import FINISH_TIMEOUT_S

pytest_plugins = ["wandb_fixtures"]
pytestmark = pytest.mark.gpu_too

TERMS = ("--train.global-batch", "12", "--eval.local-batch", "16", "--log.every-steps", "3")


@pytest.mark.parametrize(
    "by",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        signal.SIGHUP,
    ],
)
def test_a_signal_stops_the_run_and_it_goes_on(
    tmp_path: Path, photos: Path, by: signal.Signals
) -> None:
    flags = [*TINY, *TERMS, *on_gpu(), "--data.train", str(photos), "--data.val", str(photos)]
    flags += ["--run.name", "stopped", "--schedule.epochs", "10000"]
    folder = tmp_path / "runs" / "stopped"
    rows = folder / "rows.jsonl"
    with started(TRAIN, *flags, cwd=tmp_path) as job:
        wait_for_rows(folder, job)
        job.send_signal(by)
        _, said = job.communicate(timeout=60)
    assert job.returncode == 128 + by
    assert said.startswith(f"stopped by {by.name} at step ")
    assert said.endswith("; the same command goes on\n")
    assert (folder / "state").read_text() == "stopped\n"
    last = json.loads(rows.read_text().splitlines()[-1])
    assert last["kind"] == "stop"
    assert (folder / "checkpoints" / f"step-{last['step']:09d}.json").exists()
    assert not (folder / "stacks").exists()
    done = train(*flags, "--optim.momentum", "0.5", cwd=tmp_path)
    assert done.returncode == 2
    assert "holds a run with another optim.momentum (0.9 there, 0.5 here)" in done.stderr
    (folder / "run_id").write_text("another\n")  # as if the checkpoint had been copied from there
    done = train(*flags, cwd=tmp_path)
    assert done.returncode == 2
    assert f"step-{last['step']:09d}.pt: was taken by another run" in done.stderr


@pytest.mark.slow
def test_a_wandb_server_that_hangs_does_not_keep_the_stop(
    tmp_path: Path, photos: Path, server: StandIn
) -> None:
    flags = [*TINY, *TERMS, *on_gpu(), "--data.train", str(photos), "--data.val", str(photos)]
    flags += ["--run.name", "unheard", "--log.wandb", "online", "--schedule.epochs", "3"]
    folder = tmp_path / "runs" / "unheard"
    with started(TRAIN, *flags, cwd=tmp_path) as job:
        wait_for_rows(folder, job)
        server.hang()
        job.send_signal(signal.SIGTERM)
        _, said = job.communicate(timeout=60)
        ended_at = time.time()
    assert job.returncode == 143, said
    # What comes after the state is the mirror's end.
    assert ended_at - (folder / "state").stat().st_mtime < FINISH_TIMEOUT_S
    server.heal()
    done = train(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (folder / "rows.jsonl").open()]
    assert {row["kind"] for row in rows} == {"train", "val"}, "the stop was written over"
    assert rows[-1]["step"] == 24
    history = server.run((folder / "run_id").read_text().strip()).history
    assert [row["progress/step"] for row in history] == [row["step"] for row in rows]
