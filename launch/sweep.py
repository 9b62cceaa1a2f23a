"""Expand a command line into its runs: one, or one for each seed and each value of a sweep."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_origin

from harness.config import Config, fields, load
from harness.errors import BadInput

PROG = "python launch/submit.py"


@dataclass(frozen=True)
class Plan:
    """All runs of one submission, each as its checked config."""

    stem: str  # of the config's file, which all runs share
    name: str  # of this submission and its folder
    runs: list[Config]

    @property
    def folder(self) -> Path:
        """The folder of the submitted configs and logs, next to the run folders."""
        # Names of runs cannot begin with `_`.
        return Path(self.runs[0].run.root) / "_submitted" / self.name

    @property
    def config_files(self) -> list[Path]:
        """The file for the checked config of each run."""
        return [self.folder.absolute() / f"config_{index}.yaml" for index in range(len(self.runs))]


def plan(argv: Sequence[str], sweeps: Sequence[str], seeds: int, stamp: str) -> Plan:
    """Return all runs of a submission, each checked.

    Args:
        sweeps: `section.key=VALUE,VALUE`; several give all combinations.
        seeds: number of seeds, beginning with the run's own.
        stamp: the time, which names the submission; runs are named as launch/train.py names them,
            so that the same command goes on in their folders.

    Raises:
        BadInput: a setting of any of the runs cannot be used.
    """
    base = load.load(argv, prog=PROG)
    axes = [_axis(text) for text in sweeps]
    if seeds > 1:
        first = base.run.seed
        axes.append([("run.seed", str(seed)) for seed in range(first, first + seeds)])
    keys = [axis[0][0] for axis in axes]
    if repeated := [key for key in keys if keys.count(key) > 1]:
        raise BadInput(f"--sweep {repeated[0]}: is varied twice (--seeds varies run.seed)")
    points = [*itertools.product(*axes)]
    runs = [_run(argv, point) for point in points]
    if len({config.run.name for config in runs}) < len(runs):  # run.name was given: make it unique
        names = [f"{base.run.name}-{_label(point, seed=True)}" for point in points]
        if len(set(names)) < len(names):
            raise BadInput("--sweep: gives the same run twice; give every value once")
        runs = [_run([*argv, f"--run.name={name}"], point)
                for name, point in zip(names, points, strict=True)]  # fmt: skip
    stem = Path(argv[0]).stem if argv and not argv[0].startswith("-") else "quickstart"
    name = str(runs[0].run.name) if len(runs) == 1 else stem
    return Plan(stem, f"{name}-{stamp}", runs)


def _axis(text: str) -> list[tuple[str, str]]:
    """Parse `section.key=VALUE,VALUE` into pairs; `;` separates values that are lists."""
    key, equals, values = text.partition("=")
    key = key.removeprefix("--").replace("-", "_")
    field = dict(fields()).get(key)
    if not equals or not values:
        raise BadInput(f"--sweep {text}: write it as section.key=VALUE,VALUE")
    if field and get_origin(field.annotation) is tuple and ";" not in values:
        raise BadInput(f"--sweep {key}: is a list; separate its values with ;, as in '30,60;40,80'")
    if key in ("run.name", "run.root"):
        raise BadInput(
            f"--sweep {key}: runs are named by the varied settings; vary another setting"
        )
    return [(key, value) for value in values.split(";" if ";" in values else ",")]


def _run(argv: Sequence[str], point: Sequence[tuple[str, str]]) -> Config:
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in point]
    return load.load([*argv, *flags], prog=PROG, label=_label(point))


def _label(point: Sequence[tuple[str, str]], *, seed: bool = False) -> str:
    """Return the varied values as part of a folder's name; run names have the seed already."""
    parts = [
        f"s{value}" if key == "run.seed" else f"{key.split('.')[1]}-{value}"
        for key, value in point
        if seed or key != "run.seed"
    ]
    return "-".join(re.sub(r"[^A-Za-z0-9._-]+", "-", part) for part in parts)
