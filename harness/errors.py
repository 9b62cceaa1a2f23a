"""The two ways in which a command ends badly, and the exit codes that say so."""

import sys
from collections.abc import Iterator

EXIT_GOOD = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_CANNOT_TELL = 3
EXIT_INTERRUPTED = 130  # as shells say it of Ctrl-C


class HarnessError(Exception):
    """An error whose message is one line for the user: what is wrong, where, what to do."""

    exit_code = EXIT_FAILED


class BadInput(HarnessError):
    """The user's input cannot be used; raised before any work, so that nothing is half-written."""

    exit_code = EXIT_BAD_INPUT


class BadRank(BadInput):
    """The launcher's variables cannot be right: each rank says so, as others may not see it."""


class RunFailed(HarnessError):
    """The run began and cannot continue: an image does not decode, another rank does not answer."""


class NotFinite(RunFailed):
    """A loss is nan or infinite; raised on all ranks at the same step."""


class SecondaryFailure(RunFailed):
    """Another rank failed first; this error, such as a lost connection, may follow from that."""


class Preempted(HarnessError):
    """A signal ended the run at a step that all ranks agreed on, and the state is saved."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number
        self.exit_code = 128 + number  # as shells say it


OUT_OF_MEMORY = (
    "out of memory: set --train.max-local-batch lower (gradients then accumulate to the same "
    "global batch), or --eval.local-batch if it was validating"
)
MORE_SHM = "make /dev/shm larger: docker --shm-size 8g, or mount -o remount,size=8g /dev/shm"
NOT_COMPILED = (
    "harness doctor tries the compiler, a run's failure.json has the whole error, "
    "--engine.compile false goes without"
)
CUDA_ERRORS = {
    "no kernel image": "this torch is not built for this GPU: install one that is (pytorch.org)",
    "": "the GPU, its driver or a kernel is at fault: harness doctor and dmesg (Xid) tell of the "
    "first two, CUDA_LAUNCH_BLOCKING=1 of the last",
}
"""Part of an error's message -> what to do; the first match counts."""

MOST_LETTERS = 300  # of an error's first line: a compiler's has all of its flags

_SAY_NO_MEMORY = ("CUDA out of memory", "CUDA error: out of memory", "'out of memory'",
                  "_STATUS_ALLOC_FAILED")  # fmt: skip
_SAY_CUDA = ("CUDA error", "CUDA driver error", "cuDNN error", "Cuda failure")


def explained(error: BaseException) -> tuple[int, str] | None:
    """Return the exit code and one line for a known error; None for all others.

    Torch's errors are also recognized by their messages: the libraries under torch have no class
    for each of them, and torch.compile wraps what is raised inside it.
    """
    if isinstance(error, HarnessError):
        return error.exit_code, one_line(error)
    chain = [*_chain(error)][::-1]  # the cause first: what wraps an error repeats its message
    for cause in chain:
        if _is(cause, "torch", "OutOfMemoryError") or _says(cause, _SAY_NO_MEMORY):
            return EXIT_FAILED, f"{OUT_OF_MEMORY}; {_first_line(cause)}"
    for cause in chain:
        if _is(cause, "torch", "AcceleratorError") or _says(cause, _SAY_CUDA):
            remedy = next(do for text, do in CUDA_ERRORS.items() if text in str(cause))
            return EXIT_FAILED, f"{_first_line(cause)}; {remedy}"
        if _says(cause, ("DataLoader worker",)):  # raised wherever the main thread is by then
            return EXIT_FAILED, f"{_first_line(cause)}; if not killed by hand: {MORE_SHM}"
    if any(_is(cause, "torch._dynamo.exc", "BackendCompilerFailed") for cause in chain):
        what = f"{type(chain[0]).__name__}: {_first_line(chain[0])}"
        return EXIT_FAILED, f"torch.compile failed: {what}; {NOT_COMPILED}"
    return None


def one_line(message: object) -> str:
    """Return a message without line breaks, which a value given by a user may hold."""
    return " ".join(str(message).split())


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or getattr(error, "inner_exception", None)


def _is(error: BaseException, module: str, name: str) -> bool:
    """Return whether an error is of this class; its module need not be imported."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(error, kind)


def _says(error: BaseException, texts: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def _first_line(error: BaseException) -> str:
    line = next(iter(str(error).splitlines()), "")
    return line if len(line) <= MOST_LETTERS else f"{line[:MOST_LETTERS]} ..."
