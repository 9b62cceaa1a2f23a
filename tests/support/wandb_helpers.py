"""What the tests of the W&B mirror share: runs in this process and in one of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from harness.logging.schema import Row
from harness.logging.wandb import WandbMirror

ROOT = Path(__file__).parents[2]
CHILD_ROWS = 1001

CHILD = f"""
import json, sys, time
from pathlib import Path
from harness.logging.wandb import WandbMirror

arguments = json.loads(sys.argv[1])
mirror = WandbMirror(**arguments | {{key: Path(arguments[key]) for key in ("folder", "rows")}})
mirror.release(1)
print("started", flush=True)
timeout_s = float(sys.stdin.readline())
mirror.release({CHILD_ROWS})
begin = time.monotonic()
status = mirror.finish({{}}, exit_code=0, timeout_s=timeout_s)
end = {{"status": status, "finish_s": time.monotonic() - begin, "sync": mirror.sync_command}}
print(json.dumps(end), flush=True)
sys.exit(7)
"""
"""A run that has one final row, and once it is told how long it may take to finish, all others."""


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
        "folder": folder,
        "rows": folder / "rows.jsonl",
    } | changes


def row(step: int, attempt: int = 1, **more: Any) -> dict[str, Any]:
    about = {"kind": "train", "attempt": attempt, "epoch": step / 4, "step": step}
    seen = {"images_seen": 64 * step, "train_s": 2.0 * step, "wall_s": 3.0 * step}
    return Row(**about, **seen, **more).model_dump(exclude_none=True)


def write_rows(folder: Path, rows: Iterable[dict[str, Any]]) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def mirror_rows(
    folder: Path, steps: range, *, attempt: int = 1, released: int | None = None, **changes: Any
) -> tuple[WandbMirror, str]:
    """A whole attempt, which releases all of its rows, or so many."""
    write_rows(folder, [row(step, attempt, loss=1 / step) for step in steps])
    mirror = WandbMirror(**arguments(folder, **changes))
    mirror.release(len(steps) if released is None else released)
    return mirror, mirror.finish({"val_top1_pct": 75.0}, exit_code=0, timeout_s=60)


def start_child(folder: Path, **changes: Any) -> subprocess.Popen[str]:
    write_rows(folder, map(row, range(CHILD_ROWS)))
    given = json.dumps(arguments(folder, **changes), default=str)
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", CHILD, given]
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def release_all(child: subprocess.Popen[str], timeout_s: float) -> None:
    print(timeout_s, file=child.stdin, flush=True)


def end_child(child: subprocess.Popen[str], timeout_s: float = 5) -> dict[str, Any]:
    """Let it finish; its end, as it told it and as it was seen from outside."""
    assert child.stdout
    release_all(child, timeout_s)
    lines = [child.stdout.readline() for _ in range(2)]
    released = time.monotonic()
    # Waits for the end of its output too, which a client left behind would hold open.
    _, errors = child.communicate()
    return json.loads(lines[1]) | {"exit_s": time.monotonic() - released, "errors": errors}


def client_pid(child: subprocess.Popen[str]) -> int:
    children = Path(f"/proc/{child.pid}/task").glob("*/children")
    (pid,) = [int(pid) for listed in children for pid in listed.read_text().split()]
    return pid


def kill_with_client(child: subprocess.Popen[str]) -> None:
    """As when the node goes down, or memory runs out."""
    for pid in (client_pid(child), child.pid):
        os.kill(pid, signal.SIGKILL)
    child.communicate()


def wait_until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


def run_sync(command: str | None) -> None:
    assert command
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(command, shell=True, check=True, env=os.environ | {"PATH": path})
