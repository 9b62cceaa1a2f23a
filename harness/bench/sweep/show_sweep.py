"""Print a sweep as a table, and write sweep.json and the best settings as a config, best.yaml."""

import json
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from harness import config as cfg
from harness.bench.output import make_folder
from harness.bench.sweep.pairs import Base, Trial
from harness.bench.sweep.sweep import Swept, largest_batch, result_line, sweep
from harness.bench.sweep.switches import candidates, changes_learning
from harness.bench.sweep.variant import Variant, read_variant
from harness.bench.turns import TIME_OVER, end_of
from harness.config import Config, load
from harness.system.console import count, out, right_table, wide
from harness.system.files import write_text

HEAD = ("", "of the base", "from", "to", "images/s", "starts x pairs", "recompiles", "breaks",
        "buckets", "CUDA graphs", "GiB")  # fmt: skip
MOST_FACTOR = 16
"""The largest batch to try, as a multiple of the config's."""
SEARCH = 0.2
"""Share of the time that the search for it may take."""


def run(
    base: Variant, named: Sequence[str], *, minutes: float, folder: Path, may_change_result: bool
) -> None:
    """Measure, print, and write sweep.json and best.yaml into a folder.

    The variants are `named` in the form of --arm; without any, all known switches are tried. One is
    measured in any case.

    Raises:
        BadInput: the config cannot be run here, a variant is invalid, or the folder cannot be
            written.
        VariantFailed: the base cannot be measured.
    """
    config, until = load.load(base.all_args), end_of(minutes)
    with TemporaryDirectory(prefix="harness-arms-") as checkouts:
        parsed = [read_variant(text, base, Path(checkouts)) for text in named]
        swept = sweep(
            base, (lambda _: parsed) if parsed else partial(_known, base, config, until),
            until=until, folder=make_folder(folder, "logs"), may_change_result=may_change_result,
        )  # fmt: skip
    _show(swept, config, folder)


def _known(base: Variant, config: Config, until: float, running: Base) -> list[Variant]:
    """Return a variant for each value of each switch, and on a GPU the largest batch that fits."""
    now = time.perf_counter()
    variants = [
        replace(base, name=f"{key}={value}", flags={key: value})
        for key, values in candidates(config, base.ranks, running.facts).items()
        for value in values
    ]
    if running.facts["on_gpu"]:
        share = now + SEARCH * (until - now)
        larger = largest_batch(running, partial(_larger, base, config), MOST_FACTOR, share)
        variants += [larger] if larger is not None else []
    return variants


def _larger(base: Variant, config: Config, factor: int) -> Variant:
    flags = {"train.global_batch": str(factor * config.train.global_batch)}
    if config.train.max_local_batch is not None:
        flags["train.max_local_batch"] = str(factor * config.train.max_local_batch)
    return replace(base, name=" ".join(f"{k}={v}" for k, v in flags.items()), flags=flags)


def _show(swept: Swept, config: Config, folder: Path) -> None:
    table = right_table(*HEAD)
    table.columns[0].no_wrap = True
    for trial in (*swept.trials, *swept.finals):
        if trial.failed is None:
            table.add_row(*_cells(trial), style="bold" if trial in swept.finals else None)
    wide.print(table)
    content = {
        "base": swept.base.args,
        "trials": [_as_json(trial) for trial in swept.trials],
        "finals": [_as_json(trial) for trial in swept.finals],
        "best": swept.best and _as_json(swept.best),
    }
    write_text(folder / "sweep.json", json.dumps(content, indent=1))
    write_text(folder / "best.yaml", best_yaml(swept, config))
    out.print("\n".join(lines(swept)))
    out.print(f"\n{folder / 'sweep.json'}: all measurements; to train with the best settings:")
    out.print(f"  torchrun --nproc-per-node {swept.base.ranks} launch/train.py {folder}/best.yaml")


def _cells(trial: Trial) -> list[str]:
    counted = [trial.facts.get(k) for k in ("recompiles", "breaks", "buckets", "launches_per_step")]
    return [
        trial.variant.name + "*" * changes_learning(trial.variant.flags),
        *(f"{ratio:.3f}" for ratio in (trial.ratio, *trial.interval)),
        f"{trial.images_per_second:,.0f}", f"{len(trial.starts)} x {len(trial.starts[0])}",
        *map(_cell, counted), _cell(trial.facts.get("memory_peak_gib"), ".1f"),
    ]  # fmt: skip


def _cell(value: float | None, form: str = "") -> str:
    return "-" if value is None else f"{value:{form}}"


def lines(swept: Swept) -> list[str]:
    """Return the report: variants that failed, warnings, and the best settings."""
    trials = [*swept.trials, *swept.finals]
    report = [f"{t.variant.name}: {result_line(t)}" for t in trials if t.failed is not None]
    if any(changes_learning(trial.variant.flags) for trial in trials):
        report.append("*: may change the accuracy, not only the speed")
    if apart := ", ".join(trial.variant.name for trial in trials if not trial.together):
        report.append(f"did not fit into memory together with the base, so run alone: {apart}")
    held_back = [
        f"{trial.variant.name} ({trial.ratio:.2f})"
        for trial in swept.trials
        if trial.is_faster and changes_learning(trial.variant.flags)
    ]
    if held_back and not (swept.best and changes_learning(swept.best.variant.flags)):
        report.append(
            f"faster, but may change the accuracy: {', '.join(held_back)}; "
            "--may-change-result allows them among the best"
        )
    if swept.best is None:
        return [*report, f"best: {_no_best(swept)}; keep its settings"]
    flags = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in swept.best.variant.flags.items())
    return [*report, f"best: {flags}: {result_line(swept.best)}"]


def _no_best(swept: Swept) -> str:
    among = " among those measured, which time (--minutes) did not suffice for all of"
    unknown = any(trial.failed == TIME_OVER for trial in (*swept.trials, *swept.finals))
    return f"no variant is certainly faster than the base{among * unknown}"


def best_yaml(swept: Swept, config: Config) -> str:
    """Return the best variant's config as YAML, with the measured gain in a comment at the top."""
    best, before = swept.best, cfg.flat(config)
    variant = best.variant if best is not None else swept.base
    sections = load.load(variant.all_args).model_dump(mode="json")
    sections["run"]["name"] = None  # so that training begins a new run
    when_where = f"{datetime.now(UTC):%Y-%m-%d}, {socket.gethostname()}"
    head = [f"harness bench sweep, {when_where}, {count(swept.base.ranks, 'rank')}"]
    if best is None:
        head.append(f"{_no_best(swept)}: these are the base's settings")
    else:
        low, high = best.interval
        head.append(
            f"measured {best.ratio:.3f} times the images/s of the base "
            f"(95 %: {low:.3f} to {high:.3f}; {count(len(best.starts), 'start')}, "
            f"{len(best.pairs)} pairs of turns)"
        )
        flags = variant.flags.items()
        head += [f"{key}: {value}, was {load.as_text(before[key])}" for key, value in flags]
    if changes_learning(variant.flags):
        head.append("these may change the accuracy: check it again")
    return "".join(f"# {line}\n" for line in head) + yaml.safe_dump(sections, sort_keys=False)


def _as_json(trial: Trial) -> dict[str, Any]:
    variant = trial.variant
    content: dict[str, Any] = {
        "name": variant.name, "flags": dict(variant.flags), "python": str(variant.python),
        "code": str(variant.code), "failed": trial.failed, "together": trial.together,
        "starts": trial.starts, "facts": trial.facts,
    }  # fmt: skip
    if trial.failed is None:
        content |= {"ratio": trial.ratio, "interval": trial.interval}
    return content
