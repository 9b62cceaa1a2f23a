"""Compilers: what torch.compile calls on this machine, tried before a run counts on it.

On a GPU triton builds its launcher in C, on a CPU inductor its kernels in C++ with OpenMP; both
include Python.h. Where one is missing, the warm-up ends in pages of traceback.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from harness.errors import BadInput

LIMIT_S = 60.0
"""Of a compiler on a busy network disk; elsewhere it takes 0.2 to 0.5 s."""


class Trial(NamedTuple):
    """How building a program of a few lines went.

    Attributes:
        value: what works, or what is wrong.
        remedy: against what is wrong; empty where nothing is.
    """

    value: str
    remedy: str = ""


@dataclass(frozen=True)
class _Language:
    name: str
    variable: str  # of the environment, that names a compiler
    package: str
    flags: tuple[str, ...]
    program: str

    @property
    def install(self) -> str:
        packages = f"{self.package} python3-dev"
        return f"install {self.package} and Python's headers (apt-get install {packages})"


_C = _Language("C", "CC", "gcc", ("-x", "c"), "#include <Python.h>\nint main(void) { return 0; }\n")
_CPP = _Language(
    "C++", "CXX", "g++", ("-fopenmp", "-x", "c++"),
    "#include <Python.h>\n#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n",
)  # fmt: skip


def require(*, on_gpu: bool) -> None:
    """Refuse to train compiled where nothing can be compiled.

    Raises:
        BadInput: no compiler, or one that lacks Python.h or OpenMP.
    """
    value, remedy = attempt(on_gpu=on_gpu)
    if remedy:
        raise BadInput(f"engine.compile: {value}; {remedy}, or give --engine.compile false")


def attempt(*, on_gpu: bool) -> Trial:
    """Build a program as torch.compile will, with the compiler that it will choose."""
    if on_gpu:
        return _build(_C, c_compiler())
    if os.environ.get("TORCH_INDUCTOR_INSTALL_GXX"):
        return Trial("inductor installs a C++ compiler of its own")
    return _build(_CPP, cpp_compiler())


def c_compiler() -> list[str]:
    """As triton's runtime/build.py chooses it (3.6 to 3.8): the variable is one word."""
    given = os.environ.get("CC")
    chosen = given if given is not None else shutil.which("gcc") or shutil.which("clang")
    return [] if chosen is None else [chosen]


def cpp_compiler() -> list[str]:
    """As inductor's cpp_builder.py does (torch 2.11 to 2.14): it looks for no other than this."""
    return shlex.split(os.environ.get("CXX", "g++"))


def _build(language: _Language, compiler: list[str]) -> Trial:
    name = shlex.join(compiler)
    or_name_one = f"{language.install}, or name one in {language.variable}"
    if not compiler:
        return Trial(f"no {language.name} compiler", or_name_one)
    places = {sysconfig.get_path("include"), sysconfig.get_path("include", "posix_prefix")}
    includes = [f"-I{place}" for place in sorted(places)]
    try:
        with TemporaryDirectory() as folder:
            done = subprocess.run(
                [*compiler, "-o", str(Path(folder, "program")), *includes, *language.flags, "-"],
                input=language.program, capture_output=True, text=True, timeout=LIMIT_S,
            )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Trial(f"{name} does not end within {LIMIT_S:g} s", "look at the disk it lies on")
    except OSError as error:
        why = error.strerror or str(error)
        return Trial(f"{language.name} compiler {name}: {why}", or_name_one)
    if done.returncode == 0:
        return Trial(f"{name} builds against Python.h")
    return Trial(f"{name} {_fault(done.stderr, done.returncode)}", language.install)


def _fault(stderr: str, code: int) -> str:
    """What a compiler that failed says, in a few words."""
    if "Python.h" in stderr:
        return "does not find Python.h"
    if re.search(r"\bomp\.h|-l[gi]?omp|openmp", stderr):
        return "lacks OpenMP"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    said = next((line for line in lines if "error" in line), "".join(lines[:1]))
    return f"fails: {said[:200]}" if said else f"fails with exit code {code}"
