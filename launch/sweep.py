"""One command line into the runs that it asks for: over seeds, over values, or just itself."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_origin

from harness.config import Config, fields, load
from harness.errors import BadInput


@dataclass(frozen=True)
class Plan:
    """All runs of one submission.

    Attributes:
        stem: what they have in common: the config's name.
        name: of the submission and its folder.
    """

    stem: str
    name: str
    runs: list[Config]

    @property
    def folder(self) -> Path:
        """Where what was submitted and the logs lie, beside the run folders."""
        # No run is named with a `_` in front.
        return Path(self.runs[0].run.root) / "_submitted" / self.name

    @property
    def run_folders(self) -> list[Path]:
        """Where each run will work."""
        return [Path(config.run.root) / str(config.run.name) for config in self.runs]

    @property
    def config_files(self) -> list[Path]:
        """Each run's config as it was checked."""
        return [self.folder.absolute() / f"config_{index}.yaml" for index in range(len(self.runs))]


def plan(words: Sequence[str], sweeps: Sequence[str], seeds: int, stamp: str) -> Plan:
    """Every run, checked.

    Args:
        words: as launch/train.py takes them.
        sweeps: `section.key=VALUE,VALUE`; several make all combinations.
        seeds: how many, from the seed of `words` on.
        stamp: the time, which keeps names apart.

    Raises:
        BadInput: a setting of any of the runs cannot be used.
    """
    base = load.load(words, prog=PROG, label=stamp)
    axes = [_axis(text) for text in sweeps]
    if seeds > 1:
        first = base.run.seed
        axes.append([("run.seed", str(seed)) for seed in range(first, first + seeds)])
    _check_axes(axes)
    runs = [_run(words, point, stamp) for point in itertools.product(*axes)]
    if len({config.run.name for config in runs}) < len(runs):  # a name was given: it is of all
        runs = [
            _named(config, f"{config.run.name}-{_label(point, seed=True)}")
            for config, point in zip(runs, itertools.product(*axes), strict=True)
        ]
    if len({config.run.name for config in runs}) < len(runs):
        raise BadInput("--sweep: gives the same run twice; give every value once")
    stem = Path(words[0]).stem if words and not words[0].startswith("-") else "quickstart"
    name = str(runs[0].run.name) if len(runs) == 1 else stem
    return Plan(stem, name if name.endswith(stamp) else f"{name}-{stamp}", runs)


PROG = "python launch/submit.py"

Axis = list[tuple[str, str]]
"""The values of one setting: (section.key, value)."""


def _axis(text: str) -> Axis:
    """`section.key=VALUE,VALUE`; the values of a setting that is a list are parted by `;`."""
    key, equals, values = text.partition("=")
    key = key.removeprefix("--").replace("-", "_")
    known = dict(fields())
    if not equals or not values:
        raise BadInput(f"--sweep {text}: write it as section.key=VALUE,VALUE")
    if key in known and get_origin(known[key].annotation) is tuple and ";" not in values:
        raise BadInput(f"--sweep {key}: is a list; part its values with ;, as in '30,60;40,80'")
    return [(key, value) for value in values.split(";" if ";" in values else ",")]


def _check_axes(axes: Sequence[Axis]) -> None:
    keys = [axis[0][0] for axis in axes]
    for key in keys:
        if keys.count(key) > 1:
            raise BadInput(f"--sweep {key}: is varied twice (--seeds varies run.seed)")
        if key in ("run.name", "run.root"):
            raise BadInput(f"--sweep {key}: runs are named by what is varied; vary a setting")


def _run(words: Sequence[str], point: Sequence[tuple[str, str]], stamp: str) -> Config:
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in point]
    label = "-".join([*filter(None, [_label(point)]), stamp])
    return load.load([*words, *flags], prog=PROG, label=label)


def _label(point: Sequence[tuple[str, str]], *, seed: bool = False) -> str:
    """The varied values in a form that a folder's name can have; the seed has its own place."""
    return "-".join(_parts(point, seed))


def _parts(point: Sequence[tuple[str, str]], seed: bool) -> Iterator[str]:
    for key, value in point:
        if key == "run.seed":
            if seed:
                yield f"s{value}"
        else:
            yield re.sub(r"[^A-Za-z0-9._-]+", "-", f"{key.split('.')[1]}-{value}")


def _named(config: Config, name: str) -> Config:
    return config.model_copy(update={"run": config.run.model_copy(update={"name": name})})
