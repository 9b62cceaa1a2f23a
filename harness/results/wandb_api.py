"""Runs out of W&B, through its public client."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from harness.console import track
from harness.errors import BadInput
from harness.record import wandb_account
from harness.results import wandb_rows
from harness.results.measured import Measured

if TYPE_CHECKING:
    import wandb

WANDB = "wandb:"
FORM = "wandb:ENTITY/PROJECT/RUN_ID or 'wandb:ENTITY/PROJECT?group=G&tag=T'"
FILTERS = {
    "group": "group", "tag": "tags", "name": "display_name", "job_type": "jobType",
    "state": "state",
}  # fmt: skip
"""What may stand behind the `?` -> W&B's name for it."""
TIMEOUT_S = 20


def runs_at(address: str) -> list[Measured]:
    """The finished runs at an address.

    Raises:
        BadInput: not such an address, no such run, no key, or W&B does not answer.
    """
    path, _, query = address.removeprefix(WANDB).partition("?")
    parts = [part for part in path.split("/") if part]
    if len(parts) != (2 if query else 3):
        raise BadInput(f"{address}: write {FORM}")
    filters = _filters(address, query)
    if not wandb_account.has_key(os.environ):
        raise BadInput(f"{address}: no W&B key found; run `wandb login` or set WANDB_API_KEY")
    with _client(address) as api:
        if not query:
            return [_read(address, api.run("/".join(parts)))]
        found = list(api.runs("/".join(parts), filters=filters, order="+created_at"))
        if not found:
            raise BadInput(f"{address}: W&B has no such run")
        base = f"{WANDB}{'/'.join(parts)}"
        tracked = track(found, total=len(found), what="reading from W&B")
        return [_read(f"{base}/{run.id}", run) for run in tracked]


def _filters(address: str, query: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in FILTERS or not value:
            raise BadInput(f"{address}: {name}: give one of {', '.join(FILTERS)}, with a value")
        if name == "tag":
            found.setdefault("tags", {"$all": []})["$all"].append(value)
        else:
            found[FILTERS[name]] = value
    return found


def _read(address: str, run: Any) -> Measured:
    if run.state == "running":
        raise BadInput(f"{address}: is running: compare it when it has finished")
    # All rows: W&B's `history` would take a sample.
    return wandb_rows.measured(address, run.name, run.config, run.summary, run.scan_history())


@contextmanager
def _client(address: str) -> Iterator[wandb.Api]:
    """The client; what goes wrong with it is one line."""
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb
    from wandb.errors import CommError, Error

    try:
        yield wandb.Api(timeout=TIMEOUT_S)
    except BadInput:
        raise
    except (CommError, Error, ValueError, OSError) as error:
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadInput(f"{address}: W&B at {wandb_account.server(os.environ)}: {words}") from None
    finally:
        wandb.teardown()
