"""The layout, read from the sources: imports point down, files and functions are small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from helpers import ROOT, TINY

from harness.data.dataset import open_folder

ROWS = [
    {"errors", "zoo"},
    {"config", "system"},
    {"distributed", "optim", "schedule"},
    {"data", "models"},
    {"checkpoint", "logging", "monitor", "run_folder"},
    {"trainer"},
    {"doctor", "results"},
    {"bench"},
    {"commands", "launch"},
]
"""From bottom to top; a file may import what lies in lower rows, and its own folder.

The table of networks, models/zoo.py, lies at the bottom: the config takes its names from it.
"""

MOST_MODULES, MOST_LINES = 56, 8_000
"""What a training loads of our own. They may only fall."""

ONLY_IN = {
    "pynvml": ("harness/monitor/gpus.py", "harness/doctor/gpus.py"),
    "nvidia": ("harness/data/dali.py", "harness/bench/loaders.py"),
    "wandb": ("harness/logging/wandb.py", "harness/results/"),
    "submitit": ("launch/submit.py",),
    "scipy": ("harness/results/stats/statistics.py", "harness/data/prepare/sources/imagenet.py"),
    "matplotlib": ("harness/results/page/plots.py", "harness/results/page/plots_speed.py"),
    "jinja2": ("harness/results/page/render.py",),
    "wandb_workspaces": ("harness/results/publish/publish_view.py",),
    "mlperf_logging": ("harness/results/publish/publish_mllog.py",),
}
"""Large packages with a life of their own, and the only places that know them."""

MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION = 300, 60
LONG = {"harness/config/sections.py": 345, "harness/trainer/summary.py: summarize": 90}
"""Long and plain: the declarations of all settings, the table of all fields of a result."""

SOURCES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("harness", "launch")
    for path in (ROOT / folder).rglob("*.py")
)


def module_of(source: str) -> str:
    """`harness/data/stream.py` is `data.stream`, `launch/train.py` is `launch.train`."""
    parts = list(Path(source).with_suffix("").parts)
    return ".".join(part for part in parts[parts[0] == "harness" :] if part != "__init__")


MODULES = {module_of(source) for source in SOURCES}


@cache
def nodes(source: str) -> list[ast.AST]:
    """All of a file's syntax tree."""
    return list(ast.walk(ast.parse((ROOT / source).read_text())))


@cache
def imported(source: str) -> list[str]:
    """Full names of all that a file imports, wherever in it."""
    names = []
    for node in nodes(source):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: imports are written in full"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def own_modules(source: str) -> Iterator[str]:
    """Modules of the harness among them: `data.stream` for `from harness.data.stream import x`."""
    for name in imported(source):
        if name.startswith("harness."):
            inner = name.removeprefix("harness.")
            while inner and inner not in MODULES:
                inner = inner.rpartition(".")[0]
            if inner:  # else harness itself: its version
                yield inner


def folder_of(module: str) -> str:
    if module in ("__main__", "models.zoo"):
        return {"__main__": "commands", "models.zoo": "zoo"}[module]
    return module.split(".")[0]


def row(module: str) -> int:
    top = folder_of(module)
    (number,) = [number for number, folders in enumerate(ROWS) if top in folders]
    return number


@pytest.mark.parametrize("source", [name for name in SOURCES if name != "harness/__init__.py"])
def test_imports_point_down(source: str) -> None:
    me = module_of(source)
    for other in own_modules(source):
        allowed = folder_of(other) == folder_of(me) or row(other) < row(me)
        assert allowed, f"{source} imports {other}, which is in the same row or above it"


def test_no_imports_go_in_circles() -> None:
    TopologicalSorter(
        {module_of(source): {*own_modules(source)} - {module_of(source)} for source in SOURCES}
    ).prepare()


def test_a_training_loads_no_more_than_its_budget(photos: Path, tmp_path: Path) -> None:
    open_folder(photos)  # its index is built once
    script = (
        "import atexit, runpy, sys; own = lambda: [m.__file__ for n, m in sys.modules.items() "
        "if n.split('.')[0] in ('harness', 'launch') and getattr(m, '__file__', None)]; "
        "atexit.register(lambda: print('own:', *own(), 'launch/train.py')); "
        "runpy.run_path('launch/train.py', run_name='__main__')"
    )
    flags = [
        *TINY, "--schedule.max-steps", "1", "--train.global-batch", "20", "--log.wandb", "off",
        *("--data.train", str(photos), "--data.val", str(photos), "--run.root", str(tmp_path)),
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script, *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    files = done.stdout.split("own: ")[1].split()
    lines = sum(len((ROOT / file).read_text().splitlines()) for file in files)
    assert len(files) <= MOST_MODULES, len(files)
    assert lines <= MOST_LINES, lines
    assert not [file for file in files if "wandb" in file], "with --log.wandb off"


def test_exceptions_are_needed() -> None:
    assert {entry.split(":")[0] for entry in LONG} <= set(SOURCES)


def test_the_rows_name_what_there_is() -> None:
    tops = {folder_of(module) for module in MODULES} - {""}
    assert set().union(*ROWS) == tops


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_large_package_is_known_in_one_place(package: str) -> None:
    for source in SOURCES:
        if package in {name.split(".")[0] for name in imported(source)}:
            assert source.startswith(ONLY_IN[package])


@pytest.mark.parametrize("source", SOURCES)
def test_files_and_functions_are_small(source: str) -> None:
    lines = (ROOT / source).read_text().splitlines()
    assert len(lines) <= LONG.get(source, MOST_LINES_OF_A_FILE)
    for node in nodes(source):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            name, length = f"{source}: {node.name}", (node.end_lineno or 0) - node.lineno + 1
            assert length <= LONG.get(name, MOST_LINES_OF_A_FUNCTION), name
