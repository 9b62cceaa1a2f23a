"""Check a command line before anything starts; prints the run folder that it would work in.

python launch/check.py configs/resnet50_90ep.yaml --data.train DIR --data.val DIR

Takes what launch/train.py takes, and needs no torch: a login node answers in under a second. Exit
code 2 and one line if something is wrong with it.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Run as a file, a checkout needs no installation of itself.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness.config import load
from harness.errors import HarnessError


def main() -> None:
    """Print the run folder, or the error."""
    try:
        config = load.load(sys.argv[1:], prog="python launch/check.py")
    except HarnessError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_code)
    assert config.run.name is not None
    print(Path(config.run.root) / config.run.name)


if __name__ == "__main__":
    main()
