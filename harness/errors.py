"""The two ways in which a command ends badly, and the exit codes that say so."""

EXIT_GOOD = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_CANNOT_TELL = 3
EXIT_INTERRUPTED = 130  # as shells say it of Ctrl-C


class HarnessError(Exception):
    """An error whose message is one line for the user: what is wrong, where, what to do."""

    exit_code = EXIT_FAILED


class BadInput(HarnessError):
    """What the user gave cannot be used: found before any work, nothing is half-written."""

    exit_code = EXIT_BAD_INPUT


class RunFailed(HarnessError):
    """The run began and cannot go on: an image does not decode, another rank does not answer."""

    exit_code = EXIT_FAILED


class NotFinite(RunFailed):
    """A loss is nan or infinite; all ranks learn of it at the same point."""


class Followed(RunFailed):
    """Another rank failed first; what this one met may come of that, such as a lost connection."""


class Stopped(HarnessError):
    """A signal asked for the end, all ranks agreed on the step, and the work done is saved."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number
        self.exit_code = 128 + number  # as shells say it
