"""Read the arguments of the verbs with typer, and report each mistake in one line."""

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from typer import BadParameter, Exit, Typer, TyperException
from typer.main import get_command

from harness.errors import BadInput

Verb = TypeVar("Verb", bound=Callable[..., None])

REWORDED = {
    r"^Invalid value for '(.+?)': (Value error, )?": r"\1: ",
    r"^No such (\w+): (\S+)": r"\2: no such \1",
    r"^No such (\w+) '(.+?)'": r"\2: no such \1",
    r"\. Did you mean '(.+?)'.*\?$": r"; did you mean \1?",
    r"Input should be (.+?)(, unable to .*)?$": r"must be \1",
    r"must be greater than or equal to": "must be at least",
    r"must be less than or equal to": "must be at most",
    r"^Missing command": "VERB: is missing",
    r"^Missing \w+ '(.+?)'": r"\1: is missing",
    r"^Got unexpected .+ \((.+)\)": r"\1: unexpected argument",
    r"^Option '(.+?)'": r"\1:",
    r"\.$": "",
}
"""Messages of typer and pydantic -> our form: the argument, what is wrong, what to do."""

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
FLAGS = "[CONFIG.yaml] [OPTIONS] [--section.key VALUE ...]"


def group(name: str | None = None, help: str | None = None, epilog: str | None = None) -> Typer:
    """Return a command that only holds other commands."""
    return Typer(
        name=name, help=help, epilog=epilog, add_completion=False, rich_markup_mode=None,
        context_settings=SETTINGS,
    )  # fmt: skip


def verb(
    app: Typer, text: str = "", *, epilog: str = "", passes_flags: bool = False
) -> Callable[[Verb], Verb]:
    """Make a function a verb: its parameters become options, its docstring the summary.

    Args:
        text: the text of its --help, printed as it is written; by default the docstring.
        passes_flags: whether unknown arguments are passed on, in `context.args`.
    """

    def add(function: Verb) -> Verb:
        summary = (function.__doc__ or "").strip()
        app.command(
            help=_as_written(text or summary), short_help=summary, epilog=_as_written(epilog),
            options_metavar=FLAGS if passes_flags else "[OPTIONS]",
            context_settings=SETTINGS | (PASS_ON if passes_flags else {}),
        )(function)  # fmt: skip
        return function

    return add


def run(app: Typer, argv: Sequence[str]) -> None:
    """Read the arguments and call the verb.

    Raises:
        BadInput: they cannot be read.
        SystemExit: after --help.
    """
    command, path, rest = get_command(app), "harness", list(argv)
    # Descend to the verb directly: typer would import pydantic to parse the options of a group.
    while rest and (inner := getattr(command, "commands", {}).get(rest[0])):
        command, path, rest = inner, f"{path} {rest[0]}", rest[1:]
    try:
        with command.make_context(path, rest) as context:
            command.invoke(context)
    except Exit as end:
        raise SystemExit(end.exit_code) from None
    except TyperException as error:
        raise BadInput(_one_line(error)) from None


def positive(number: float) -> float:
    """Return the number, or refuse one that is not above 0: a callback of options."""
    if not 0 < number < float("inf"):
        raise BadParameter(f"must be more than 0, not {number:g}")
    return number


def _one_line(error: TyperException) -> str:
    """Return an error as: `--steps: must be at least 1, got 0; see: harness VERB --help`."""
    close = getattr(error, "possibilities", None)
    message = error.message if close else error.format_message()
    for pattern, ours in REWORDED.items():
        message = re.sub(pattern, ours, message)
    if close:
        message += f"; did you mean {close[0]}?"
    if (mistakes := getattr(error.__cause__, "errors", None)) and "must be" in message:
        message += f", got {mistakes()[0]['input']}"
    context = getattr(error, "ctx", None)
    help = f"; see: {context.command_path if context else 'harness'} --help"
    return message if message.endswith("?") else message + help


def _as_written(text: str) -> str:
    r"""Return the text with a `\b` before each paragraph, which keeps typer from wrapping it."""
    return "\n\n".join(f"\b\n{paragraph}" for paragraph in text.split("\n\n") if text)
