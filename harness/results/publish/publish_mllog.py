"""Write runs as MLPerf training logs with MLPerf's own logger.

All times are derived from what the run recorded:

- `init_start`: the start of the first attempt's process (result.json, `attempts` or `started_at`).
- The time of a row: the start of its attempt's process + the row's `wall_s`.
- `init_stop`, `run_start`: the time of the first train row - its `train_s`; only training, and
  perhaps a checkpoint, lies between. The time of attempts without any row is thus part of `init`.
- `epoch_start`: the time of the epoch's first row - the training time since the row before it,
  but not before the previous event; `epoch_stop`: the time of its last train row.
- `eval_stop`, `eval_accuracy`: the time of a validation row; `eval_start`: that - its `val_s`.
- `run_stop`: the time of the last row, whether or not the target was reached earlier.

The time between attempts counts, as it lies between their rows. The division is `open`, as the
harness has no schedule that decays like the closed division's. These are not submissions.
"""

import io
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import harness
from harness.errors import BadInput
from harness.logging.schema import Result, Row
from harness.results.load import LoadedRun
from harness.results.measured import Measured
from harness.system.folders import new_folder
from harness.system.progress import track

Line = tuple[Literal["start", "end", "event"], float, str, Any, dict[str, Any]]
"""A call of MLPerf's logger: its method, Unix seconds, key, value and metadata."""
RULES = "4.0.0"
"""The newest version of MLPerf's rules that includes ResNet."""
TARGET_TOP1_PCT = 75.9
"""MLPerf's quality target for ResNet-50, used if the run has no target."""


def to_mllog(runs: Sequence[tuple[LoadedRun, Measured]], out: Path) -> None:
    """Write a log per run, NAME.txt, into a new folder.

    Raises:
        BadInput: mlperf-logging is missing, a run did not train, two have the same name, or the
            folder exists or cannot be written.
    """
    try:
        from mlperf_logging.mllog.mllog import MLLogger
    except ImportError:
        raise BadInput(
            "--to mllog: needs mlperf-logging; install it: pip install 'imagenet-harness[publish]'"
        ) from None
    name, number = Counter(run.path.name for run, _ in runs).most_common(1)[0]
    if number > 1:
        raise BadInput(f"{name}: {number} of these runs have this name; give one of them at a time")
    tracked = track(runs, total=len(runs), what="writing logs")
    logs = {f"{run.path.name}.txt": list(_lines(run, known)) for run, known in tracked}
    root = re.escape(str(Path(harness.__file__).parents[1]))
    with new_folder(out) as folder:
        for name, lines in logs.items():
            text = io.StringIO()
            logger = logging.Logger("mllog")
            logger.addHandler(logging.StreamHandler(text))
            mllogger = MLLogger(logger, root_dir=root)
            for kind, at_s, key, value, about in lines:
                getattr(mllogger, kind)(key, value, metadata=about, time_ms=round(1000 * at_s))
            (folder / name).write_text(text.getvalue(), encoding="utf-8")


def _lines(run: LoadedRun, known: Measured) -> Iterator[Line]:
    assert run.result is not None
    # When the process of each attempt started, in Unix seconds.
    began_s = {1: datetime.fromisoformat(run.result.started_at).timestamp()}
    began_s |= {int(item["attempt"]): float(item["began_at"]) for item in run.result.attempts}
    if lacking := [row.attempt for row in run.rows if row.attempt not in began_s]:
        why = f"attempts: lacks attempt {lacking[0]}, which is in rows.jsonl"
        raise BadInput(f"{run.path}/result.json: {why}")
    moments = [(began_s[row.attempt] + row.wall_s, row) for row in run.rows]
    train = [(at_s, row) for at_s, row in moments if row.kind == "train"]
    if not train:
        raise BadInput(f"{run.path}: did not train, only scored weights; MLPerf logs trainings")
    run_s = train[0][0] - train[0][1].train_s
    yield "event", began_s[1], "cache_clear", True, {}
    yield "start", began_s[1], "init_start", None, {}
    for key, value in _submission(run.result, known, train[-1][1]).items():
        yield "event", began_s[1], key, value, {}
    yield "end", run_s, "init_stop", None, {}
    yield "start", run_s, "run_start", None, {"attempts": run.result.attempt}
    yield from _training(moments, run_s)
    target = known.config.schedule.stop_at_top1_pct or TARGET_TOP1_PCT
    reached = run.result.best_val_top1_pct >= target
    status = {"status": "success" if reached else "aborted", "target": target / 100}
    yield "end", moments[-1][0], "run_stop", None, status | {"epoch_num": run.result.epochs}


def _training(moments: Sequence[tuple[float, Row]], run_s: float) -> Iterator[Line]:
    last_s, last_train_s, epoch = run_s, 0.0, 0
    ends = {math.ceil(row.epoch): at_s for at_s, row in moments if row.kind == "train"}
    for at_s, row in moments:
        number = {"epoch_num": math.ceil(row.epoch)}
        if row.kind == "train":
            if math.ceil(row.epoch) > epoch:
                epoch = math.ceil(row.epoch)
                start_s = at_s - (row.train_s - last_train_s)
                yield "start", max(last_s, start_s), "epoch_start", None, number
            last_train_s = row.train_s
            if at_s == ends[epoch]:
                yield "end", at_s, "epoch_stop", None, number
        elif row.kind == "val":
            assert row.val_s is not None
            assert row.val_top1_pct is not None
            yield "start", at_s - row.val_s, "eval_start", None, number
            yield "event", at_s, "eval_accuracy", row.val_top1_pct / 100, number
            yield "end", at_s, "eval_stop", None, number
        last_s = at_s


def _submission(result: Result, known: Measured, last: Row) -> dict[str, Any]:
    config, device = known.config, known.environment.get("device")
    name = device.get("name") if isinstance(device, dict) else None
    schedule = config.schedule
    unit = "steps" if schedule.drop_steps else "epochs"
    drops_at = schedule.drop_steps or schedule.drop_epochs
    drops = {
        "opt_learning_rate_decay_factor": schedule.drop_factor,
        f"opt_learning_rate_decay_boundary_{unit}": list(drops_at),
    }
    return {
        "submission_benchmark": "resnet",
        "submission_division": "open",
        "submission_org": "not a submission",
        "submission_platform": f"{result.world_size} x {name or result.device}",
        "submission_status": "research",
        "global_batch_size": result.global_batch,
        "gradient_accumulation_steps": result.accumulate,
        "train_samples": result.train_images,
        "eval_samples": result.val_images,
        "seed": config.run.seed,
        "model_bn_span": config.model.bn_images or result.local_batch,
        "opt_name": "sgd",
        "sgd_opt_base_learning_rate": result.peak_lr,
        "sgd_opt_end_learning_rate": last.lr,
        "sgd_opt_learning_rate_decay_steps": result.steps,
        "sgd_opt_momentum": config.optim.momentum,
        "sgd_opt_weight_decay": config.optim.weight_decay,
        "opt_learning_rate_warmup_epochs": schedule.warmup_epochs,
        "opt_learning_rate_decay_schedule": schedule.decay,
        **(drops if schedule.decay == "step" else {}),
    }
