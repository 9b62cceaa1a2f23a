"""Check a command line before anything starts, and print the run folder that it would use.

python launch/check.py configs/resnet50_90ep.yaml --data.train DIR --data.val DIR

Takes the arguments of launch/train.py. Does not import torch, so that it takes under a second on a
login node. If something is wrong, it prints one line and exits with code 2.
"""

import os
import sys
from pathlib import Path

# Run as a file, a checkout needs no installation of itself.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness.config import load
from harness.errors import HarnessError, one_line
from harness.run_folder import folder as run_folder
from harness.run_folder import lease

if __name__ == "__main__":
    try:
        config = load.load(sys.argv[1:], prog="python launch/check.py")
        path = Path(config.run.root, str(config.run.name))
        if not config.run.dry_run:
            run_folder.is_finished(path, config, {})  # raises if it holds another run
            if "SLURM_JOB_ID" in os.environ:  # else it may be free once the job starts
                lease.refuse_if_held(path)
        # Byte by byte, whatever the terminal's encoding: a script reads it.
        sys.stdout.buffer.write(os.fsencode(path) + b"\n")
    except HarnessError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(error.exit_code)
