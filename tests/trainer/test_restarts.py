"""torchrun starts the ranks again when one has died: the run goes on from what was saved."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import TINY, TRAIN, on_gpu


@pytest.mark.gpu_too
@pytest.mark.slow
def test_a_killed_rank_costs_a_restart_and_not_the_run(tmp_path: Path, photos: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    flags = [*TINY, *on_gpu(), "--data.train", str(photos), "--data.val", str(photos)]
    flags += ["--train.global-batch", "12", "--log.every-steps", "3", "--run.name", "killed"]
    flags += ["--schedule.epochs", "8", "--checkpoint.every-steps", "2"]
    job = subprocess.Popen(
        [*command, "--max-restarts=1", TRAIN, *flags], cwd=tmp_path, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    folder = tmp_path / "runs" / "killed"
    while job.poll() is None and not list(folder.glob("checkpoints/step-*.json")):
        time.sleep(0.1)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    _, said = job.communicate()
    assert job.returncode == 0, said
    assert (folder / "state").read_text() == "finished\n"
    attempts = [json.loads(line) for line in (folder / "attempts.jsonl").open()]
    assert len(attempts) == 2
    assert attempts[1]["from_step"] > 0
    logs = sorted(path.name for path in (folder / "logs").iterdir())
    assert logs == ["rank_1.log", "rank_2.log"]
    heads = [line for line in (folder / "logs" / "rank_1.log").open() if line.startswith("---")]
    assert [head.split(",")[0] for head in heads] == ["--- attempt 1", "--- attempt 2"]
