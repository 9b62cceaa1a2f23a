"""The two records of a run, field by field: a Row per log period, one Result at the end.

Every field carries its unit in its name; null: not measured. On a CPU, the device is the process.
"""

from typing import Any, Literal

from pydantic import BaseModel, Field

from harness.system.console import duration

SCHEMA_VERSION: Literal[1] = 1
Repeats = Literal["same", "bits", "time"]
"""What two runs of one config share: the value; the value if all bits are equal; nothing."""
RESULT_PREFIX = "result/"
"""What W&B's keys of a Result begin with; the name of the field follows."""


def _row(wandb: str | None, repeats: Repeats, meaning: str, default: Any = None) -> Any:
    """A field of a row: its key in W&B (None: not sent) and whether another run repeats it."""
    extra: dict[str, Any] = {"wandb": wandb, "repeats": repeats}
    return Field(default, description=meaning, json_schema_extra=extra)


def _field(meaning: str, repeats: Repeats | None = None, default: Any = ...) -> Any:
    """A field of the result; only what names `repeats` is held against that of another run."""
    return Field(default, description=meaning, json_schema_extra={"repeats": repeats})


class Row(BaseModel, extra="forbid"):
    """One line of rows.jsonl: `train` every log period, `val` after each evaluation.

    A `stop` row ends an attempt that a signal stopped; the attempt that goes on replaces it.
    """

    schema_version: Literal[1] = _row(None, "same", "of this schema", SCHEMA_VERSION)
    kind: Literal["train", "val", "stop"] = _row(None, "same", "which kind of row", ...)
    attempt: int = _row("progress/attempt", "time", "1, and one more after each restart", ...)
    epoch: float = _row("progress/epoch", "same", "epochs done, with fraction", ...)
    step: int = _row("progress/step", "same", "optimizer steps done", ...)
    images_seen: int = _row("progress/images", "same", "training images seen by all ranks", ...)
    train_s: float = _row("progress/seconds", "time", "in the account `train`, all attempts", ...)
    wall_s: float = _row("progress/attempt_seconds", "time", "since the start of this attempt", ...)

    lr: float | None = _row("train/lr", "same", "learning rate of the last step")
    loss: float | None = _row("train/loss", "bits", "mean training loss over the period")
    train_top1_pct: float | None = _row("train/top1_pct", "bits", "of the period, augmented images")
    train_top5_pct: float | None = _row("train/top5_pct", "bits", "of the period, augmented images")
    images_per_second: float | None = _row(
        "perf/images_per_second", "time", "images of all ranks / training wall time, period"
    )
    step_ms_mean: float | None = _row("perf/step_ms_mean", "time", "of the period, rank 0")
    step_ms_p50: float | None = _row("perf/step_ms_p50", "time", "median of the period, rank 0")
    step_ms_p95: float | None = _row("perf/step_ms_p95", "time", "95th percentile, rank 0")
    data_wait_pct: float | None = _row(
        "perf/data_wait_pct", "time", "of training time, with the device waiting for data, rank 0"
    )
    # In these parts of a step, no rank waits for another.
    compute_ms_median: float | None = _row(
        "perf/compute_ms_median", "time", "mean forward pass and loss of a step, median rank"
    )
    compute_ms_slowest: float | None = _row(
        "perf/compute_ms_slowest", "time", "the same of the slowest rank; null for one rank"
    )
    slowest_rank: int | None = _row("perf/slowest_rank", "time", "which one that is")
    data_wait_most_pct: float | None = _row(
        "perf/data_wait_most_pct", "time", "data_wait_pct of the rank that waits most"
    )
    power_w: float | None = _row("perf/power_w", "time", "of all GPUs, by their counters (NVML)")
    images_per_joule: float | None = _row("perf/images_per_joule", "time", "of all GPUs together")
    loss_scale: float | None = _row("train/loss_scale", "bits", "fp16: gradient scaler's factor")
    memory_peak_gib: float | None = _row(
        "mem/peak_gib", "time", "torch's tensors on the device at their highest, rank 0"
    )

    # Both are null on a device whose peak is not printed.
    mfu_pct: float | None = _row(
        "perf/mfu_pct", "time", "of all GPUs' printed peak, by the network's own operations"
    )
    memory_pct: float | None = _row(
        "perf/memory_pct", "time", "of their bandwidth, if all between matrix products were fused"
    )

    events: list[str] | None = _row(None, "same", "decided here, such as `dropped`: the next rate")
    val_loss: float | None = _row("val/loss", "bits", "mean validation loss")
    val_top1_pct: float | None = _row("val/top1_pct", "bits", "validation top-1 accuracy")
    val_top5_pct: float | None = _row("val/top5_pct", "bits", "validation top-5 accuracy")
    val_images: int | None = _row("val/images", "same", "each counted exactly once")
    val_s: float | None = _row("val/seconds", "time", "time of this evaluation")


class EpochDigest(BaseModel, extra="forbid"):
    """Proof of what was seen in one epoch; hex, sums modulo 2^64, equal at any world size."""

    epoch: int
    images: int = _field("images seen")
    order: str = _field("over (position, sample, window, flip): depends on the order")
    samples: str = _field("over the samples alone: samples + tail = dataset, whatever the order")
    tail: str = _field("over the samples of the ragged end that were left out")


class RunEvent(BaseModel, extra="forbid"):
    """A decision: a drop of the learning rate, the end of a warm-up or of the run."""

    kind: str
    step: int = _field("optimizer steps done when it was taken")


