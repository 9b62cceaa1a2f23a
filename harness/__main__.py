"""The `harness` command: everything around a training run."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from harness import __version__
from harness.commands import bench, compare, data, doctor, publish, show
from harness.commands.parser import Parser
from harness.errors import EXIT_INTERRUPTED, explained
from harness.logging import rank_log
from harness.system.console import err


def main(argv: Sequence[str] | None = None) -> None:
    """Run a verb; errors are one line and an exit code."""
    parser = _parser()
    given = list(sys.argv[1:] if argv is None else argv)
    options, rest = parser.parse_known_args(doctor.with_verb(given))
    if hasattr(options, "words"):
        options.words = rest  # for launch/train.py, which knows them
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        options.verb(options)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        if (known := explained(error)) is None:
            raise
        code, message = known[0], " ".join(known[1].split())
        rank_log.tell_torchrun(message)
        if rank_log.speaks_first():  # a bench has several ranks
            err.print(f"error: {message}")
        sys.exit(code)


def _parser() -> Parser:
    """Each verb's words; what a verb needs is imported when it runs."""
    parser = Parser(
        prog="harness",
        description="Data, results and measurements around launch/train.py.",
        epilog="exit codes: 0 good, 1 bad verdict or failed, 2 bad input, 3 cannot tell",
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB", parser_class=Parser)
    for verb in (data, doctor, show, compare, publish, bench):
        verb.add(verbs)
    return parser


if __name__ == "__main__":
    main()
