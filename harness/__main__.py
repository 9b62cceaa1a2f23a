"""The `harness` command: data, checks, results and benchmarks; launch/train.py trains."""

import sys
from collections.abc import Sequence

from harness import __version__
from harness.commands import bench, compare, data, doctor, publish, show
from harness.commands.parser import group, run
from harness.errors import EXIT_INTERRUPTED, explained
from harness.logging import rank_log
from harness.system.console import err
from harness.system.process import outlive_streams, require_output

app = group(
    help="Data, results and measurements around launch/train.py. --version prints the version.",
    epilog="exit codes: 0 good, 1 bad verdict or failed, 2 bad input, 3 cannot tell",
)
for module in (data, doctor, show, compare, publish, bench):
    app.add_typer(module.app)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a verb; an error is printed as one line and sets the exit code."""
    outlive_streams()
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            if args == ["--version"]:  # as typer's option, it would make --help import pydantic
                print(__version__)
            else:
                run(app, doctor.with_default_verb(args))
        except SystemExit:  # of a verdict, or --help
            require_output()
            raise
        require_output()
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        if (known := explained(error)) is None:
            raise
        code, message = known
        rank_log.tell_torchrun(message)
        if rank_log.speaks_first(error):  # under torchrun, only one rank prints the error
            err.print(f"error: {message}")
        sys.exit(code)


if __name__ == "__main__":
    main()
