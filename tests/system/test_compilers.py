"""What torch.compile needs is tried for real: the compiler it would choose, Python.h, OpenMP."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from helpers import TINY
from torch._inductor import cpp_builder

from harness.config import load
from harness.distributed import from_environment
from harness.doctor import software
from harness.doctor.check import PlannedRun
from harness.errors import BadInput
from harness.system import compilers
from harness.trainer import run

BOTH = pytest.mark.parametrize("on_gpu", [True, False])
triton = pytest.mark.skipif(not torch.utils._triton.has_triton_package(), reason="no triton")


@pytest.fixture(autouse=True)
def _only_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CC", "CXX", "TORCH_INDUCTOR_INSTALL_GXX"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A folder that is all of PATH, with programs of the user's own by the names given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def plant(*names: str, script: str = "exit 0") -> Path:
        for name in names:
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)
        return folder

    return plant


@BOTH
def test_this_machine_compiles(on_gpu: bool) -> None:
    value, remedy = compilers.attempt(on_gpu=on_gpu)
    assert value.endswith(f"{'gcc' if on_gpu else 'g++'} builds against Python.h")
    assert not remedy
    compilers.require(on_gpu=on_gpu)


@BOTH
def test_without_a_compiler_it_says_what_to_install(
    plant: Callable[..., Path], on_gpu: bool
) -> None:
    package, variable = ("gcc", "CC") if on_gpu else ("g++", "CXX")
    begins = "no C compiler" if on_gpu else "C\\+\\+ compiler g\\+\\+: No such file or directory"
    with pytest.raises(BadInput, match=f"^engine.compile: {begins}; install ") as refused:
        compilers.require(on_gpu=on_gpu)
    for part in (f"apt-get install {package} python3-dev", variable, "--engine.compile false"):
        assert part in str(refused.value)


@BOTH
def test_without_the_headers_of_python(monkeypatch: pytest.MonkeyPatch, on_gpu: bool) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda *_: "/nowhere")
    value, remedy = compilers.attempt(on_gpu=on_gpu)
    assert value.endswith("does not find Python.h")
    assert "python3-dev" in remedy


@BOTH
@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("exit 3", "fails with exit code 3"),
        ("echo noise >&2; echo 'x: error: no good' >&2; exit 1", "fails: x: error: no good"),
        ("echo 'ld: cannot find -lgomp' >&2; exit 1", "lacks OpenMP"),
        ("echo '1 error in this compilation' >&2; exit 1", "fails: 1 error in this compilation"),
        ("exec sleep 60", "does not end within 0.2 s"),
    ],
)  # fmt: skip
def test_a_compiler_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_gpu: bool, script: str, says: str
) -> None:
    monkeypatch.setattr(compilers, "LIMIT_S", 0.2)
    broken = tmp_path / "broken"
    broken.write_text(f"#!/bin/sh\n{script}\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC" if on_gpu else "CXX", str(broken))
    if "sleep" not in script:
        monkeypatch.setattr(compilers, "LIMIT_S", 60)
    value, remedy = compilers.attempt(on_gpu=on_gpu)
    assert value == f"{broken} {says}"
    assert remedy


def test_inductor_may_bring_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_INDUCTOR_INSTALL_GXX", "1")
    monkeypatch.setenv("CXX", "/no/such")
    compilers.require(on_gpu=False)


@triton
@pytest.mark.parametrize("there", [("gcc", "clang"), ("gcc",), ("clang",), ("cc",), ()])
@pytest.mark.parametrize("given", [None, "", "my-cc -m64"])
def test_it_is_the_one_that_triton_chooses(
    plant: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...],
    given: str | None,
) -> None:  # fmt: skip
    from triton.runtime import build

    plant(*there)
    if given is not None:
        monkeypatch.setenv("CC", given)
    called: list[str] = []
    monkeypatch.setattr(build.subprocess, "check_call", lambda line, **_: called.append(line[0]))
    find = getattr(build, "_find_compiler", None)  # from triton 3.7 on, and it remembers
    if find is not None:
        find.cache_clear()
    with suppress(RuntimeError):
        build._build("name", "name.c", str(there), [], [], [], [])
    if find is not None:
        find.cache_clear()
    assert compilers.c_compiler() == called


@pytest.mark.parametrize("there", [("g++", "clang++"), ("clang++",)])
def test_it_is_the_one_that_inductor_chooses(
    plant: Callable[..., Path], there: tuple[str, ...]
) -> None:
    plant(*there)
    cpp_builder.cpp_compiler_search.cache_clear()
    try:
        chosen = [cpp_builder.get_cpp_compiler()]
    except RuntimeError:
        chosen = []
    finally:
        cpp_builder.cpp_compiler_search.cache_clear()
    found = compilers.cpp_compiler()
    assert (found if shutil.which(found[0]) else []) == chosen


def planned_run(on: str, compile: str) -> PlannedRun:
    words = [
        *TINY,
        "--engine.device",
        on,
        "--engine.compile",
        compile,
        "--data.source",
        "synthetic",
    ]
    return PlannedRun(load.load(words), from_environment("cpu", {}), 0, {})


def test_training_refuses_before_anything_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXX", "/no/such/compiler")
    monkeypatch.setattr(run, "process_group", lambda *_: pytest.fail("opened the process group"))
    world = from_environment("cpu", {})
    with pytest.raises(
        BadInput, match=r"engine.compile: C\+\+ compiler /no/such/compiler: No such"
    ):
        run.run(planned_run("cpu", "true").config, world)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(pytest.fail.Exception, match="opened"):
        run.run(planned_run("cpu", "false").config, world)


def test_the_doctor_tries_it_where_the_run_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []

    def attempt(*, on_gpu: bool) -> tuple[str, str]:
        calls.append(on_gpu)
        return ("no C compiler", "install gcc") if on_gpu else ("g++", "")

    monkeypatch.setattr(compilers, "attempt", attempt)
    for compile, expected in (("false", []), ("auto", []), ("true", [False])):
        calls.clear()
        software.collect(planned_run("cpu", compile))
        assert calls == expected
    judge = software.judge_compiler
    assert judge(None).status == "not checked"
    assert judge(("g++ builds", "")).status == "green"
    check = judge(("no C compiler", "install gcc"))
    assert (check.name, check.status) == ("compiler", "red")
    assert check.do == "install gcc, or give --engine.compile false"


@pytest.mark.gpu
def test_on_a_gpu_the_doctor_tries_it_by_default() -> None:
    on_gpu = PlannedRun(
        planned_run("auto", "auto").config, from_environment("cuda", {}), 1, os.environ
    )
    trial = software.collect(on_gpu)["compiler"]
    assert trial is not None
    assert subprocess.run([trial[0].split()[0], "--version"], capture_output=True).returncode == 0
