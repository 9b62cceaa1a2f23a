"""What the user gives `harness doctor`; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from harness.config import Config, load
from harness.config.rules import check


def read_config(words: Sequence[str]) -> Config:
    """The config; one without folders of images will do, as the rest can be looked at.

    Raises:
        BadInput: no such file, unknown key, wrong type, out of range, contradiction.
    """
    config = load.read(words, prog="harness doctor")
    folders = {name: getattr(config.data, name) or "demo" for name in ("train", "val")}
    check(config.model_copy(update={"data": config.data.model_copy(update=folders)}))
    return config
