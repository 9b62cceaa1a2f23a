"""The folder of --out: make it, and write a benchmark's JSON and HTML page into it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.errors import BadInput
from harness.system.console import out
from harness.system.files import write_text


def make_folder(folder: Path, inner: str = "") -> Path:
    """Make the folder of --out, with a folder in it; return the inner one.

    Raises:
        BadInput: it cannot be made.
    """
    try:
        (folder / inner).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out: {folder}: {error.strerror}; name a folder you can write") from None
    return folder / inner


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file."""
    write_text(path, json.dumps(content, indent=1))


def write_both(stem: Path, content: dict[str, Any], make_page: Callable[[], str]) -> None:
    """Write `stem`.json and, if matplotlib is installed, the page `stem`.html; print the paths."""
    as_json, as_page = (stem.with_suffix(suffix) for suffix in (".json", ".html"))
    write_json(as_json, content)
    try:
        write_text(as_page, make_page())
        page = f"{as_page}: the same as a page"
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        page = "no page, as matplotlib is not installed: pip install 'imagenet-harness[page]'"
    out.print(f"\n{page}\n{as_json}: all measurements")
