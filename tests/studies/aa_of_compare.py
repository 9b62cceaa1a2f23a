"""Does `harness compare` cry wolf, and does it see a slowdown? Real runs on this machine, compared.

    python tests/studies/aa_of_compare.py --work aa

Trains the same thing 60 times, and 30 times with each step made 5 % longer by a sleep, in turns;
then compares: A/A, sides drawn from the runs that are the same (at most 16 of 200 may come out as
better or worse: the bound of a 5 % rate); and A/B, slowed runs against others (at least 90 % must
come out as worse). What is trained stays: give the same command again after an interruption.
Exit code 1 if a bound is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from harness.results.measured import Measured
from harness.results.source import runs_at
from harness.results.stats.compare import Cell, compare_cells
from harness.results.stats.metrics import metrics, steady_rate

ROOT = Path(__file__).parents[2]
RECIPE = [
    str(ROOT / "configs" / "cifar10_resnet20_short.yaml"),
    *("--data.source", "synthetic", "--data.synthetic-images", "100000"),
    *("--data.synthetic-val-images", "64", "--data.synthetic-classes", "10"),
    *("--train.global-batch", "64", "--log.every-steps", "4", "--log.wandb", "off"),
    *("--engine.compile", "false", "--engine.threads", "1", "--data.threads", "1"),
    *("--engine.precision", "fp32"),
]
COMPARISONS, MOST_ALARMS = 200, int(stats.binom.ppf(0.975, 200, 0.05))
"""How many false alarms a rate of 5 % may give."""
REPEATS, LEAST_FOUND = 5, 0.9
"""Of each side, as harness/results/README.md advises; and how often a slowdown must be detected."""

out = Console()


def child(slowdown_pct: float, words: Sequence[str]) -> None:
    """Train, each step followed by a sleep of so many percent of its time."""
    from harness.trainer import loop
    from launch import train as entry

    real = loop.train_step

    def slowed(*arguments: object) -> None:
        began = time.perf_counter()
        real(*arguments)  # type: ignore[arg-type]
        time.sleep(slowdown_pct / 100 * (time.perf_counter() - began))

    if slowdown_pct:
        loop.train_step = slowed
    sys.argv = ["launch/train.py", *words]
    entry.main()


def names(given: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """All runs with their slowdown, mixed, so that drift falls on both kinds alike."""
    every = max(1, round(given.runs / max(given.slow_runs, 1)))
    slow = iter(range(given.slow_runs))
    for number in range(given.runs):
        yield f"same-{number:03d}", 0.0
        if number % every == every - 1 and (k := next(slow, None)) is not None:
            yield f"slow-{k:03d}", given.slowdown_pct


def train_all(given: argparse.Namespace) -> None:
    """Train what is not there yet; as many at once as there are cores to pin them to."""
    cores: Queue[int] = Queue()
    for core in sorted(os.sched_getaffinity(0))[: given.at_once]:
        cores.put(core)

    def one(run: tuple[str, float]) -> None:
        name, slowdown_pct = run
        if (given.work / name / "result.json").exists():
            return
        core = cores.get()
        words = [
            *("taskset", "-c", str(core), sys.executable, __file__, "--child", str(slowdown_pct)),
            *("--", *RECIPE, "--run.name", name, "--run.root", str(given.work)),
            *("--schedule.max-steps", str(given.steps), "--run.seed", "0"),
        ]
        environ = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(words, capture_output=True, text=True, env=environ)
        cores.put(core)
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr[-500:]}")
        result = json.loads((given.work / name / "result.json").read_text())
        out.print(f"{name}: {result['images_per_second']:.1f} images/s", highlight=False)

    with ThreadPoolExecutor(given.at_once) as pool:
        list(pool.map(one, names(given)))


def draws(pool: Sequence[Measured], sides: int, n: int) -> Iterator[list[list[Measured]]]:
    """Sides of n runs each, without end; no run is used twice before all were used once."""
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(len(pool))
        for start in range(0, len(pool) - sides * n + 1, sides * n):
            chosen = [pool[k] for k in order[start : start + sides * n]]
            yield [chosen[side * n : (side + 1) * n] for side in range(sides)]


def judged(pairs: Iterator[tuple[list[Measured], list[Measured]]]) -> dict[str, Counter[str]]:
    """How often each verdict came out, by metric."""
    words: dict[str, Counter[str]] = {}
    for _ in range(COMPARISONS):
        new, base = next(pairs)
        comparison = compare_cells(
            Cell("new", tuple(new)), Cell("base", tuple(base)), metrics(), "images_per_second"
        )
        for found in comparison.findings:
            words.setdefault(found.metric.title, Counter())[found.verdict] += 1
    return words


def report(title: str, words: dict[str, Counter[str]]) -> None:
    kinds = ("better", "worse", "equivalent", "cannot tell")
    table = Table("", *kinds, title=title)
    for metric, counts in words.items():
        table.add_row(metric, *(str(counts[kind]) for kind in kinds))
    out.print(table)


def main() -> int:
    """Train, compare, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("aa"), help="where runs are kept")
    parser.add_argument("--runs", type=int, default=60, help="of the same thing (default 60)")
    parser.add_argument("--slow-runs", type=int, default=30, help="slowed (default 30)")
    parser.add_argument("--slowdown-pct", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=80, help="a run should train for 20 s")
    parser.add_argument("--at-once", type=int, default=1, help="runs at a time, one core each")
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        child(given.child, given.words)
        return 0
    given.work = given.work.resolve()
    train_all(given)
    same = runs_at(str(given.work / "same-*"))
    slow = runs_at(str(given.work / "slow-*")) if given.slow_runs else []
    rates = [steady_rate(run) or 0.0 for run in same]
    train_s = [float(run.train["train_s"][-1]) for run in same]
    out.print(
        f"{len(same)} + {len(slow)} runs of {min(train_s):.0f} to {max(train_s):.0f} s; "
        f"{np.mean(rates):.1f} images/s +- {100 * np.std(rates, ddof=1) / np.mean(rates):.1f} %"
    )
    good = True
    for n in (1, 3, REPEATS):
        if len(same) < 2 * n or len(slow) < n:
            out.print(f"too few runs for {n} a side")
            return 3
        same_sides = (tuple(sides) for sides in draws(same, 2, n))
        words = judged(same_sides)  # type: ignore[arg-type]
        rate = words["throughput"]
        alarms = rate["better"] + rate["worse"]
        report(
            f"A/A, {n} runs a side: {alarms} alarms of {COMPARISONS} (most {MOST_ALARMS})", words
        )
        good &= alarms <= MOST_ALARMS
        new, base = draws(slow, 1, n), draws(same, 1, n)
        words = judged((a[0], b[0]) for a, b in zip(new, base, strict=True))
        found = words["throughput"]["worse"] / COMPARISONS
        title = f"A/B, {given.slowdown_pct:g} % slower, {n} runs a side: found {found:.0%}"
        report(f"{title} (least {LEAST_FOUND:.0%} at the default)", words)
        good &= found >= LEAST_FOUND or n != REPEATS
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
