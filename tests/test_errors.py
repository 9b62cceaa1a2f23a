"""Errors of torch, its libraries and its compiler: one line that names the kind and a remedy."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch._dynamo.exc import BackendCompilerFailed

import harness.__main__ as command
from harness.errors import BadInput, HarnessError, SecondaryFailure, explained
from harness.results import show
from harness.run_folder.folder import record_failure
from launch import train

NO_MEMORY = "out of memory: set --train.max-local-batch lower"
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")
ILLEGAL = "CUDA error: an illegal memory access was encountered\nSearch for `cudaErrorIllegal'"


def compiling(cause: Exception) -> BackendCompilerFailed:
    """As dynamo raises it around what its backend raised."""
    try:
        raise BackendCompilerFailed(compiling, cause, None) from cause
    except BackendCompilerFailed as error:
        return error


@pytest.mark.parametrize(
    ("error", "begins", "names"),
    [
        (OUT_OF_MEMORY, NO_MEMORY, "validating; CUDA out of memory. Tried to allocate 2 GiB."),
        (torch.AcceleratorError("CUDA error: out of memory\nCompile with"), NO_MEMORY, "CUDA"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`"), NO_MEMORY, "CUB"),
        (RuntimeError("NCCL error: unhandled\nCuda failure 2 'out of memory'"), NO_MEMORY, "NCCL"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is\nmore"),
         "DataLoader worker (pid 7) is killed by signal: Bus error. It is; ", "/dev/shm larger"),
        (compiling(OUT_OF_MEMORY), NO_MEMORY, "Tried to allocate 2 GiB."),
        (torch.AcceleratorError(ILLEGAL), "CUDA error: an illegal memory access was", "(Xid)"),
        (RuntimeError(ILLEGAL), "CUDA error: an illegal memory access was", "BLOCKING=1"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "cuDNN error: ", "(Xid)"),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"),
         "CUDA error: no kernel image", "this torch is not built for this GPU"),
        (compiling(RuntimeError("Failed to find C compiler. Please specify\nmore")),
         "torch.compile failed: RuntimeError: Failed to find C compiler. Please specify; ",
         "--engine.compile false"),
    ],
)  # fmt: skip
def test_an_error_of_torch_is_one_line_with_a_remedy(
    error: Exception, begins: str, names: str
) -> None:
    known = explained(error)
    assert known is not None
    code, line = known
    assert code == 1
    assert line.startswith(begins)
    assert names in line
    assert "\n" not in line


def test_what_is_not_understood_is_left_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    assert explained(RuntimeError("shape '[2]' is invalid for input of size 3")) is None
    assert explained(ValueError("CUDA error: only said by somebody")) is None
    code, line = train.explained(RuntimeError("shape is invalid\nmore"))
    assert (code, line) == (1, "RuntimeError: shape is invalid")
    assert "RuntimeError: shape is invalid\nmore" in capfd.readouterr().err, "its traceback"


def test_an_error_of_the_harness_keeps_its_words_whatever_it_came_of() -> None:
    followed = SecondaryFailure("rank 1 failed first")
    followed.__cause__ = OUT_OF_MEMORY
    assert explained(followed) == (1, "rank 1 failed first")
    assert explained(BadInput("no")) == (2, "no")
    assert explained(HarnessError("no")) == (1, "no")


def test_before_torch_is_imported_nothing_is_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "torch._dynamo.exc"):
        monkeypatch.delitem(sys.modules, name)
    assert explained(ImportError("libcudart.so.13: cannot open shared object file")) is None
    assert "torch" not in sys.modules


def test_failure_json_holds_the_whole_error(tmp_path: Path) -> None:
    cause = RuntimeError("Failed to find C compiler. Please specify\nvia CC")
    assert record_failure(tmp_path, 3, compiling(cause))
    failure = json.loads((tmp_path / "failure.json").read_text())
    assert failure["kind"] == "BackendCompilerFailed"
    assert "via CC" in failure["stack"]


@pytest.fixture
def harness_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Exception], tuple[object, str]]:
    """Let a verb of `harness` raise an error; how the command ends, and what it prints."""

    def ends(error: Exception) -> tuple[object, str]:
        def read_runs(_: object) -> None:
            raise error

        monkeypatch.setattr(show, "show_address", read_runs)
        monkeypatch.setattr(command, "err", Console(stderr=True, soft_wrap=True, highlight=False))
        with pytest.raises(SystemExit) as ended:
            command.main(["show", "runs/a-s0"])
        return ended.value.code, capsys.readouterr().err

    return ends


def test_the_harness_command_says_it_in_one_line_too(
    harness_ends: Callable[[Exception], tuple[object, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("TORCHELASTIC")]:
        monkeypatch.delenv(name)
    code, said = harness_ends(OUT_OF_MEMORY)
    assert (code, said.count("\n")) == (1, 1)
    assert said.startswith(f"error: {NO_MEMORY}")
    with pytest.raises(ZeroDivisionError):
        harness_ends(ZeroDivisionError("a fault of the harness keeps its traceback"))
