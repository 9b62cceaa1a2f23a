"""Training: the step, the epoch, the evaluation, and the run that they make up."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from harness import engine
from harness.counts import EvalCounts, Score, TrainCounts
from harness.data import Batch, Images
from harness.data.digest import Digest, digest_of, hexadecimal
from harness.data.stream import order
from harness.errors import RunFailed
from harness.optim import set_lr, sgd
from harness.record.clock import Clock
from harness.record.schema import EpochDigest, Row
from harness.resolve import Resolved
from harness.world import World

ATTEMPT = 1


@dataclass
class Training:
    """All that the steps work on; what is needed to go on is in `checkpoint.capture`."""

    resolved: Resolved
    model: engine.Classifier
    ddp: DistributedDataParallel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    counts: TrainCounts
    clock: Clock
    digest: Digest = field(default_factory=Digest)
    step: int = 0

    @property
    def epoch(self) -> float:
        """Epochs done, with fraction."""
        return self.step / self.resolved.steps_per_epoch

    @property
    def images_seen(self) -> int:
        """Training images seen by all ranks."""
        return self.step * self.resolved.split.global_batch


def set_up(resolved: Resolved, net: nn.Module, clock: Clock) -> Training:
    """The network with DDP and optimizer, warmed up: compiled, buckets in their final order."""
    engine.set_up_torch(resolved)
    model = engine.place(net, resolved)
    ddp = engine.data_parallel(model, resolved)
    optimizer = sgd(model.parameters(), resolved.config.optim)
    with clock.account("compile"):
        engine.warm_up(ddp, optimizer, resolved)
    return Training(
        resolved=resolved,
        model=model,
        ddp=ddp,
        optimizer=optimizer,
        scaler=engine.grad_scaler(resolved),
        counts=TrainCounts(
            min(resolved.config.log.every_steps, resolved.steps_per_epoch), resolved.world.device
        ),
        clock=clock,
    )


def train_step(t: Training, batches: Iterator[Batch]) -> None:
    """One step of SGD over a global batch; the host reads nothing from the device."""
    split, smoothing = t.resolved.split, t.resolved.config.train.label_smoothing
    for micro in range(split.accumulate):
        with t.clock.waiting_for_data():
            batch = next(batches)
        last = micro == split.accumulate - 1
        with nullcontext() if last else t.ddp.no_sync():
            with engine.autocast(t.resolved):
                logits = t.ddp(batch.images)
            loss = nn.functional.cross_entropy(
                logits.float(), batch.labels, label_smoothing=smoothing
            )
            t.scaler.scale(loss / split.accumulate).backward()
        t.counts.add(loss, logits, batch.labels, share=1 / split.accumulate)
        t.digest.add(batch.rows)
    set_lr(t.optimizer, t.resolved.lr(t.step))
    t.scaler.step(t.optimizer)
    t.scaler.update()
    t.optimizer.zero_grad(set_to_none=True)
    t.counts.next_step()
    t.step += 1


def train_epoch(t: Training, batches: Iterator[Batch]) -> Iterator[Row]:
    """Train to the end of the epoch, or of the run; a row at each log point."""
    resolved, every = t.resolved, t.resolved.config.log.every_steps
    epoch_end = (t.step // resolved.steps_per_epoch + 1) * resolved.steps_per_epoch
    end = min(epoch_end, resolved.total_steps)
    t.model.train()
    t.clock.mark()
    before = _Before.now(t)
    while t.step < end:
        train_step(t, batches)
        t.clock.mark()
        if t.step % every == 0 or t.step == end:
            row = _train_row(t, before)
            before = _Before.now(t)
            yield row
    t.clock.forget_mark()


def evaluate(model: nn.Module, batches: Iterator[Batch], images: int, resolved: Resolved) -> Score:
    """Score the validation set, each image exactly once; the host reads once, at the end."""
    world, local_batch = resolved.world, resolved.config.eval.local_batch
    # Each rank has seen other batches: rank 0's running statistics are the model's.
    world.broadcast_(list(model.buffers()))
    counts = EvalCounts(world.device)
    model.eval()
    for _ in range(-(-images // (local_batch * world.size))):
        # Outside of inference mode: a tensor made within is of another kind, and recompiles.
        batch = next(batches)
        with torch.inference_mode():
            with engine.autocast(resolved):
                logits = model(batch.images)
            counts.add(logits.float(), batch.labels)
    score = counts.read(world)
    assert score.images == images, f"{score.images} validation images counted, not {images}"
    return score


def end_epoch(t: Training, train_set: Images) -> EpochDigest:
    """Fold what the ranks saw in this epoch; what was left out completes the dataset.

    Raises:
        RunFailed: it does not: an image was missed or shown twice.
    """
    world = t.resolved.world
    words = world.sum_(torch.from_numpy(t.digest.words()).to(world.device)).tolist()
    t.digest.clear()
    epoch = (t.step - 1) // t.resolved.steps_per_epoch
    ids = order(t.resolved.config.run.seed, epoch, len(train_set))
    tail = digest_of(ids[words[0] :])
    if (words[2] + tail - digest_of(np.arange(len(train_set)))) % 2**64:
        raise RunFailed(
            f"epoch {epoch}: the images seen and those left out do not make up the data set; "
            "please report this with the run folder"
        )
    return EpochDigest(
        epoch=epoch,
        images=words[0],
        order=hexadecimal(words[1]),
        samples=hexadecimal(words[2]),
        tail=hexadecimal(tail),
    )


@dataclass(frozen=True)
class _Before:
    """Where the clock stood at the last log point."""

    train_s: float
    data_wait_s: float

    @staticmethod
    def now(t: Training) -> _Before:
        return _Before(t.clock.train_s, t.clock.data_wait_s)


def _train_row(t: Training, before: _Before) -> Row:
    """The log point: here, and only here, the host waits for the device."""
    period = t.counts.read(t.resolved.world, t.step)
    steps_ms = torch.tensor(t.clock.read_steps_ms(), dtype=torch.float64)
    train_s = t.clock.train_s - before.train_s
    return Row(
        kind="train",
        attempt=ATTEMPT,
        epoch=t.epoch,
        step=t.step,
        images_seen=t.images_seen,
        train_s=t.clock.train_s,
        wall_s=t.clock.wall_s,
        lr=t.resolved.lr(t.step - 1),
        loss=period.loss,
        train_top1_pct=100 * period.correct1 / period.images,
        train_top5_pct=100 * period.correct5 / period.images,
        images_per_second=period.images / train_s,
        step_ms_mean=steps_ms.mean().item(),
        step_ms_p50=steps_ms.quantile(0.5).item(),
        step_ms_p95=steps_ms.quantile(0.95).item(),
        data_wait_pct=100 * (t.clock.data_wait_s - before.data_wait_s) / train_s,
        loss_scale=t.scaler.get_scale() if t.scaler.is_enabled() else None,
        memory_peak_gib=memory_peak_gib(t.resolved.world),
    )


def memory_peak_gib(world: World) -> float:
    """Torch's tensors on the device (on a CPU: resident memory) at their highest, this process."""
    if world.on_gpu:
        return torch.cuda.max_memory_allocated(world.device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
