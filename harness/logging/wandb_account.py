"""The user's W&B account, looked up where the client looks: which mode, whether there is a key.

Imports no client, and asks nobody.
"""

from __future__ import annotations

import configparser
import contextlib
import netrc
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

Mode = Literal["online", "offline", "off"]

WANDB_MODES: dict[str, Mode] = {"online": "online", "offline": "offline", "disabled": "off"}
PUBLIC_SERVER = "https://api.wandb.ai"
PUBLIC_HOSTS = frozenset({"api.wandb.ai", "api.forge.coreweave.com", "forge.coreweave.com"})


def choose_mode(
    asked: Literal["auto", "online", "offline", "off"], environ: Mapping[str, str]
) -> tuple[Mode, str | None]:
    """The mode to run in, and one line that says why where a user might wonder."""
    if asked != "auto":
        return asked, None
    if named := WANDB_MODES.get(environ.get("WANDB_MODE", "")):
        return named, None
    if has_key(environ):
        return "online", None
    return "offline", (
        "no key found, so rows are mirrored offline; to go online run `wandb login` or set "
        "WANDB_API_KEY, for no mirror give --log.wandb off"
    )


def has_key(environ: Mapping[str, str]) -> bool:
    """Whether the client would find a key in one of its places; imports and asks nothing."""
    if {"WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"} & environ.keys():
        return True
    if _settings(environ).has_option("default", "api_key"):
        return True
    host = urlsplit(server(environ)).netloc
    try:
        known = netrc.netrc(Path(environ.get("NETRC") or "~/.netrc").expanduser()).hosts.keys()
    except (OSError, netrc.NetrcParseError):
        return False
    return bool(known & (PUBLIC_HOSTS if host in PUBLIC_HOSTS else {host}))


def server(environ: Mapping[str, str]) -> str:
    """Address of the server that the client would talk to."""
    configured = _settings(environ).get("default", "base_url", fallback="")
    return environ.get("WANDB_BASE_URL") or configured or PUBLIC_SERVER


def _settings(environ: Mapping[str, str]) -> configparser.ConfigParser:
    """The client's own settings, of this user."""
    folder = Path(environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    settings = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(OSError, configparser.Error):
        settings.read(folder / "settings")
    return settings
