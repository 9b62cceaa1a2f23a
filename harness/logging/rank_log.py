"""Rank logs: output of ranks other than 0 goes to files in the run folder, not to the job's log.

At the level of file descriptors, so that the output of libraries in C goes there too.
"""

import json
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from harness.errors import BadRank, SecondaryFailure

_job_stderr: int | None = None


def path_of(run_folder: Path, rank: int) -> Path:
    """Return the path of a rank's log; rank 0 has none: it writes to the job's log."""
    return run_folder / "logs" / f"rank_{rank}.log"


def divert(run_folder: Path, rank: int, attempt: int) -> None:
    """Append stdout and stderr of this process to its rank's log from now on."""
    global _job_stderr
    path = path_of(run_folder, rank)
    # If this node does not see the run folder, the output stays in the job's log.
    with suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        began = f"{socket.gethostname()}, {time.strftime('%Y-%m-%d %H:%M:%S')}"
        os.write(log, f"--- attempt {attempt}, rank {rank} on {began}\n".encode())
        sys.stdout.flush()
        sys.stderr.flush()
        _job_stderr = os.dup(2)  # not inherited by what this process starts
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)


def tell_job(line: str) -> None:
    """Print a line to the job's log, and to this rank's own if it has one."""
    print(line, file=sys.stderr, flush=True)
    if _job_stderr is not None:
        with suppress(OSError):  # its disk is full, or nobody reads it any more
            os.write(_job_stderr, f"{line}\n".encode(errors="backslashreplace"))


def speaks_first(error: BaseException) -> bool:
    """Return whether no rank of this node has printed its error yet: one error may end all ranks.

    It need not be rank 0: torchrun may end that one as soon as another rank has ended.
    """
    if isinstance(error, BadRank | SecondaryFailure):
        return isinstance(error, BadRank)
    if not (path := os.environ.get("TORCHELASTIC_ERROR_FILE")):
        return _job_stderr is not None or os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        # ATTEMPT/RANK/error.json: the attempt's folder is the one place that its ranks share.
        (Path(path).parent.parent / "harness-has-spoken").touch(exist_ok=False)
    except OSError as error:
        return not isinstance(error, FileExistsError)
    return True


def tell_torchrun(message: str) -> None:
    """Write the message to the file that torchrun's final report quotes, as `@record` does.

    By hand, since `@record` would import torch before a typo is rejected.
    """
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        extra = {"py_callstack": message, "timestamp": str(int(time.time()))}
        with suppress(OSError):  # the disk is full
            Path(path).write_text(json.dumps({"message": {"message": message, "extraInfo": extra}}))
