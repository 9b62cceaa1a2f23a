"""What the verbs' words are read with: mistakes are one line."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from harness.errors import EXIT_BAD_INPUT
from harness.system.console import err


class Parser(argparse.ArgumentParser):
    """argparse, with its errors as one line and our exit code."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Say what is wrong, and end."""
        what = message.removeprefix("argument ")
        err.print(f"error: {what}; see: {self.prog} --help")
        sys.exit(EXIT_BAD_INPUT)


def teaching(verbs: Any, name: str, *, help: str, description: str) -> argparse.ArgumentParser:
    """A verb whose --help shows its description as it is written, examples and all."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=help, description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    return parser


def positive(text: str) -> int:
    """argparse's type of a count."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return number


def count(text: str) -> int:
    """argparse's type of a count that may be 0."""
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, not {text}")
    return number


def minutes(text: str) -> float:
    """argparse's type of a time that is given to something."""
    if not 0 < (number := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0, not {text}")
    return number
