"""Runs out of W&B, through its public client."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from harness.errors import BadInput, one_line
from harness.logging import wandb_run
from harness.logging.wandb import kill_client, teardown, tidy_environment
from harness.results.measured import Measured
from harness.results.wandb import rows
from harness.system.progress import track

if TYPE_CHECKING:
    import wandb

ADDRESS = "wandb:"
FORM = "wandb:ENTITY/PROJECT/RUN_ID or 'wandb:ENTITY/PROJECT?group=G&tag=T'"
FILTERS = {
    "group": "group", "tag": "tags", "name": "display_name", "job_type": "jobType",
    "state": "state",
}  # fmt: skip
"""Keys of the part after `?` -> W&B's names for them."""
TIMEOUT_S = 20


def runs_at(address: str) -> list[Measured]:
    """Return the finished runs at an address.

    Raises:
        BadInput: not such an address, no such run, no key, or W&B does not answer.
    """
    path, _, query = address.removeprefix(ADDRESS).partition("?")
    parts = [part for part in path.split("/") if part]
    if len(parts) != (2 if query else 3):
        raise BadInput(f"{address}: write {FORM}")
    filters: list[dict[str, Any]] = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in FILTERS or not value:
            raise BadInput(f"{address}: {name}: give one of {', '.join(FILTERS)}, with a value")
        filters.append({FILTERS[name]: {"$in": [value]} if name == "tag" else value})
    found = []
    with client(address) as api:
        place = "/".join(parts)
        if query:
            runs = list(api.runs(place, filters={"$and": filters}, order="+created_at"))
        else:
            runs = [run] if (run := run_at(api, place)) else []
        if not runs:
            raise BadInput(f"{address}: W&B has no such run")
        for run in track(runs, total=len(runs), what="reading from W&B"):
            own = f"{ADDRESS}{parts[0]}/{parts[1]}/{run.id}"
            if run.state == "running":
                raise BadInput(f"{own}: is running: compare it when it has finished")
            found.append(rows.measured(own, run.name, run.config, run.summary, history(run)))
    return found


@contextmanager
def client(what: str) -> Iterator["wandb.Api"]:
    """Yield the public client, once it has checked the key; its errors become a line on `what`.

    Raises:
        BadInput: no key, or W&B does not take it, does not answer, or refuses.
    """
    if not wandb_run.has_key(os.environ):
        raise BadInput(f"{what}: no W&B key found; run `wandb login` or set WANDB_API_KEY")
    tidy_environment()
    import wandb

    try:
        wandb.setup(wandb.Settings(silent=True))
        yield wandb.Api(timeout=TIMEOUT_S)
    except BadInput:
        raise
    except Exception as error:  # whatever the client raises, of its own kinds and of others
        raise BadInput(f"{what}: W&B at {wandb_run.server(os.environ)}: {_why(error)}") from None
    finally:
        # After a while by force, as the client's process may wait for a server that hangs.
        force = threading.Timer(3.0, kill_client)
        force.daemon = True
        force.start()
        teardown()
        force.cancel()


def entity_of(api: "wandb.Api", given: str | None) -> str:
    """Return the given user or team, or by default that which the client uses for a run."""
    return str(given or api.settings["entity"] or api.default_entity)


def run_at(api: "wandb.Api", place: str) -> Any | None:
    """Return the run at ENTITY/PROJECT/RUN_ID; None if W&B has no such run or project."""
    try:
        return api.run(place)
    except Exception as error:  # its kind differs from version to version
        if "Could not find run" in str(error):
            return None
        raise


def history(run: Any) -> Iterator[dict[str, Any]]:
    """Yield all rows of a run; W&B's `history` would take a sample.

    Raises:
        TimeoutError: W&B falls silent; its client would wait for a row without a limit.
    """
    rows = iter(run.scan_history())
    with ThreadPoolExecutor(1, "wandb-rows") as reader:
        while True:
            try:
                row = reader.submit(next, rows, None).result(TIMEOUT_S)
            except TimeoutError:
                kill_client()  # which ends the reader too
                raise TimeoutError(f"no row came within {TIMEOUT_S} s") from None
            if row is None:
                return
            yield row


def _why(error: Exception) -> str:
    message = one_line(error)
    if "error 401" in message or "error 403" in message:
        return "does not accept the key; run `wandb login` or set WANDB_API_KEY"
    if "did not respond in time" in message:
        return f"does not answer within {TIMEOUT_S} s"
    return message[:200] or type(error).__name__
