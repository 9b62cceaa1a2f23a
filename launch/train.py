"""Train, or evaluate, in one process of torchrun or srun: the script that they start per rank.

torchrun launch/train.py                      the quickstart
torchrun --nproc-per-node 8 launch/train.py configs/resnet50_90ep.yaml --data.train DIR ...
srun --ntasks-per-node 8 --gpus-per-node 8 --cpus-per-task 8 python launch/train.py ...    by Slurm
"""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

# Run as a file, a checkout needs no installation of itself.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import errors
from harness.config import load
from harness.errors import EXIT_FAILED, EXIT_GOOD, EXIT_INTERRUPTED, Preempted
from harness.logging import rank_log
from harness.system.process import outlive_streams


def main() -> None:
    """Run; on an error print one line, tell torchrun the message, and exit with its code."""
    outlive_streams()
    try:
        work(sys.argv[1:])
    except Preempted as stopped:
        # torchrun restarts after any other code. Job scripts read the run folder's `state` instead.
        code = EXIT_GOOD if "TORCHELASTIC_RUN_ID" in os.environ else stopped.exit_code
        _end(code, f"{stopped}; the same command goes on", stopped, kind="")
    except (Exception, KeyboardInterrupt) as error:
        code, message = explained(error)
        _end(code, message, error)


def work(argv: Sequence[str]) -> None:
    """Train, or evaluate, as the arguments say, with the rank that the environment names."""
    config = load.load(argv)
    if "SLURM_PROCID" in os.environ:
        from launch import slurm

        os.environ.update(slurm.identity())
    # Importing torch takes seconds, so it comes after the config has been checked.
    from harness import distributed
    from harness.trainer import run

    world = distributed.from_environment(config.engine.device, backend=config.engine.backend)
    run.run(config, world)


def explained(error: BaseException) -> tuple[int, str]:
    """Return the exit code and one line for an error; prints the traceback of an unknown one."""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED, "interrupted before anything was done"
    if (known := errors.explained(error)) is None:
        traceback.print_exception(error)
        return EXIT_FAILED, f"{type(error).__name__}: {error}".splitlines()[0]
    return known


def _end(code: int, message: str, error: BaseException, kind: str = "error: ") -> NoReturn:
    """Print the message if this rank is the first to fail, of many with the same error; exit."""
    if code:
        rank_log.tell_torchrun(message)
    if rank_log.speaks_first(error):
        rank_log.tell_job(f"{kind}{message}")
    elif code == EXIT_FAILED:
        who = f"rank {os.environ.get('RANK', '0')}"
        print(f"{who}: ended after another rank had failed: {message}", file=sys.stderr)
    leave(code)


def leave(code: int) -> NoReturn:
    """Exit at once: threads of a broken process group or loader could hold sys.exit for minutes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
