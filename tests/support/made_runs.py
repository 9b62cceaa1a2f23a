"""Run folders whose numbers are made up, so that the truth about them is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from harness.config import Config, fingerprint, load
from harness.logging.schema import Result, Row

ENVIRONMENT: dict[str, Any] = {
    "harness": {"version": "0.1", "git_commit": "c0ffee", "git_dirty": False},
    "versions": {"python": "3.11.7", "torch": "2.14.1", "dali": "2.4.0"},
    "hostname": "node1",
    "device": {"type": "cuda", "name": "NVIDIA H100 80GB HBM3", "count": 8, "memory_gib": 79.1},
    "cpu": {"model": "AMD EPYC", "capability": "AVX512", "cores_available": 64},
    "variables": {"OMP_NUM_THREADS": "8"},
}


def made_run(
    folder: Path,
    *,
    seed: int = 0,
    rate: float = 1000.0,
    top1_pct: float = 76.0,
    periods: int = 40,
    noise_pct: float = 0.5,
    epochs: int = 4,
    sections: dict[str, dict[str, Any]] | None = None,
    environment: dict[str, Any] | None = None,
    state: str = "finished",
    **result: Any,
) -> Path:
    """A run of the harness as it would look at `rate` images/s and with a final `top1_pct`.

    Args:
        periods: train rows; their rates scatter by `noise_pct`.
        sections, environment, result: what is another than usual.
    """
    given = {"run": {"name": folder.name, "seed": seed}, "schedule": {"epochs": epochs}}
    for name, part in (sections or {}).items():
        given[name] = given.get(name, {}) | part
    config = Config.model_validate(given)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(load.dump(config))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT | (environment or {})))
    (folder / "state").write_text(state)
    rows = _rows(config, rate, top1_pct, periods, noise_pct)
    lines = "".join(row.model_dump_json(exclude_none=True) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines)
    if state == "finished":
        validated = Result.model_validate(_result(config, folder.name, rows) | result)
        (folder / "result.json").write_text(validated.model_dump_json())
    return folder


def _rows(
    config: Config, rate: float, top1_pct: float, periods: int, noise_pct: float
) -> list[Row]:
    rng = np.random.default_rng([config.run.seed, round(1000 * rate)])
    batch, steps, epochs = config.train.global_batch, 50, config.schedule.epochs
    rows, train_s = [], 0.0
    for period in range(1, periods + 1):
        now = rate * float(np.exp(rng.normal(0, noise_pct / 100)))
        train_s += steps * batch / now
        about: dict[str, Any] = {
            "attempt": 1, "epoch": epochs * period / periods, "step": steps * period,
            "images_seen": steps * batch * period, "train_s": train_s, "wall_s": 20 + train_s,
        }  # fmt: skip
        ms = 1000 * batch / now
        rows.append(Row(
            kind="train", **about, lr=0.1, loss=7 * 0.9**period, images_per_second=now,
            step_ms_mean=ms, step_ms_p50=ms, step_ms_p95=1.1 * ms, data_wait_pct=1.0,
            memory_peak_gib=20.0,
        ))  # fmt: skip
        if period * epochs % periods < epochs:
            reached = top1_pct * about["epoch"] / epochs
            rows.append(Row(
                kind="val", **about, val_loss=1.0, val_top1_pct=reached, val_top5_pct=reached,
                val_images=50_000, val_s=5.0,
            ))  # fmt: skip
    return rows


def _result(config: Config, name: str, rows: list[Row]) -> dict[str, Any]:
    trained = [row for row in rows if row.kind == "train"]
    last, val = trained[-1], [row for row in rows if row.kind == "val"][-1]
    middle = float(np.median([row.step_ms_p50 for row in trained if row.step_ms_p50]))
    accounts = {"start_up": 10.0, "compile": 10.0, "train": last.train_s, "evaluate": 20.0,
                "checkpoint": 4.0}  # fmt: skip
    return {
        "harness_version": "0.1", "name": name, "run_id": f"id-{name}", "mode": "train",
        "attempt": 1, "attempts": [], "started_at": "2026-01-01T00:00:00+00:00",
        "finished_at": "2026-01-01T01:00:00+00:00",
        "result_fingerprint": fingerprint(config, "result"),
        "speed_fingerprint": fingerprint(config, "speed"), "notes": [],
        "model": config.model.name, "parameters": 25_557_032, "classes": 1000,
        "train_images": 1_281_167, "train_digest": "aa", "val_digest": "bb",
        "protocol": "shorter side to 256 px, centre crop 224 px, single view",
        "world_size": 8, "global_batch": config.train.global_batch, "local_batch": 32,
        "accumulate": 1, "peak_lr": 0.1, "precision": "bf16", "channels_last": True,
        "compiled": True, "source": config.data.source, "decode": "gpu", "device": "cuda",
        "compute_threads": 8, "loader_threads": 8, "epochs": last.epoch, "steps": last.step,
        "images_seen": last.images_seen, "val_top1_pct": val.val_top1_pct,
        "val_top5_pct": val.val_top5_pct, "val_loss": 1.0, "val_correct1": 38_000,
        "val_correct5": 46_000, "val_images": 50_000, "best_val_top1_pct": val.val_top1_pct,
        "best_epoch": last.epoch, "images_per_second": last.images_seen / last.train_s,
        "step_ms_p50": middle, "step_ms_p95": 1.1 * middle, "step_ms_p99": 1.2 * middle,
        "data_wait_pct": 1.0, "accounts_s": accounts, "wall_s": sum(accounts.values()),
        "memory_peak_gib": 20.0, "recompiles": 0, "graph_breaks": 0, "digests": [], "wandb": "off",
    }  # fmt: skip
