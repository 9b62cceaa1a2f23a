"""Rank logs: what ranks other than 0 say goes to files in the run folder, not to the job's log.

At the level of file descriptors, so that what libraries in C say goes there too.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

FOLDER = "logs"

_job_stderr: int | None = None


def path_of(run_folder: Path, rank: int) -> Path:
    """The log of a rank; rank 0 has none, as the job's log is its own."""
    return run_folder / FOLDER / f"rank_{rank}.log"


def divert(run_folder: Path, rank: int, attempt: int) -> None:
    """From here on, stdout and stderr of this process are appended to its rank's log."""
    global _job_stderr
    path = path_of(run_folder, rank)
    # Where this node does not see the run folder, the job's log has to do.
    with suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        began = time.strftime("%Y-%m-%d %H:%M:%S")
        head = f"--- attempt {attempt}, rank {rank} on {socket.gethostname()}, {began}\n"
        os.write(log, head.encode())
        sys.stdout.flush()
        sys.stderr.flush()
        _job_stderr = os.dup(2)  # not inherited by what this process starts
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)


def is_diverted() -> bool:
    """Whether this rank's words go to a log of its own."""
    return _job_stderr is not None


def tell_job(line: str) -> None:
    """Say a line in the job's log, and where this rank's own is another, there too."""
    print(line, file=sys.stderr, flush=True)
    if _job_stderr is not None:
        os.write(_job_stderr, f"{line}\n".encode())


def speaks_first() -> bool:
    """Whether no rank of this node has spoken before: what ends one may end all.

    Rank 0 cannot be the one that speaks: torchrun may end it as soon as another rank has ended.
    """
    if not (path := os.environ.get("TORCHELASTIC_ERROR_FILE")):
        return is_diverted() or os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        # ATTEMPT/RANK/error.json: the attempt's folder is the one place that its ranks share.
        (Path(path).parent.parent / "harness-has-spoken").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


def tell_torchrun(message: str) -> None:
    """Leave the message in the file that torchrun's closing report quotes, as `@record` does.

    By hand, since `@record` would import torch before a typo is rejected.
    """
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        extra = {"py_callstack": message, "timestamp": str(int(time.time()))}
        Path(path).write_text(json.dumps({"message": {"message": message, "extraInfo": extra}}))


def last_lines(run_folder: Path, rank: int, count: int = 20) -> list[str]:
    """The end of a rank's log; nothing if it has none."""
    try:
        text = path_of(run_folder, rank).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.splitlines()[-count:]
