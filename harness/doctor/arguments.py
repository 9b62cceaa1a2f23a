"""Read the config that a user gives `harness doctor`; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from harness.config import Config, load
from harness.config.rules import check


def read_config(args: Sequence[str]) -> Config:
    """Return the config that the arguments describe; it may lack folders of images.

    Without those folders everything but the data can still be checked.

    Raises:
        BadInput: no such file, unknown key, wrong type, out of range, contradiction.
    """
    config = load.read(args, prog="harness doctor")
    folders = {name: getattr(config.data, name) or "demo" for name in ("train", "val")}
    check(config.model_copy(update={"data": config.data.model_copy(update=folders)}))
    return config
