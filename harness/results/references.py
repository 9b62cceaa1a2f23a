"""Published results with their protocols and sources, read from references.yaml."""

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.config import ModelName
from harness.errors import BadInput, one_line
from harness.system.console import count

REFERENCES = Path(__file__).with_name("references.yaml")

ACCURACIES = ("top1", "top5")
DATASETS = {"imagenet": (1000, 50_000), "cifar10": (10, 10_000), "cifar100": (100, 10_000)}
"""Number of classes and of validation images."""


class Reference(BaseModel):
    """A published number, and what is needed to compare runs with it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, strict=True, str_min_length=1
    )

    id: str = Field(pattern=r"^[a-z0-9]+([.-][a-z0-9]+)*$", description="Safe in a URL.")
    model: ModelName
    variant: str | None = Field(None, description="How it differs from ours.")
    dataset: Literal["imagenet", "cifar10", "cifar100"]
    protocol: str | None = Field(None, description="Crop, size and averaging; or what was timed.")
    metric: Literal["top1", "top5", "images_per_second", "minutes_to_train", "epochs_to_target",
                    "scaling_efficiency_pct"]  # fmt: skip
    value: float = Field(gt=0, description="Accuracies in percent; of all GPUs together.")
    statistic: Literal["last", "median_last5"] = "last"  # which accuracy of a run
    std: float | None = Field(None, ge=0, description="Standard deviation over n runs.")
    n: int | None = Field(None, ge=1, description="Number of runs; null: not published.")
    gpus: int | None = Field(None, ge=1)
    gpu: str | None = None
    precision: Literal["fp32", "tf32", "fp16", "mixed"] | None = None
    global_batch: int | None = Field(None, ge=1, description="Images per step.")
    epochs: float | None = Field(None, gt=0)
    target_top1_pct: float | None = Field(None, gt=0, lt=100, description="What ended the run.")
    recipe: str | None = None
    note: str | None = None
    source: str = Field(min_length=8, description="Publication and place in it.")
    evidence: Literal["primary", "copy", "derived"]  # read in the source, in a copy, or derived

    @model_validator(mode="after")
    def _check(self) -> Self:
        kind, target = self.metric, self.target_top1_pct
        rules = [
            (kind in ACCURACIES and self.value > 100, "an accuracy is at most 100 %"),
            (kind in ACCURACIES and not self.protocol, "an accuracy needs its protocol"),
            (self.std is not None and self.n == 1, "one run has no std"),
            (kind == "images_per_second" and not self.gpus, "a throughput needs its gpus"),
            (kind == "epochs_to_target" and not target, "epochs to a target need target_top1_pct"),
            (
                kind == "minutes_to_train" and not (self.epochs or target),
                "a time to train needs epochs or target_top1_pct",
            ),
        ]
        for broken, message in rules:
            if broken:
                raise ValueError(message)
        return self


def load_references(path: Path = REFERENCES) -> dict[str, Reference]:
    """Return all references of a file in their order, by id.

    Raises:
        BadInput: the file cannot be read or a row is invalid; names the row and the mistake.
    """
    try:
        groups = yaml.safe_load(path.read_text(encoding="utf-8"))
        rows = [shared | row for shared in groups for row in shared.pop("rows")]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{path}: {one_line(error)}") from None
    except (TypeError, KeyError, AttributeError):
        raise BadInput(f"{path}: must be a list of sources, each with its `rows`") from None
    references: dict[str, Reference] = {}
    for row in rows:
        try:
            reference = Reference.model_validate(row)
        except ValidationError as error:
            mistake = error.errors()[0]
            where = ".".join(["", *map(str, mistake["loc"])])
            raise BadInput(f"{path}: {row.get('id')}{where}: {mistake['msg']}") from None
        if reference.id in references:
            raise BadInput(f"{path}: {reference.id}: this id is given twice")
        references[reference.id] = reference
    return references


def line(row: Reference) -> str:
    """Return a reference in one line: `76.40 +- 0.12 % top1, 5 runs, centre crop 224 px of 256`."""
    spread = "" if row.std is None else f" +- {row.std:g}"
    unit = "% " if row.metric in ACCURACIES else ""
    runs = f", {count(row.n, 'run')}" if row.n else ""
    protocol = f", {row.protocol}" if row.protocol else ""
    return f"{row.value:g}{spread} {unit}{row.metric}{runs}{protocol}"


def pick(
    references: Mapping[str, Reference], *, model: str | None, metric: str | None
) -> list[Reference]:
    """Return the references for a model and of a metric; None stands for any.

    Raises:
        BadInput: no such model or metric, with the nearest name; or no reference matches both.
    """
    rows = references.values()
    if model is not None:
        _check_known(model, [row.model for row in rows], "--model: no reference for")
    if metric is not None:
        _check_known(metric, [row.metric for row in rows], "--metric: no reference gives")
    picked = [row for row in rows if model in (None, row.model) and metric in (None, row.metric)]
    if not picked:
        has = dict.fromkeys(row.metric for row in rows if row.model == model)
        raise BadInput(f"--metric: no reference for {model} gives {metric}, only {', '.join(has)}")
    return picked


def find(
    references: Mapping[str, Reference], name: str, what: str = "show references: no reference"
) -> Reference:
    """Return the reference with this id; else raise BadInput with `what` and the nearest id."""
    _check_known(name, references, what)
    return references[name]


def _check_known(name: str, known: Collection[str], what: str) -> None:
    if name not in known:
        names = list(dict.fromkeys(known))
        near = [each for each in names if each.startswith(name)]
        near += difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names[:12])}"
        raise BadInput(f"{what} {name}; {hint}")
