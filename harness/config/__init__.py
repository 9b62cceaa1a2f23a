"""The config: frozen sections, each setting with its unit, limits and meaning.

Defaults, then a YAML file, then `--section.key value` flags (load.py); all three are validated
together by these models. Nothing here imports torch: a login node rejects a typo in well under a
second.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

# `X as X`: offered here too (PEP 484).
from harness.config.sections import Changes as Changes
from harness.config.sections import Checkpoint as Checkpoint
from harness.config.sections import Data as Data
from harness.config.sections import Engine as Engine
from harness.config.sections import Eval as Eval
from harness.config.sections import Log as Log
from harness.config.sections import Model as Model
from harness.config.sections import ModelName as ModelName
from harness.config.sections import Optim as Optim
from harness.config.sections import Profile as Profile
from harness.config.sections import Run as Run
from harness.config.sections import Schedule as Schedule
from harness.config.sections import Section as Section
from harness.config.sections import Train as Train

STREAM_VERSION = 1  # raised when the same seed would give other orders or crops


class Config(BaseModel):
    """All settings of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Run = Run()
    model: Model = Model()
    data: Data = Data()
    train: Train = Train()
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    eval: Eval = Eval()
    engine: Engine = Engine()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    profile: Profile = Profile()


def flat(config: Config) -> dict[str, Any]:
    """Return the config as one flat dict of plain values, `section.key` -> value."""
    sections = config.model_dump(mode="json").items()
    return {f"{name}.{key}": value for name, keys in sections for key, value in keys.items()}


def fields() -> Iterator[tuple[str, FieldInfo]]:
    """Yield every `section.key` with its field: type, default, meaning, limits."""
    for name, section in Config.model_fields.items():
        assert isinstance(section.annotation, type)
        assert issubclass(section.annotation, Section)
        for key, field in section.annotation.model_fields.items():
            yield f"{name}.{key}", field


def settings() -> Iterator[tuple[str, Changes]]:
    """Yield every `section.key` with what it may change."""
    for key, field in fields():
        assert isinstance(field.json_schema_extra, dict), f"{key} was not made with setting()"
        yield key, field.json_schema_extra["changes"]  # type: ignore[misc]


def _added(field: FieldInfo) -> bool:
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra["added"])


def changing(config: Config, of: Literal["result", "speed"]) -> list[str]:
    """Return the `section.key` of the settings that may change this run's result, or its speed."""
    keys = [key for key, changes in settings() if of in changes]
    if of == "result":
        # When the run looks at its own history is part of what it does.
        schedule = config.schedule
        if schedule.decay == "plateau" or schedule.stop_at_top1_pct is not None:
            keys.append("eval.every_epochs")
        if schedule.warmup_until_top1_pct is not None:
            keys.append("log.every_steps")
    return keys


def fingerprint(config: Config, of: Literal["result", "speed"]) -> str:
    """Return a hash of all settings that may change the result, or the speed: 12 hex digits."""
    values = flat(config)
    at_default = {key for key, field in fields() if _added(field) and values[key] == field.default}
    chosen = {key: values[key] for key in changing(config, of) if key not in at_default}
    chosen |= {"stream_version": STREAM_VERSION} if of == "result" else {}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]


def recorded(config: Config) -> Config:
    """Return the config as a run's record has it: without what is about the command alone."""
    run = config.run.model_copy(update={"restart": False, "dry_run": False})
    return config.model_copy(update={"run": run})


def differing(a: Config, b: Config, of: Literal["result", "speed"]) -> list[str]:
    """Return `section.key (a, b)` of all settings that may change `of` and are not the same."""
    left, right = flat(a), flat(b)
    keys = dict.fromkeys(changing(a, of) + changing(b, of))
    return [
        f"{key} ({left[key]} there, {right[key]} here)" for key in keys if left[key] != right[key]
    ]
