"""A sweep as a table, as sweep.json, and the best setting as a YAML that training takes."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from harness import config as cfg
from harness.bench.sweep.arms import named_arms
from harness.bench.sweep.pairs import Base, Trial
from harness.bench.sweep.process import Arm
from harness.bench.sweep.sweep import Swept, in_words, largest_batch, sweep
from harness.bench.sweep.switches import candidates, changes_learning
from harness.config import Config, load
from harness.errors import BadInput
from harness.system.console import count, out, wide
from harness.system.files import write_atomic
from harness.system.process import process_age_s

_COUNTED = ("recompiles", "breaks", "buckets", "launches_per_step")
HEAD = ("", "of the base", "from", "to", "images/s", "starts x pairs", "recompiles", "breaks",
        "buckets", "CUDA graphs", "GiB")  # fmt: skip
MOST_FACTOR = 16
"""How many times the asked batch is tried."""


def run(
    base: Arm, named: Sequence[str], *, minutes: float, folder: Path, may_change_result: bool
) -> None:
    """Measure, print, write sweep.json and best.yaml into the folder.

    Args:
        named: arms as --arm takes them; without any, all switches that are known.

    Raises:
        BadInput: as a run's; an arm that is none; a folder that cannot be written.
        ArmFailed: the run as it was asked for cannot be measured.
    """
    config = load.load(base.all_words, prog="harness bench sweep")
    until = time.perf_counter() - process_age_s() + 60 * minutes
    with named_arms(base) as arms:
        read = [arms.read(text) for text in named]
        logs = folder / "logs"
        try:
            logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"--out: {folder}: {error.strerror}; name another folder") from None
        swept = sweep(
            base, (lambda _: read) if read else partial(_known, base, config), until=until,
            folder=logs, may_change_result=may_change_result,
        )  # fmt: skip
    show(swept, config, folder)


def _known(base: Arm, config: Config, running: Base) -> list[Arm]:
    """An arm for each switch; on a GPU also the largest batch that fits."""
    found = [
        replace(base, name=f"{key}={value}", flags={key: value})
        for key, values in candidates(config, base.ranks, running.facts).items()
        for value in values
    ]
    if running.facts["on_gpu"]:
        larger = largest_batch(running, partial(_larger, base, config), MOST_FACTOR)
        if larger is not None:
            found.append(larger)
    return found


def _larger(base: Arm, config: Config, factor: int) -> Arm:
    flags = {"train.global_batch": str(factor * config.train.global_batch)}
    if config.train.max_local_batch is not None:
        flags["train.max_local_batch"] = str(factor * config.train.max_local_batch)
    return replace(base, name=" ".join(f"{k}={v}" for k, v in flags.items()), flags=flags)


def show(swept: Swept, config: Config, folder: Path) -> None:
    """Print it, and write both files."""
    table = Table(*HEAD)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for trial in (*swept.trials, *swept.finals):
        if trial.failed is None:
            table.add_row(*_cells(trial), style="bold" if trial in swept.finals else None)
    wide.print(table)
    told = {
        "base": swept.base.words,
        "trials": [_as_json(each) for each in swept.trials],
        "finals": [_as_json(each) for each in swept.finals],
        "best": None if swept.best is None else _as_json(swept.best),
    }
    write_atomic(folder / "sweep.json", lambda part: part.write_text(json.dumps(told, indent=1)))
    text = best_yaml(swept, config)
    write_atomic(folder / "best.yaml", lambda part: part.write_text(text, encoding="utf-8"))
    for line in lines(swept):
        out.print(line)
    out.print(f"\n{folder / 'sweep.json'}: all of it; train with the best setting:")
    out.print(f"  torchrun --nproc-per-node {swept.base.ranks} launch/train.py {folder}/best.yaml")


def _cells(trial: Trial) -> list[str]:
    facts, (low, high) = trial.facts, trial.interval
    return [
        trial.arm.name + "*" * any(map(changes_learning, trial.arm.flags)),
        *(f"{ratio:.3f}" for ratio in (trial.ratio, low, high)),
        f"{trial.images_per_second:,.0f}", f"{len(trial.starts)} x {len(trial.starts[0])}",
        *(_cell(facts.get(key)) for key in _COUNTED), _cell(facts.get("memory_peak_gib"), ".1f"),
    ]  # fmt: skip


def _cell(value: float | None, form: str = "") -> str:
    return "-" if value is None else f"{value:{form}}"


def lines(swept: Swept) -> list[str]:
    """What came of it, in words."""
    trials = [*swept.trials, *swept.finals]
    told = [f"{each.arm.name}: {in_words(each)}" for each in trials if each.failed is not None]
    if any(changes_learning(key) for each in trials for key in each.arm.flags):
        told.append("*: may change the accuracy, not only the speed")
    apart = [each.arm.name for each in trials if not each.together]
    if apart:
        told.append(f"too large beside the base, so that each turn is a start: {', '.join(apart)}")
    held_back = [
        f"{each.arm.name} ({each.ratio:.2f})"
        for each in swept.trials
        if each.is_faster and any(map(changes_learning, each.arm.flags))
    ]
    if held_back and (swept.best is None or not any(map(changes_learning, swept.best.arm.flags))):
        told.append(
            f"faster, but may change the accuracy: {', '.join(held_back)}; "
            "--may-change-result lets such a switch be among the best"
        )
    if swept.best is None:
        return [*told, "best: nothing that was tried is faster beyond doubt; keep what you have"]
    flags = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in swept.best.arm.flags.items())
    return [*told, f"best: {flags}: {in_words(swept.best)}"]


def best_yaml(swept: Swept, config: Config) -> str:
    """Every setting of the best arm, with what it promises at its head."""
    best = swept.best
    flags = dict(best.arm.flags) if best is not None else {}
    found = load.load(best.arm.all_words) if best is not None else config
    sections = found.model_dump(mode="json")
    sections["run"]["name"] = None  # a run of its own, not one to go on with
    before = cfg.flat(config)
    head = [
        f"harness bench sweep, {datetime.now(UTC):%Y-%m-%d}, {socket.gethostname()}, "
        f"{count(swept.base.ranks, 'rank')}",
    ]
    if best is None:
        head.append("nothing that was tried is faster beyond doubt: all is as it was asked for")
    else:
        low, high = best.interval
        head.append(
            f"promises {best.ratio:.3f} times the images/s of what was asked for "
            f"(95 %: {low:.3f} to {high:.3f}; {count(len(best.starts), 'start')}, "
            f"{len(best.pairs)} pairs of turns)"
        )
        head += [f"{key}: {value}, was {load.as_text(before[key])}" for key, value in flags.items()]
    if any(map(changes_learning, flags)):
        head.append("these may change the accuracy, so that it must be looked at anew")
    return "".join(f"# {line}\n" for line in head) + yaml.safe_dump(sections, sort_keys=False)


def _as_json(trial: Trial) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": trial.arm.name, "flags": dict(trial.arm.flags), "python": str(trial.arm.python),
        "code": str(trial.arm.code), "failed": trial.failed, "together": trial.together,
        "starts": trial.starts, "facts": trial.facts,
    }  # fmt: skip
    if trial.failed is None:
        told |= {"ratio": trial.ratio, "interval": trial.interval}
    return told
