"""W&B without its client: whether there is a key, a run's description, the keys of its rows."""

import configparser
import contextlib
import hashlib
import netrc
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from harness.config import Config, fingerprint, recorded
from harness.logging.schema import RESULT_PREFIX, ROW_KEYS

Mode = Literal["online", "offline", "off"]
WANDB_MODES: dict[str, Mode] = {"online": "online", "offline": "offline", "disabled": "off"}
PUBLIC_HOSTS = frozenset({"api.wandb.ai", "api.forge.coreweave.com", "forge.coreweave.com"})


def choose_mode(
    setting: Literal["auto", "online", "offline", "off"], environ: Mapping[str, str]
) -> tuple[Mode, str | None]:
    """Return the mode for log.wandb, and a line with the reason if a user might not expect it."""
    if setting != "auto":
        return setting, None
    if named := WANDB_MODES.get(environ.get("WANDB_MODE", "")):
        return named, None
    if has_key(environ):
        return "online", None
    return "offline", (
        "no key found, so rows are mirrored offline; to go online run `wandb login` or set "
        "WANDB_API_KEY, for no mirror give --log.wandb off"
    )


def has_key(environ: Mapping[str, str]) -> bool:
    """Return whether the client would find a key; imports nothing and contacts no server."""
    given = {"WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"} & environ.keys()
    if given or _settings(environ).has_option("default", "api_key"):
        return True
    host = urlsplit(server(environ)).netloc
    try:
        known = netrc.netrc(Path(environ.get("NETRC") or "~/.netrc").expanduser()).hosts.keys()
    except (OSError, netrc.NetrcParseError):
        return False
    return bool(known & (PUBLIC_HOSTS if host in PUBLIC_HOSTS else {host}))


def server(environ: Mapping[str, str]) -> str:
    """Return the address of the server that the client would use."""
    configured = _settings(environ).get("default", "base_url", fallback="")
    return environ.get("WANDB_BASE_URL") or configured or "https://api.wandb.ai"


def _settings(environ: Mapping[str, str]) -> configparser.ConfigParser:
    folder = Path(environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    settings = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(OSError, configparser.Error):
        settings.read(folder / "settings")
    return settings


def about(
    config: Config,
    environment: Mapping[str, Any],
    *,
    world_size: int,
    precision: str,
    peak_lr: float | None,
) -> dict[str, Any]:
    """Return a run's group, job type, tags and config, as arguments for WandbMirror.

    Args:
        environment: content of environment.json.
        world_size, precision, peak_lr: of the resolved config; no peak if nothing is trained.
    """
    derived = {"world_size": world_size, "precision": precision, "peak_lr": peak_lr}
    return {
        "group": group(config, environment, world_size),
        "job_type": config.run.mode,
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
