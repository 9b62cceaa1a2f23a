"""What the tests of the W&B mirror share: runs in this process and in one of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.record.schema import Row
from harness.record.wandb import WandbMirror

ROOT = Path(__file__).parents[1]

CHILD = """
import json, sys, time
from harness.record.wandb import WandbMirror

mirror = WandbMirror(**json.loads(sys.argv[1]))
mirror.log({"images_seen": 0})
print("started", flush=True)
sys.stdin.readline()
for step in range(1, 1001):
    mirror.log({"images_seen": step})
print("logged", flush=True)
begin = time.monotonic()
status = mirror.finish({}, exit_code=0)
end = {"status": status, "finish_s": time.monotonic() - begin, "sync": mirror.sync_command}
print(json.dumps(end), flush=True)
sys.exit(7)
"""


def arguments(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "mode": "online",
        "run_id": "r1",
        "name": "rn18-s0",
        "group": "rn18",
        "job_type": "train",
        "tags": ["resnet18", "demo"],
        "config": {"model": {"name": "resnet18"}, "train": {"global_batch": 64}},
        "project": "bench",
        "entity": None,
        "folder": str(folder),
    } | changes


def row(step: int, **more: Any) -> dict[str, Any]:
    about = {"kind": "train", "attempt": 1, "epoch": step / 4, "step": step}
    seen = {"images_seen": 64 * step, "train_s": 2.0 * step, "wall_s": 3.0 * step}
    return Row(**about, **seen, **more).model_dump()


def mirror_rows(folder: Path, steps: range, **changes: Any) -> tuple[WandbMirror, str]:
    mirror = WandbMirror(**arguments(folder, **changes))
    for step in steps:
        mirror.log(row(step, loss=1 / step))
    return mirror, mirror.finish({"val_top1_pct": 75.0}, exit_code=0)


def start_child(folder: Path, **changes: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, json.dumps(arguments(folder, **changes))]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def end_child(child: subprocess.Popen[str]) -> dict[str, Any]:
    """Let it log and finish; its end, as it told it and as it was seen from outside."""
    assert child.stdin
    assert child.stdout
    print(file=child.stdin, flush=True)
    lines = [child.stdout.readline() for _ in range(3)]
    told = time.monotonic()
    # Waits for the end of its output too, which a client left behind would hold open.
    _, errors = child.communicate()
    return json.loads(lines[2]) | {"exit_s": time.monotonic() - told, "errors": errors}


def wait_until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


def run_sync(command: str | None) -> None:
    assert command
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(command, shell=True, check=True, env=os.environ | {"PATH": path})
