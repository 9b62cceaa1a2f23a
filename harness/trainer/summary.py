"""Make the result of a finished run, all fields of result.json in one place."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from statistics import median
from typing import Any

from torch import nn

from harness import __version__
from harness import config as cfg
from harness.data.sets import protocol
from harness.logging.schema import Result, RunEvent
from harness.run_folder.folder import attempts
from harness.system.console import count
from harness.trainer import setup
from harness.trainer.loop import Training
from harness.trainer.metrics import Score, memory_other_gib, memory_peak_gib
from harness.trainer.reporter import RunLogger


def summarize(log: RunLogger, net: nn.Module, t: Training | None) -> Result:
    """Return the Result; without a Training if weights were only evaluated."""
    resolved, config, clock = log.resolved, log.resolved.config, log.clock
    tries, graphs = attempts(log.folder.path), setup.graph_counts()
    recompiles, breaks = graphs["graphs"] - log.graphs_warm, graphs["breaks"]
    notes = [*log.notes, *_changes_on_the_way(tries)]
    if recompiles or breaks:
        notes.append(
            f"{count(recompiles, 'recompile')} after the warm-up and "
            f"{count(breaks, 'graph break')}: the speed is not to be trusted"
        )
    last, train_s = log.scores[-1][1], clock.train_s
    best_epoch, best = max(log.scores, key=lambda scored: scored[1].correct1)
    rate = t.images_seen / train_s if t else None
    used = t.utilization if t else None
    joules = log.rows.energy_j() if log.rows else None
    return Result(
        harness_version=__version__,
        name=str(config.run.name),
        run_id=log.folder.run_id,
        mode=config.run.mode,
        attempt=len(tries),
        attempts=tries,
        started_at=_iso(tries[0]["began_at"]),
        finished_at=_iso(time.time()),
        result_fingerprint=cfg.fingerprint(config, "result"),
        speed_fingerprint=cfg.fingerprint(config, "speed"),
        notes=notes,
        model=config.model.name,
        parameters=sum(p.numel() for p in net.parameters()),
        classes=log.val_set.classes,
        train_images=len(log.train_set) if log.train_set else None,
        train_digest=log.train_set.digest if log.train_set else None,
        val_digest=log.val_set.digest,
        protocol=protocol(config),
        world_size=resolved.world.size,
        global_batch=resolved.split.global_batch,
        local_batch=resolved.split.local_batch,
        accumulate=resolved.split.accumulate,
        peak_lr=resolved.peak_lr if t else None,
        precision=resolved.precision,
        channels_last=config.engine.channels_last,
        compiled=resolved.compiled,
        source=config.data.source,
        decode=resolved.loader.decode,
        device=resolved.world.device.type,
        compute_threads=resolved.threads,
        loader_threads=resolved.loader.threads,
        epochs=t.epoch if t else 0.0,
        steps=t.step if t else 0,
        images_seen=t.images_seen if t else 0,
        val_top1_pct=last.top1_pct,
        val_top5_pct=last.top5_pct,
        val_loss=last.loss,
        val_correct1=last.correct1,
        val_correct5=last.correct5,
        val_images=last.images,
        best_val_top1_pct=best.top1_pct,
        best_epoch=best_epoch,
        median_last5_top1_pct=_median_of_last5(log.scores),
        events=[RunEvent(**event._asdict()) for event in t.events] if t else [],
        target=log.target,
        slowed=log.throttle.slowed if log.throttle else [],
        stragglers=t.peers.stragglers if t else [],
        energy_kj=joules / 1000 if joules else None,
        images_per_joule=t.images_seen / joules if t and joules else None,
        references=list(config.run.references),
        images_per_second=rate,
        mfu_pct=used.mfu_pct(rate) if used and rate else None,
        memory_pct=used.memory_pct(rate) if used and rate else None,
        step_ms_p50=clock.step_ms(50),
        step_ms_p95=clock.step_ms(95),
        step_ms_p99=clock.step_ms(99),
        data_wait_pct=100 * clock.data_wait_s / train_s if t else None,
        accounts_s=clock.accounts_s,
        wall_s=clock.total_s,
        memory_peak_gib=memory_peak_gib(resolved.world),
        memory_other_gib=memory_other_gib(resolved.world),
        recompiles=recompiles,
        graph_breaks=breaks,
        digests=log.digests,
        wandb="off" if log.mirror is None else log.mirror.status,
    )


def _changes_on_the_way(tries: Sequence[dict[str, Any]]) -> list[str]:
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


def _median_of_last5(scores: Sequence[tuple[float, Score]]) -> float | None:
    """Of the last epochs' top-1, if each was validated: Goyal et al. 2017, 5.1."""
    last = scores[-5:]
    each_one = all(after - before <= 1 for (before, _), (after, _) in pairwise(last))
    return median(score.top1_pct for _, score in last) if len(last) == 5 and each_one else None
