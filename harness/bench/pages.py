"""Write the HTML page of a benchmark, if matplotlib is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.system.files import write_atomic


def write_page(path: Path, make: Callable[[], str]) -> str:
    """Write the HTML that `make` returns; return a line with its path, or why there is none."""
    try:
        html = make()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return "no page, as matplotlib is not installed: pip install 'imagenet-harness[page]'"
    write_atomic(path, lambda part: part.write_text(html, encoding="utf-8"))
    return f"{path}: the same as a page"
