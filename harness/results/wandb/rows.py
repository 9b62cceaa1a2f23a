"""From what W&B holds of a run back to the form in which runs are compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from harness.config import Config
from harness.errors import BadInput
from harness.logging.schema import RESULT_PREFIX, ROW_KEYS, Result
from harness.results.measured import NEEDED, TRAIN_COLUMNS, VAL_COLUMNS, Measured, columns

FIELDS = {key: field for field, key in ROW_KEYS.items()}


def measured(
    address: str,
    name: str,
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    history: Iterable[Mapping[str, Any]],
) -> Measured:
    """A run as W&B tells it: config, summary and history under its keys.

    Raises:
        BadInput: it lacks what a comparison needs, naming the key.
    """
    result = _result(summary)
    if lacking := [name for name in NEEDED if name not in result]:
        raise BadInput(
            f"{address}: lacks {RESULT_PREFIX}{lacking[0]}: it has not finished, or was not "
            "written by this harness; send it from its folder: "
            "harness publish RUN_FOLDER --to wandb"
        )
    try:
        asked = Config.model_validate({k: config[k] for k in Config.model_fields if k in config})
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise BadInput(f"{address}: its config is of another version: {where}") from None
    history_rows = list(history)
    rows = [
        {FIELDS[key]: value for key, value in row.items() if key in FIELDS} for row in history_rows
    ]
    if history_rows and history_rows[0].get("_step", 0) > 0:
        # So looks what the client keeps on disk of a run that it went on with online.
        raise BadInput(f"{address}: lacks the rows of earlier attempts; read them from W&B itself")
    if result.get("steps", 0) > (last := max((row.get("step", 0) for row in rows), default=0)):
        raise BadInput(
            f"{address}: has rows up to step {last:,} of {result['steps']:,} only; complete it "
            "from its folder: harness publish RUN_FOLDER --to wandb"
        )
    train = columns((row for row in rows if "images_per_second" in row), TRAIN_COLUMNS)
    val = columns((row for row in rows if "val_top1_pct" in row), VAL_COLUMNS)
    return Measured(address, name, asked, _environment(config), result, train, val)


def _environment(config: Mapping[str, Any]) -> dict[str, Any]:
    """What environment.json said; its one float is one again, of which W&B drops a `.0`."""
    environment = config.get("environment")
    if not isinstance(environment, Mapping):
        return {}
    device = environment.get("device")
    if isinstance(device, Mapping) and device.get("memory_gib") is not None:
        environment = dict(environment) | {
            "device": dict(device) | {"memory_gib": float(device["memory_gib"])}
        }
    return dict(environment)


def _result(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Result: those that are scalars, and the lists that were made scalars of."""
    found = {
        key.removeprefix(RESULT_PREFIX): value
        for key, value in summary.items()
        if key.startswith(RESULT_PREFIX) and value is not None
    }
    accounts = {
        name.removeprefix("account_").removesuffix("_s"): value
        for name, value in found.items()
        if name.startswith("account_")
    }
    target = {
        name.removeprefix("target_"): value
        for name, value in found.items()
        if name.startswith("target_")
    }
    known = {name: value for name, value in found.items() if name in Result.model_fields}
    return known | {"accounts_s": accounts, "target": target or None}
