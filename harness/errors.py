"""The two ways in which a command ends badly, and the exit codes that say so."""

from __future__ import annotations

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


class RunFailed(HarnessError):
    """The run began and cannot go on: an image does not decode, another rank does not answer."""

    exit_code = EXIT_FAILED


class NotFinite(RunFailed):
    """A loss is nan or infinite; all ranks learn of it at the same point."""


class SecondaryFailure(RunFailed):
    """Another rank failed first; what this one met may come of that, such as a lost connection."""


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
NOT_COMPILED = (
    "harness doctor tries the compiler, a run's failure.json has the whole error, "
    "--engine.compile false goes without"
)
CUDA_ERRORS = {
    "no kernel image": "this torch is not built for this GPU: install one that is (pytorch.org)",
    "": "the GPU, its driver or a kernel is at fault: harness doctor and dmesg (Xid) tell of the "
    "first two, CUDA_LAUNCH_BLOCKING=1 of the last",
}
"""Part of what an error says -> what to do; the first that fits."""

MOST_LETTERS = 300
"""Of an error's first line: a compiler's has all of its flags."""

_SAY_NO_MEMORY = ("CUDA out of memory", "CUDA error: out of memory", "'out of memory'",
                  "_STATUS_ALLOC_FAILED")  # fmt: skip
_SAY_CUDA = ("CUDA error", "CUDA driver error", "cuDNN error", "Cuda failure")


def explained(error: BaseException) -> tuple[int, str] | None:
    """Exit code and one line for an error that is understood; None for all others.

    Torch's errors are known by their words too: libraries under it have no class for each, and
    torch.compile wraps what it meets.
    """
    if isinstance(error, HarnessError):
        return error.exit_code, str(error)
    chain = [*_chain(error)][::-1]  # what wraps an error repeats its words
    for each in chain:
        if _is(each, "torch", "OutOfMemoryError") or _says(each, _SAY_NO_MEMORY):
            return EXIT_FAILED, f"{OUT_OF_MEMORY}; {_first_line(each)}"
    for each in chain:
        if _is(each, "torch", "AcceleratorError") or _says(each, _SAY_CUDA):
            remedy = next(do for text, do in CUDA_ERRORS.items() if text in str(each))
            return EXIT_FAILED, f"{_first_line(each)}; {remedy}"
    if any(_is(each, "torch._dynamo.exc", "BackendCompilerFailed") for each in chain):
        what = f"{type(chain[0]).__name__}: {_first_line(chain[0])}"
        return EXIT_FAILED, f"torch.compile failed: {what}; {NOT_COMPILED}"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it comes from, down to the first."""
    while error is not None:
        yield error
        error = error.__cause__ or getattr(error, "inner_exception", None)


def _is(error: BaseException, module: str, name: str) -> bool:
    """Whether it is of a class of a module that need not be imported."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(error, kind)


def _says(error: BaseException, texts: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def _first_line(error: BaseException) -> str:
    line = next(iter(str(error).splitlines()), "")
    return line if len(line) <= MOST_LETTERS else f"{line[:MOST_LETTERS]} ..."
