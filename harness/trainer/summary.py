"""Result: the facts of a finished run, gathered for result.json."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from statistics import median
from typing import Any

from harness import __version__
from harness import config as cfg
from harness.data.sets import Images, protocol
from harness.monitor.clock import Clock
from harness.trainer import setup
from harness.trainer.loop import Training
from harness.trainer.metrics import Score, memory_other_gib, memory_peak_gib
from harness.trainer.resolve import Resolved


def identity(config: cfg.Config, tries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Which run this is, and the attempts that it took."""
    return {
        "harness_version": __version__,
        "name": config.run.name,
        "mode": config.run.mode,
        "attempt": len(tries),
        "attempts": list(tries),
        "started_at": _iso(tries[0]["began_at"]),
        "finished_at": _iso(time.time()),
        "result_fingerprint": cfg.fingerprint(config, "result"),
        "speed_fingerprint": cfg.fingerprint(config, "speed"),
    }


def changes_on_the_way(tries: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader must know of a run whose attempts were not alike."""
    notes = []
    for before, after in pairwise(tries):
        was, now = (f"{t['world_size']} x {t['accumulate']} x {t['local_batch']}"
                    for t in (before, after))  # fmt: skip
        if was != now and after["from_step"]:
            notes.append(
                f"from step {after['from_step']} on {now} (ranks x accumulated x local batch), "
                f"before on {was}: the same images in the same order; rounding and the local "
                "batches of BatchNorm differ"
            )
        if after["changed"] != before["changed"] and after["from_step"]:
            keys = sorted({*after["changed"], *before["changed"]})
            notes.append(f"from step {after['from_step']} with another {', '.join(keys)}")
    return notes


def _iso(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds")


def data_facts(config: cfg.Config, train_set: Images | None, val_set: Images) -> dict[str, Any]:
    """What was trained and validated on."""
    return {
        "classes": val_set.classes,
        "train_images": len(train_set) if train_set else None,
        "train_digest": train_set.digest if train_set else None,
        "val_digest": val_set.digest,
        "protocol": protocol(config),
    }


def engine_facts(resolved: Resolved, *, training: bool) -> dict[str, Any]:
    """How the computing was done."""
    return {
        "world_size": resolved.world.size,
        "global_batch": resolved.split.global_batch,
        "local_batch": resolved.split.local_batch,
        "accumulate": resolved.split.accumulate,
        "peak_lr": resolved.peak_lr if training else None,
        "precision": resolved.precision,
        "channels_last": resolved.config.engine.channels_last,
        "compiled": resolved.compiled,
        "source": resolved.config.data.source,
        "decode": resolved.loader.decode,
        "device": resolved.world.device.type,
        "compute_threads": resolved.threads,
        "loader_threads": resolved.loader.threads,
    }


def accuracy(scores: Sequence[tuple[float, Score]]) -> dict[str, Any]:
    """The last and the best validation; scores come with their epoch."""
    last = scores[-1][1]
    best_epoch, best = max(scores, key=lambda each: each[1].correct1)
    return {
        "val_top1_pct": last.top1_pct,
        "val_top5_pct": last.top5_pct,
        "val_loss": last.loss,
        "val_correct1": last.correct1,
        "val_correct5": last.correct5,
        "val_images": last.images,
        "best_val_top1_pct": best.top1_pct,
        "best_epoch": best_epoch,
        "median_last5_top1_pct": _median_of_last(5, scores),
    }


def _median_of_last(epochs: int, scores: Sequence[tuple[float, Score]]) -> float | None:
    """Of the last epochs' top-1, if each was validated: Goyal et al. 2017, 5.1."""
    last = scores[-epochs:]
    each_one = all(after - before <= 1 for (before, _), (after, _) in pairwise(last))
    whole = len(last) == epochs and each_one
    return median(score.top1_pct for _, score in last) if whole else None


def speed(
    resolved: Resolved, clock: Clock, t: Training | None, graphs_warm: dict[str, int]
) -> dict[str, Any]:
    """Throughput and where the time went; `t` is none where weights were only scored."""
    graphs, train_s = setup.graph_counts(), clock.train_s
    rate = t.images_seen / train_s if t else None
    used = t.utilization if t else None
    return {
        "images_per_second": rate,
        "mfu_pct": used.mfu_pct(rate) if used and rate else None,
        "memory_pct": used.memory_pct(rate) if used and rate else None,
        "step_ms_p50": clock.step_ms(50),
        "step_ms_p95": clock.step_ms(95),
        "step_ms_p99": clock.step_ms(99),
        "data_wait_pct": 100 * clock.data_wait_s / train_s if t else None,
        "accounts_s": clock.accounts_s,
        "wall_s": clock.total_s,
        "memory_peak_gib": memory_peak_gib(resolved.world),
        "memory_other_gib": memory_other_gib(resolved.world),
        "recompiles": graphs["graphs"] - graphs_warm["graphs"],
        "graph_breaks": graphs["breaks"],
    }
