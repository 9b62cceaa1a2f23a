"""Check a command line before anything starts, and print the run folder that it would use.

python launch/check.py configs/resnet50_90ep.yaml --data.train DIR --data.val DIR

Takes the arguments of launch/train.py. Does not import torch, so that it takes under a second on a
login node. If something is wrong, it prints one line and exits with code 2.
"""

import sys
from pathlib import Path

# Run as a file, a checkout needs no installation of itself.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness.config import load
from harness.errors import HarnessError


def main() -> None:
    """Print the run folder, or the error and exit with its code."""
    try:
        config = load.load(sys.argv[1:], prog="python launch/check.py")
    except HarnessError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_code)
    assert config.run.name is not None
    print(Path(config.run.root) / config.run.name)


if __name__ == "__main__":
    main()
