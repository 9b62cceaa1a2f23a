"""Runs out of W&B, through its public client."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from harness.errors import BadInput
from harness.logging import wandb_run
from harness.logging.wandb import kill_client, teardown
from harness.results.measured import Measured
from harness.results.wandb import ADDRESS, rows
from harness.system.console import track

if TYPE_CHECKING:
    import wandb

FORM = "wandb:ENTITY/PROJECT/RUN_ID or 'wandb:ENTITY/PROJECT?group=G&tag=T'"
FILTERS = {
    "group": "group", "tag": "tags", "name": "display_name", "job_type": "jobType",
    "state": "state",
}  # fmt: skip
"""What may stand behind the `?` -> W&B's name for it."""
TIMEOUT_S = 20
END_S = 3.0


def runs_at(address: str) -> list[Measured]:
    """The finished runs at an address.

    Raises:
        BadInput: not such an address, no such run, no key, or W&B does not answer.
    """
    path, _, query = address.removeprefix(ADDRESS).partition("?")
    parts = [part for part in path.split("/") if part]
    if len(parts) != (2 if query else 3):
        raise BadInput(f"{address}: write {FORM}")
    filters = _filters(address, query)
    with client(address) as api:
        place = "/".join(parts)
        if not query:
            run = run_at(api, place)
            found = [] if run is None else [run]
        else:
            found = list(api.runs(place, filters=filters, order="+created_at"))
        if not found:
            raise BadInput(f"{address}: W&B has no such run")
        base = "/".join(parts[:2])
        tracked = track(found, total=len(found), what="reading from W&B")
        return [_read(f"{ADDRESS}{base}/{run.id}", run) for run in tracked]


def _filters(address: str, query: str) -> dict[str, Any]:
    """What the address asks for, in the filter language of W&B's server."""
    found = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in FILTERS or not value:
            raise BadInput(f"{address}: {name}: give one of {', '.join(FILTERS)}, with a value")
        found.append({FILTERS[name]: {"$in": [value]} if name == "tag" else value})
    return {"$and": found}


def _read(address: str, run: Any) -> Measured:
    if run.state == "running":
        raise BadInput(f"{address}: is running: compare it when it has finished")
    return rows.measured(address, run.name, run.config, run.summary, history(run))


@contextmanager
def client(what: str) -> Iterator[wandb.Api]:
    """The public client, which has seen that the key is good; what goes wrong is one line.

    Args:
        what: is asked for; the line begins with it.

    Raises:
        BadInput: no key, or W&B does not take it, does not answer, or refuses.
    """
    if not wandb_run.has_key(os.environ):
        raise BadInput(f"{what}: no W&B key found; run `wandb login` or set WANDB_API_KEY")
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    import wandb

    try:
        wandb.setup(wandb.Settings(silent=True))
        yield wandb.Api(timeout=TIMEOUT_S)
    except BadInput:
        raise
    except Exception as error:  # whatever the client raises, of its own kinds and of others
        server = wandb_run.server(os.environ)
        raise BadInput(f"{what}: W&B at {server}: {_why(error)}") from None
    finally:
        _end()


def _end() -> None:
    """End the client; after a while by force, as its process may wait for a server that hangs."""
    force = threading.Timer(END_S, kill_client)
    force.daemon = True
    force.start()
    teardown()
    force.cancel()


def entity_of(api: wandb.Api, asked: str | None) -> str:
    """The user or team that is meant, as the client finds it when a run starts."""
    return str(asked or api.settings["entity"] or api.default_entity)


def run_at(api: wandb.Api, place: str) -> Any | None:
    """The run at ENTITY/PROJECT/RUN_ID; none if W&B has no such run, or no such project."""
    try:
        return api.run(place)
    except Exception as error:  # its kind differs from version to version
        if "Could not find run" in str(error):
            return None
        raise


def history(run: Any) -> Iterator[dict[str, Any]]:
    """All rows of a run: W&B's `history` would take a sample.

    Raises:
        TimeoutError: W&B falls silent.
    """
    with _ended_when_silent() as heard:
        for row in run.scan_history():
            heard()
            yield row


@contextmanager
def _ended_when_silent() -> Iterator[Callable[[], None]]:
    """The client waits for rows without a limit: end it where none comes for long.

    Yields:
        What to call when a row has come.
    """
    last, over, silent = [time.monotonic()], threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(max(0.0, left_s := last[0] + TIMEOUT_S - time.monotonic())):
            if left_s <= 0:
                silent.set()
                kill_client()
                return

    def heard() -> None:
        last[0] = time.monotonic()

    threading.Thread(target=watch, name="wandb-watch", daemon=True).start()
    try:
        yield heard
    except Exception:
        if silent.is_set():
            raise TimeoutError(f"no row came within {TIMEOUT_S} s") from None
        raise
    finally:
        over.set()


def _why(error: Exception) -> str:
    """What the client says, in a line; what it says of a key or of silence is put plainly."""
    words = " ".join(str(error).split())
    if "error 401" in words or "error 403" in words:
        return "does not accept the key; run `wandb login` or set WANDB_API_KEY"
    if "did not respond in time" in words:
        return f"does not answer within {TIMEOUT_S} s"
    return words[:200] or type(error).__name__
