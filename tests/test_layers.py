"""The plan of the house, read from the sources: imports point down, files and functions are small.

See DESIGN.md, "Layout".
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT

ROWS = [
    {"errors", "cores"},
    {"config", "world", "console", "signals", "files", "deadline", "pagecache"},
    {"compilers", "dali"},
    {"parallel"},
    {"rules", "events"},
    {"cli"},
    {"models", "data", "optim", "checkpoint", "counts", "record", "probes", "profile"},
    {"peaks"},
    {"resolve", "pulse", "pixels"},
    {"utilisation"},
    {"engine"},
    {"artefacts", "train"},
    {"resume", "result", "attempt"},
    {"report"},
    {"keeper"},
    {"run"},
    {"results", "doctor"},
    {"bench"},
    {"verbs"},
    {"__main__", "launch"},
]
"""From bottom to top; a file may import what lies in lower rows, and its own package."""

SIDEWAYS = {("counts", "data.stream")}
"""Padding has a label that counts must not count; the stream, which pads, says which."""

ONLY_IN = {
    "pynvml": ("harness/record/nvml.py",),
    "nvidia": ("harness/data/pipeline.py", "harness/bench/loaders.py"),
    "wandb": ("harness/record/wandb.py", "harness/results/"),
    "submitit": ("launch/submit.py",),
    "scipy": ("harness/results/statistics.py", "harness/data/sources/ilsvrc.py"),
    "matplotlib": ("harness/results/plots.py", "harness/results/plots_speed.py"),
    "wandb_workspaces": ("harness/results/publish_view.py",),
    "mlperf_logging": ("harness/results/publish_mllog.py",),
}
"""Large packages with a life of their own, and the only places that know them."""

MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION = 300, 60
LONG = {"harness/config/sections.py": 530}
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


def imported(source: str) -> Iterator[str]:
    """Full names of all that a file imports, wherever in it."""
    for node in ast.walk(ast.parse((ROOT / source).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: imports are written in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_modules(source: str) -> Iterator[str]:
    """Modules of the harness among them: `data.stream` for `from harness.data.stream import x`."""
    for name in imported(source):
        if name.startswith("harness."):
            inner = name.removeprefix("harness.")
            while inner and inner not in MODULES:
                inner = inner.rpartition(".")[0]
            if inner:  # else harness itself: its version
                yield inner


def row(module: str) -> int:
    top = module.split(".")[0]
    (found,) = [number for number, names in enumerate(ROWS) if top in names]
    return found


@pytest.mark.parametrize("source", [name for name in SOURCES if name != "harness/__init__.py"])
def test_imports_point_down(source: str) -> None:
    me = module_of(source)
    for other in own_modules(source):
        same_package = other.split(".")[0] == me.split(".")[0]
        allowed = same_package or (me, other) in SIDEWAYS or row(other) < row(me)
        assert allowed, f"{source} imports {other}, which lies beside or above it"


def test_exceptions_are_needed() -> None:
    for me, other in SIDEWAYS:
        assert other in own_modules(f"harness/{me}.py")
    assert {entry.split(":")[0] for entry in LONG} <= set(SOURCES)


def test_the_rows_name_what_there_is() -> None:
    tops = {module.split(".")[0] for module in MODULES} - {""}
    assert set().union(*ROWS) == tops


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_large_package_is_known_in_one_place(package: str) -> None:
    for source in SOURCES:
        if package in {name.split(".")[0] for name in imported(source)}:
            assert source.startswith(ONLY_IN[package])


@pytest.mark.parametrize("source", SOURCES)
def test_files_and_functions_are_small(source: str) -> None:
    text = (ROOT / source).read_text()
    assert len(text.splitlines()) <= LONG.get(source, MOST_LINES_OF_A_FILE)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            name, length = f"{source}: {node.name}", (node.end_lineno or 0) - node.lineno + 1
            assert length <= LONG.get(name, MOST_LINES_OF_A_FUNCTION), name
