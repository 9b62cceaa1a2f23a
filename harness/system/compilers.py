"""Check the compilers that torch.compile needs on this machine, before a run starts.

On a GPU, triton builds its launcher in C; on a CPU, inductor builds its kernels in C++ with OpenMP.
Both include Python.h. Without this check, the warm-up would fail with pages of traceback.
"""

import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from harness.errors import BadInput

LIMIT_S = 60.0
"""Time limit, for a compiler on a busy network disk; elsewhere it takes 0.2 to 0.5 s."""


class _Language(NamedTuple):
    name: str
    variable: str  # the environment variable that names the compiler
    package: str
    flags: tuple[str, ...]
    program: str

    @property
    def install(self) -> str:
        package = self.package
        return f"install {package} and Python's headers (apt-get install {package} python3-dev)"


_C = _Language("C", "CC", "gcc", ("-x", "c"), "#include <Python.h>\nint main(void) { return 0; }\n")
_CPP = _Language(
    "C++", "CXX", "g++", ("-fopenmp", "-x", "c++"),
    "#include <Python.h>\n#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n",
)  # fmt: skip


def require(*, on_gpu: bool) -> None:
    """Check that torch.compile can work on this machine.

    Raises:
        BadInput: there is no compiler, or Python.h or OpenMP is missing.
    """
    value, remedy = attempt(on_gpu=on_gpu)
    if remedy:
        raise BadInput(f"engine.compile: {value}; {remedy}, or give --engine.compile false")


def attempt(*, on_gpu: bool) -> tuple[str, str]:
    """Build a small program with the compiler that torch.compile will choose.

    Return what works, or what is wrong; and what to do about it, empty if nothing is wrong.
    """
    if on_gpu:
        return _build(_C, c_compiler())
    if os.environ.get("TORCH_INDUCTOR_INSTALL_GXX"):
        return "inductor installs a C++ compiler of its own", ""
    return _build(_CPP, cpp_compiler())


def c_compiler() -> list[str]:
    """Return the C compiler that triton chooses (runtime/build.py, 3.6 to 3.8): CC is one path."""
    variable = os.environ.get("CC")
    path = variable if variable is not None else shutil.which("gcc") or shutil.which("clang")
    return [] if path is None else [path]


def cpp_compiler() -> list[str]:
    """Return the C++ compiler as inductor's cpp_builder.py chooses it (torch 2.11 to 2.14)."""
    return shlex.split(os.environ.get("CXX", "g++"))


def _build(language: _Language, compiler: list[str]) -> tuple[str, str]:
    name = shlex.join(compiler)
    remedy = f"{language.install}, or name one in {language.variable}"
    if not compiler:
        return f"no {language.name} compiler", remedy
    folders = {sysconfig.get_path("include"), sysconfig.get_path("include", "posix_prefix")}
    includes = [f"-I{folder}" for folder in sorted(folders)]
    try:
        with TemporaryDirectory() as folder:
            done = subprocess.run(
                [*compiler, "-o", str(Path(folder, "program")), *includes, *language.flags, "-"],
                input=language.program, capture_output=True, text=True, errors="replace",
                timeout=LIMIT_S,
            )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"{name} does not end within {LIMIT_S:g} s", "look at the disk it lies on"
    except OSError as error:
        return f"{language.name} compiler {name}: {error.strerror or error}", remedy
    if done.returncode == 0:
        return f"{name} builds against Python.h", ""
    return f"{name} {_fault(done.stderr, done.returncode)}", language.install


def _fault(stderr: str, code: int) -> str:
    if "Python.h" in stderr:
        return "does not find Python.h"
    if re.search(r"\bomp\.h|-l[gi]?omp|openmp", stderr):
        return "lacks OpenMP"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    message = next((line for line in lines if "error" in line), "".join(lines[:1]))
    return f"fails: {message[:200]}" if message else f"fails with exit code {code}"
