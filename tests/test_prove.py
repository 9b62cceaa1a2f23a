"""prove_gpu: its command lines can be read; it keeps its limits, and sees what is wrong."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import time
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import prove_checks
import pytest
import torch
from helpers import ROOT
from prove_checks import Check

SCRIPT = ROOT / "tests" / "prove_gpu"


@pytest.fixture
def prove(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, with folders of its own."""
    loader = SourceFileLoader("prove_gpu", str(SCRIPT))
    spec = spec_from_loader("prove_gpu", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    for name in ("LOGS", "RUNS"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(module, name, tmp_path / name)
    return module


def python(name: str, script: str, limit_s: int = 60, **how: Any) -> Check:
    return Check(name, limit_s, "", ([sys.executable, "-c", script],), **how)


def fails() -> str:
    raise AssertionError("not as expected")


def test_each_check_has_its_limit_and_its_line(
    tmp_path: Path, prove: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = f"prove-{time.time_ns()}"
    child = f"import time; time.sleep(60) # {mark}"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{child}'])"
    checks = (
        python("good", "print('first'); print('last')"),
        python("wrong", "import sys; print('why'); sys.exit(3)"),
        python("refused", "import sys; print('error: x'); sys.exit(2)", code=2, says="error: "),
        python("not_refused", "", code=2, says="error: "),
        python("verdict", "", verdict=lambda: "as it should be"),
        python("bad_verdict", "", verdict=fails),
        python("hangs", parent, limit_s=2),
        python("no_images", "", needs=("nowhere",)),
        python("too_long", "", limit_s=3600),
    )
    monkeypatch.setattr(prove, "CHECKS", checks)
    assert not prove.prove(tmp_path, 10, [])
    lines = [line.split("\t") for line in (tmp_path / "summary.txt").read_text().splitlines()]
    assert [(line[0], line[1], line[-1].split(":")[0]) for line in lines] == [
        ("good", "rc 0", "last"),
        ("wrong", "rc 3", "why"),
        ("refused", "rc 0", "error"),
        ("not_refused", "rc 1", ""),
        ("verdict", "rc 0", "as it should be"),
        ("bad_verdict", "rc 1", "AssertionError"),
        ("hangs", "rc 124", ""),
        ("no_images", "left out", "no nowhere here"),
        ("too_long", "left out", "may take 3600 s"),
    ]
    left = subprocess.run(["pgrep", "-f", mark], capture_output=True, text=True)
    assert not left.stdout, "what a check has started ends with it"
    with tarfile.open(tmp_path / "all.tar.gz") as tar:
        assert {"./good.log", "./summary.txt"} <= set(tar.getnames())
    # Another call goes on with the others; a name runs again.
    assert prove.prove(tmp_path, 10, [])
    assert prove.prove(tmp_path, 10, ["good"])
    names = [line.split("\t")[0] for line in (tmp_path / "summary.txt").read_text().splitlines()]
    assert names[9:] == ["no_images", "too_long", "good"]


def save_momentum(name: str, values: torch.Tensor) -> None:
    folder = prove_checks.RUNS / name / "checkpoints"
    folder.mkdir(parents=True)
    state = {0: {"momentum_buffer": values[:50]}, 1: {"momentum_buffer": values[50:].view(2, -1)}}
    torch.save({"optimizer": {"state": state}}, folder / "step-000000012.pt")


def test_a_wrong_gradient_is_seen_and_rounding_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CUDA graphs would give it, where the last half of a batch overwrites the first."""
    monkeypatch.setattr(prove_checks, "RUNS", tmp_path)
    halves = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    save_momentum("whole", halves.mean(0))
    save_momentum("rounded", halves.mean(0).bfloat16().float())
    save_momentum("last_half", halves[1])
    save_momentum("nan", halves.mean(0) * float("nan"))
    assert prove_checks.same_gradients("whole", "rounded").startswith(
        "away from whole: rounded 0.00"
    )
    for wrong in ("last_half", "nan"):
        with pytest.raises(AssertionError, match=f"away from whole: rounded 0.00.*, {wrong} "):
            prove_checks.same_gradients("whole", "rounded", wrong)


@pytest.mark.slow
def test_every_command_line_can_be_read() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--dry"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for check in prove_checks.CHECKS:
        assert f"{check.name}: {len(check.commands)} " in done.stdout


def test_the_manual_has_every_check() -> None:
    manual = (ROOT / "tests" / "README.md").read_text()
    (table,) = manual.split("\n| check | what it proves |\n")[1:]
    rows = table[: table.index("\n\n")]
    for check in prove_checks.CHECKS:
        assert f"`{check.name}`" in rows, check.name
