"""A page beside a bench's JSON, where what draws it is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.system.files import write_atomic


def write_page(path: Path, make: Callable[[], str]) -> str:
    """Write what `make` returns; what to tell of it: where it is, or how to get it next time."""
    try:
        html = make()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return "no page, as matplotlib is not there: pip install 'imagenet-harness[page]'"
    write_atomic(path, lambda part: part.write_text(html, encoding="utf-8"))
    return f"{path}: the same to look at"
