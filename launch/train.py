"""torchrun's entry: read the config, take the place in the world, run, end with the right code.

torchrun launch/train.py                      the quickstart
torchrun --nproc-per-node 8 launch/train.py configs/resnet50_90ep.yaml --data.train DIR ...
srun --ntasks-per-node 8 --gpus-per-node 8 --cpus-per-task 8 python launch/train.py ...    by Slurm
"""

from __future__ import annotations

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
from harness.errors import EXIT_FAILED, EXIT_GOOD, EXIT_INTERRUPTED, Followed, Stopped
from harness.logging import rank_log


def main() -> None:
    """Run; on an error, one line, the exit code, and the message where torchrun looks for it."""
    try:
        work(sys.argv[1:])
    except Stopped as stopped:
        # torchrun would start again what ends otherwise; launchers read the run folder's `state`.
        under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
        code = EXIT_GOOD if under_torchrun else stopped.exit_code
        _end(code, f"{stopped}; the same command goes on", kind="")
    except (Exception, KeyboardInterrupt) as error:
        code, message = explained(error)
        _end(code, message, first=not isinstance(error, Followed))


def work(argv: Sequence[str]) -> None:
    """Train, or score, as the words say, in the place that the environment names."""
    config = load.load(argv)
    if "SLURM_PROCID" in os.environ:
        from launch import slurm

        os.environ.update(slurm.identity())
    # Torch takes seconds to import: a typo has been rejected by now.
    from harness import distributed
    from harness.trainer import run

    place = distributed.from_environment(config.engine.device, backend=config.engine.backend)
    run.run(config, place)


def explained(error: BaseException) -> tuple[int, str]:
    """Exit code and one line for what ended the work."""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED, "interrupted before anything was done"
    if known := errors.explained(error):
        return known
    traceback.print_exception(error)
    return EXIT_FAILED, f"{type(error).__name__}: {error}".splitlines()[0]


def _end(code: int, message: str, kind: str = "error: ", first: bool = True) -> NoReturn:
    """Say what happened, once: this rank may be one of many that the same error ends."""
    message = " ".join(message.split())  # a value given with line breaks must not break the line
    if code:
        rank_log.tell_torchrun(message)
    if first and rank_log.speaks_first():
        rank_log.tell_job(f"{kind}{message}")
    elif code == EXIT_FAILED:
        rank = os.environ.get("RANK", "0")
        print(f"rank {rank}: ended after another rank had failed: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: threads of a broken process group or loader could hold the process for minutes.
    os._exit(code)


if __name__ == "__main__":
    main()