class Target(BaseModel, extra="forbid"):
    """Time to accuracy."""

    top1_pct: float = _field("what was asked")
    val_top1_pct: float = _field("what was reached")
    epoch: float
    step: int
    train_s: float = _field("in the account `train`, all attempts: waiting for data included")
    wall_s: float = _field("of all attempts, start-up, validations and checkpoints included")

    def in_words(self) -> str:
        """For a person, in a line."""
        return (
            f"{self.top1_pct:g} % reached after {self.epoch:g} epochs: "
            f"{duration(self.train_s)} of training, {duration(self.wall_s)} in all"
        )


class Result(BaseModel, extra="forbid"):
    """result.json: what a run is compared by."""

    schema_version: Literal[1] = SCHEMA_VERSION
    harness_version: str
    name: str = _field("run name")
    run_id: str = _field("stable over restarts; also the id in W&B")
    mode: Literal["train", "eval"]
    attempt: int = _field("how often the run was started until it finished")
    attempts: list[dict[str, Any]] = _field(
        "each start: when, where, on how many ranks, from which step, how the one before ended; "
        "compile_s and how many graphs all ranks compiled, and found compiled"
    )
    started_at: str = _field("UTC, ISO 8601")
    finished_at: str = _field("UTC, ISO 8601")
    result_fingerprint: str = _field("of all settings that may change the result", "same")
    speed_fingerprint: str = _field("of all settings that may change the speed")
    notes: list[str] = _field("what a reader must know, in words")

    model: str
    parameters: int
    classes: int
    train_images: int | None = _field("images in the training set")
    train_digest: str | None = _field("of names, sizes and labels of the training set", "same")
    val_digest: str = _field("of names, sizes and labels of the validation set", "same")
    protocol: str = _field("how validation images are resized and cropped")

    world_size: int = _field("ranks", "same")
    global_batch: int
    local_batch: int
    accumulate: int
    peak_lr: float | None
    precision: str
    channels_last: bool
    compiled: bool
    source: str = _field("dali, torchvision or synthetic")
    decode: str = _field("cpu, split, gpu or none")
    device: str = _field("cpu or cuda")
    compute_threads: int
    loader_threads: int

    epochs: float = _field("epochs trained", "same")
    steps: int = _field("optimizer steps", "same")
    images_seen: int = _field("training images, of all ranks", "same")

    val_top1_pct: float = _field("after the last step", "bits")
    val_top5_pct: float = _field("after the last step")
    val_loss: float = _field("after the last step", "bits")
    val_correct1: int = _field("validation images whose first guess is right", "bits")
    val_correct5: int = _field("likewise with one of five guesses", "bits")
    val_images: int = _field("each counted exactly once", "same")
    best_val_top1_pct: float = _field("of all validations", "bits")
    best_epoch: float = _field("when that was", "bits")
    median_last5_top1_pct: float | None = _field(
        "median of validations after the last 5 epochs (Goyal et al. 2017, 5.1)", default=None
    )
    events: list[RunEvent] = _field("what the run decided from its history", default=[])
    target: Target | None = _field("when schedule.stop_at_top1_pct was reached", default=None)
    slowed: list[str] = _field(
        "why a rank's GPU clocks were held down for over a tenth of the last attempt", default=[]
    )
    stragglers: list[str] = _field(
        "ranks of the last attempt that computed slower, or waited longer for data, than the "
        "median rank in most log periods: who, where, by how much",
        default=[],
    )
    energy_kj: float | None = _field(
        "of all GPUs in the account `train`, without what a kill made do again", default=None
    )
    images_per_joule: float | None = _field("likewise", default=None)
    references: list[str] = _field("published rows that this is held against", default=[])

    images_per_second: float | None = _field(
        "images of all ranks / wall time of the account `train` (waiting for data included; "
        "start-up, compiling, evaluation and checkpoints excluded)"
    )
    mfu_pct: float | None = _field("as in the rows, of the whole run", default=None)
    memory_pct: float | None = _field("likewise", default=None)
    step_ms_p50: float | None = _field("rank 0, all steps after the warm-up")
    step_ms_p95: float | None
    step_ms_p99: float | None
    data_wait_pct: float | None = _field("of the account `train`, rank 0")
    accounts_s: dict[str, float] = _field(
        "where rank 0's time went: they add up to wall_s; `lost`: what a kill made do again"
    )
    wall_s: float = _field("of all attempts, start-up included, waiting between them not")
    memory_peak_gib: float = _field(
        "torch's tensors on the device (CPU: resident memory) at their highest, rank 0"
    )
    memory_other_gib: float | None = _field(
        "what else that GPU held at the end: DALI's buffers, NCCL's, the CUDA context", default=None
    )
    recompiles: int = _field("graphs compiled after the warm-up: must be 0")
    graph_breaks: int = _field("graph breaks: must be 0")
    digests: list[EpochDigest] = _field("of each epoch", "same")
    wandb: str = _field("how the mirror ended: off, online, offline, or what went wrong")


def fields_that_repeat(record: type[Row | Result], how: Repeats) -> list[str]:
    """Names of the fields of a record whose values two runs share, in their order."""
    return [name for name, extra in _extras(record).items() if extra["repeats"] == how]


def _extras(record: type[BaseModel]) -> dict[str, dict[str, Any]]:
    extras = {name: field.json_schema_extra for name, field in record.model_fields.items()}
    return {name: extra for name, extra in extras.items() if isinstance(extra, dict)}


ROW_KEYS: dict[str, str] = {name: e["wandb"] for name, e in _extras(Row).items() if e["wandb"]}
"""Field of a Row -> its key in W&B; keys tell a row's kind there, the rate tells its events."""
