"""Does the harness train as well as a plain loop? Seeds of both, the difference, its interval.

    python tests/studies/proof_of_training.py --train cifar10/train --val cifar10/test --work proof

ResNet-20, the CIFAR schedule of He et al. 2015 divided by 16, in
configs/he2015/cifar10_resnet20_4k.yaml and tests/studies/plain_loop.py, which share only the
network.
What is done stays done: give the same command again after an interruption, or on another machine
with what is known from the first, as --known-harness 81.01,80.9 --known-plain 80.52,80.7 (the first
seeds). Exit code 1 if the interval leaves the bounds, 3 if there are too few runs to tell.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console
from rich.table import Table
from scipy import stats

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "he2015" / "cifar10_resnet20_4k.yaml"
LEVEL = 0.90
"""Two one-sided tests at 5 %: Schuirmann 1987."""

out = Console()


def harness_run(seed: int, given: argparse.Namespace) -> float:
    """Top-1 of a run of the harness in percent; goes on with one that was cut off."""
    folder = given.work / f"harness-s{seed}"
    result = folder / "result.json"
    if not result.exists():
        command = [
            sys.executable, str(ROOT / "launch" / "train.py"), str(CONFIG),
            *("--data.train", given.train, "--data.val", given.val, "--run.seed", str(seed)),
            *("--run.root", str(given.work), "--run.name", folder.name, "--log.wandb", "off"),
            *("--eval.every-epochs", "11", "--engine.threads", str(given.threads)),
            *("--data.threads", "1"),
        ]  # fmt: skip
        subprocess.run(command, check=True)
    return float(json.loads(result.read_text())["val_top1_pct"])


def plain_run(seed: int, given: argparse.Namespace) -> float:
    """Top-1 of a run of the plain loop in percent; starts again with one that was cut off."""
    result = given.work / f"plain-s{seed}.json"
    if not result.exists():
        command = [
            *(sys.executable, str(Path(__file__).with_name("plain_loop.py"))),
            *("--train", given.train, "--val", given.val, "--seed", str(seed)),
            *("--threads", str(given.threads)),
        ]  # fmt: skip
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        part = result.with_suffix(".part")
        part.write_text(done.stdout.splitlines()[-1])
        part.replace(result)
    return float(json.loads(result.read_text())["top1_pct"])


def verdict(ours: Sequence[float], plain: Sequence[float], bound: float) -> int:
    """Print both, the difference of the means and its interval (Welch); the exit code."""
    table = Table(title="top-1, %")
    for heading in ("", *map(str, range(len(ours))), "mean", "std"):
        table.add_column(heading)
    for name, runs in (("harness", ours), ("plain loop", plain)):
        spread = f"{stdev(runs):.2f}" if len(runs) > 1 else ""
        table.add_row(name, *(f"{run:.2f}" for run in runs), f"{mean(runs):.2f}", spread)
    out.print(table)
    if len(ours) < 2:
        out.print("one seed has no interval: give --seeds 5")
        return 3
    low, high = stats.ttest_ind(ours, plain, equal_var=False).confidence_interval(LEVEL)
    inside = -bound <= low and high <= bound
    out.print(
        f"harness - plain: {mean(ours) - mean(plain):+.2f} points, {LEVEL:.0%} interval "
        f"{low:+.2f} to {high:+.2f}: {'within' if inside else 'NOT within'} +-{bound:g}"
    )
    return 0 if inside else 1


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def main() -> int:
    """All runs, seed by seed, then the verdict."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", required=True, help="folder of CIFAR-10's training images")
    parser.add_argument("--val", required=True, help="folder of its test images")
    parser.add_argument("--work", type=Path, default=Path("proof"), help="where results are kept")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--bound", type=float, default=2.0, help="points")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a run")
    for name in ("harness", "plain"):
        parser.add_argument(
            f"--known-{name}", type=_numbers, default=[], metavar="PCT,PCT", help="its first seeds"
        )
    parser.add_argument("--only", choices=("harness", "plain"), help="this half, no verdict")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    arms = {"harness": harness_run, "plain": plain_run}
    found: dict[str, list[float]] = {
        "harness": given.known_harness[: given.seeds],
        "plain": given.known_plain[: given.seeds],
    }
    for seed in range(given.seeds):
        for name, arm in arms.items():
            if given.only in (None, name) and seed >= len(found[name]):
                found[name].append(arm(seed, given))
                out.print(f"{name}, seed {seed}: {found[name][-1]:.2f} %")
    return 0 if given.only else verdict(found["harness"], found["plain"], given.bound)


if __name__ == "__main__":
    sys.exit(main())
