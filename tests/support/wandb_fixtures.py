"""Fixtures of the W&B tests, as a pytest plugin: no account, and a stand-in server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from wandb_standin import StandIn


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, no setting and no file of the user's; all writing below tmp_path."""
    for name in [name for name in os.environ if name.startswith("WANDB") or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        (tmp_path / "client" / name).mkdir(parents=True)
        monkeypatch.setenv(name, str(tmp_path / "client" / name))
    monkeypatch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "1")
    # Set, so that it is restored: the mirror turns it off, whatever it was.
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "true")


@pytest.fixture
def server(no_account: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with StandIn() as server:
        for name, value in server.environ().items():
            monkeypatch.setenv(name, value)
        yield server
