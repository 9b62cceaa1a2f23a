"""The folder of --out: make it, and write a benchmark's JSON and HTML page into it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.errors import BadInput
from harness.system.console import out
from harness.system.files import write_text


def make_folder(folder: Path, inner: str = "") -> Path:
    """Make the folder of --out and one in it, which is returned; raise BadInput if that fails."""
    try:
        (folder / inner).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out: {folder}: {error.strerror}; name a folder you can write") from None
    return folder / inner


def write_both(stem: Path, content: dict[str, Any], make_page: Callable[[], str]) -> None:
    """Write `stem`.json and, if matplotlib is installed, the page `stem`.html; print the paths."""
    as_json, as_page = (stem.with_suffix(suffix) for suffix in (".json", ".html"))
    write_text(as_json, json.dumps(content, indent=1))
    try:
        write_text(as_page, make_page())
        page = f"{as_page}: the same as a page"
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        page = "no page, as matplotlib is not installed: pip install 'imagenet-harness[page]'"
    out.print(f"\n{page}\n{as_json}: all measurements")
