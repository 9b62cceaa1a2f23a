"""W&B without its client: whether there is a key, a run's description, the keys of its rows."""

import hashlib
import netrc
import os
import re
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from harness.config import Config, fingerprint, recorded, wandb_says
from harness.logging.schema import RESULT_PREFIX, ROW_KEYS

Setting = Literal["auto", "online", "offline", "off"]
PUBLIC_HOSTS = frozenset({"api.wandb.ai", "api.forge.coreweave.com", "forge.coreweave.com"})


def choose_mode(
    setting: Setting, environ: Mapping[str, str], began: Setting = "auto"
) -> tuple[wandb_says.Mode, str | None]:
    """Return the mode for log.wandb, and a line with the reason if a user might not expect it.

    What `began` without W&B stays without it until somebody says otherwise: what W&B has cannot be
    taken back.
    """
    if setting == "off":
        return setting, None
    asked = wandb_says.mode(environ)
    if setting != "auto":
        if asked and asked[0] != setting:
            return setting, f"log.wandb {setting} counts, not {asked[1]}"
        return setting, None
    if asked:
        return asked[0], None
    if began in ("offline", "off"):
        return began, f"{began}, as this run began; to send it after all give --log.wandb online"
    if has_key(environ):
        return "online", None
    return "offline", (
        "no key found, so rows are mirrored offline; to go online run `wandb login` or set "
        "WANDB_API_KEY, for no mirror give --log.wandb off"
    )


def has_key(environ: Mapping[str, str]) -> bool:
    """Return whether the client would find a key; imports nothing and contacts no server."""
    if {"api_key", "identity_token_file"} & wandb_says.said(environ).keys():
        return True
    host = urlsplit(server(environ)).netloc
    try:
        file = os.path.expanduser(environ.get("NETRC") or "~/.netrc")
        known = netrc.netrc(file).hosts.keys()
    except (OSError, netrc.NetrcParseError):
        return False
    return bool(known & (PUBLIC_HOSTS if host in PUBLIC_HOSTS else {host}))


def server(environ: Mapping[str, str]) -> str:
    """Return the address of the server that the client would use."""
    given = wandb_says.said(environ).get("base_url")
    return given.value if given else "https://api.wandb.ai"


def about(
    config: Config,
    environment: Mapping[str, Any],
    *,
    world_size: int,
    precision: str,
    peak_lr: float | None,
) -> dict[str, Any]:
    """Return a run's group, job type, tags, notes and config, as arguments for WandbMirror.

    Args:
        environment: content of environment.json; what W&B's variables in it name goes first, also
            the run itself, which has no name here otherwise.
        world_size, precision, peak_lr: of the resolved config; no peak if nothing is trained.
    """
    derived = {"world_size": world_size, "precision": precision, "peak_lr": peak_lr}
    said = environment.get("variables") or {}
    return {
        **({"name": said["WANDB_NAME"]} if said.get("WANDB_NAME") else {}),
        "group": said.get("WANDB_RUN_GROUP") or group(config, environment, world_size),
        "job_type": said.get("WANDB_JOB_TYPE") or config.run.mode,
        "notes": said.get("WANDB_NOTES"),
        "tags": (config.model.name, config.data.source, precision, *config.log.tags),
        "config": recorded(config).model_dump(mode="json")
        | {"resolved": derived, "environment": dict(environment)},
    }


def group(config: Config, environment: Mapping[str, Any], world_size: int) -> str:
    """Name the group of runs that differ only in their seed, such as `resnet50-8xH100-1a2b3c4d`."""
    seedless = config.model_copy(update={"run": config.run.model_copy(update={"seed": 0})})
    device = environment.get("device")
    device = device if isinstance(device, Mapping) else {}
    prints = fingerprint(seedless, "result"), fingerprint(seedless, "speed")
    settings = "\n".join([*prints, str(world_size), str(device.get("name"))])
    cell = hashlib.sha256(settings.encode()).hexdigest()[:8]
    kind = str(device.get("type", "unknown"))
    # Such as `H100` of `NVIDIA H100 80GB HBM3`.
    model = re.search(r"[A-Za-z]*\d\w*", str(device.get("name"))) if kind == "cuda" else None
    return f"{config.model.name}-{world_size}x{model[0] if model else kind}-{cell}"


def row_for_wandb(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with W&B's keys, without nulls."""
    return {ROW_KEYS[k]: v for k, v in row.items() if k in ROW_KEYS and v is not None}


def result_for_wandb(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a Result as W&B's summary: scalars only, as its tables filter by nothing else."""
    accounts = {f"account_{name}_s": s for name, s in result.get("accounts_s", {}).items()}
    target = {f"target_{name}": value for name, value in (result.get("target") or {}).items()}
    # How the mirror ended is not known while it still runs.
    values = {k: v for k, v in result.items() if k != "wandb"} | accounts | target
    return {RESULT_PREFIX + k: v for k, v in values.items() if isinstance(v, str | int | float)}
