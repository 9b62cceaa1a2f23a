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

if __name__ == "__main__":
    try:
        run = load.load(sys.argv[1:], prog="python launch/check.py").run
        # Byte by byte, whatever the terminal's encoding: a script reads it.
        sys.stdout.buffer.write(os.fsencode(Path(run.root, str(run.name))) + b"\n")
    except HarnessError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(error.exit_code)
