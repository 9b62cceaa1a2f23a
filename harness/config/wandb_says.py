"""What W&B's own variables and settings files say, read without its client."""

import configparser
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from harness.errors import BadInput, one_line

Mode = Literal["online", "offline", "off"]
MODES: dict[str, Mode] = {
    "online": "online", "run": "online", "offline": "offline", "dryrun": "offline",
    "disabled": "off",
}  # fmt: skip
"""W&B's modes, with the names that they had first -> log.wandb."""
OTHER_RUN = ("run_id", "resume", "resume_from", "fork_from", "sweep_id", "launch")


class Said(NamedTuple):
    """A value, and where it was given, as a message begins."""

    value: str
    source: str


def said(environ: Mapping[str, str]) -> dict[str, Said]:
    """Return what variables say, and files where those are empty, as `project` for WANDB_PROJECT.

    Raises:
        BadInput: a file is not of the client's form: the client would pass it over.
    """
    home = os.path.expanduser(environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb")
    # The client reads that of the working folder, but `wandb offline` writes that of WANDB_DIR.
    near = [Path(environ.get("WANDB_DIR") or "."), Path()]
    near = [each / (".wandb" if os.path.exists(each / ".wandb") else "wandb") for each in near]
    found = {}
    for file in [folder / "settings" for folder in (Path(home), *near)]:
        settings = configparser.ConfigParser(interpolation=None)
        try:
            settings.read(file, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise BadInput(
                f"{file}: {one_line(error)}; mend or remove this file of W&B's"
            ) from None
        for name, value in settings.items("default") if settings.has_section("default") else ():
            found[name] = Said(value, f"{file}: {name}")
    for name, value in environ.items():
        if name.startswith("WANDB_") and value.strip():
            found[name.removeprefix("WANDB_").lower()] = Said(value, name)
    return {name: given for name, given in found.items() if given.value}


def mode(environ: Mapping[str, str]) -> tuple[Mode, str] | None:
    """Return the mode that is asked for, as log.wandb has it, and by what; None if none is.

    Raises:
        BadInput: there is no such mode; to guess might send what was to stay.
    """
    return _mode_in(said(environ))


def _mode_in(found: Mapping[str, Said]) -> tuple[Mode, str] | None:
    disabled = found.get("disabled")  # as other trainers have it
    if disabled and disabled.value.lower() not in ("0", "false", "f", "no", "n", "off"):
        return "off", f"{disabled.source}={disabled.value}"
    if (asked := found.get("mode")) is None:
        return None
    if asked.value not in MODES:
        known = ", ".join(MODES)
        raise BadInput(f"{asked.source}: must be one of {known}; got {asked.value}")
    return MODES[asked.value], f"{asked.source}={asked.value}"


def heed(log: dict[str, Any], environ: Mapping[str, str]) -> dict[str, Path]:
    """Add to the section `log` what it leaves open and W&B's switches say; return their sources."""
    found = said(environ)
    if (asked := _mode_in(found)) and log.get("wandb", "auto") == "auto":
        log["wandb"] = asked[0]
    added = {name for name in ("project", "entity", "tags") if name in found and name not in log}
    log |= {name: found[name].value for name in added}
    return {f"log.{name}": Path(found[name].source) for name in added}


def refuse_other_run(folder: Path, environ: Mapping[str, str]) -> None:
    """Refuse what asks W&B for another run than that of the run folder.

    Raises:
        BadInput: names it.
    """
    file = folder / "run_id"
    run_id = file.read_text().strip() if file.exists() else None
    for name, (value, source) in said(environ).items():
        # As the harness does it. In a file it would also be in what is written offline.
        agrees = value == run_id or (source == "WANDB_RESUME" and value in ("allow", "auto"))
        if name in OTHER_RUN and not agrees:
            raise BadInput(
                f"{source}={value}: the run folder says which run in W&B goes on; unset this, or "
                "give --log.wandb off"
            )
