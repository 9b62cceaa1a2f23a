"""The training loop: the step, the epoch, and the evaluation."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from harness.data.batch import Batch
from harness.data.sets import Images
from harness.data.stream import Digest, digest_of, hexadecimal, order
from harness.errors import RunFailed
from harness.logging.schema import EpochDigest, Row
from harness.models import criterion
from harness.monitor.clock import Clock
from harness.monitor.stragglers import StragglerDetector
from harness.optim import OPTIMIZERS, set_lr
from harness.schedule import Event, History, decide, last_step
from harness.trainer import setup
from harness.trainer.control import StepControl
from harness.trainer.metrics import EvalMetrics, Score, TrainMetrics, mean_of_views, memory_peak_gib
from harness.trainer.resolve import Resolved

if TYPE_CHECKING:
    from harness.trainer.mfu import Utilization
    from harness.trainer.profiler import Profile


@dataclass
class Training:
    """The state that training steps work on; checkpointing.py saves and restores it."""

    resolved: Resolved
    model: setup.Classifier
    ddp: setup.Trained
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    criterion: nn.Module
    autocast: torch.autocast
    counts: TrainMetrics
    clock: Clock
    control: StepControl
    peers: StragglerDetector
    attempt: int = 1
    profile: "Profile | None" = None
    utilization: "Utilization | None" = None
    digest: Digest = field(default_factory=Digest)
    events: list[Event] = field(default_factory=list)
    step: int = 0

    @property
    def last_step(self) -> int:
        """Steps of the whole training; an event may end it earlier than planned."""
        return last_step(self.events, self.resolved.total_steps)

    @property
    def ends_epoch(self) -> bool:
        """Whether an epoch, or the run, ends at this step."""
        whole = self.step % self.resolved.steps_per_epoch == 0
        return self.step > 0 and (whole or self.step == self.last_step)

    @property
    def decided_here(self) -> list[str] | None:
        """Kinds of the events of this step, for its row; None without events."""
        return [event.kind for event in self.events if event.step == self.step] or None

    @property
    def epoch(self) -> float:
        """Epochs completed, with a fraction."""
        return self.step / self.resolved.steps_per_epoch

    @property
    def images_seen(self) -> int:
        """Training images that all ranks have seen."""
        return self.step * self.resolved.split.global_batch


class StopAgreed(Exception):
    """All ranks have agreed to stop at this step; its state can be saved."""


def set_up(resolved: Resolved, net: nn.Module, clock: Clock, control: StepControl) -> Training:
    """Prepare a training: DDP with its final buckets, optimizer, compiled graphs."""
    setup.set_up_torch(resolved)
    model = setup.place(net, resolved)
    ddp = setup.data_parallel(model, resolved)
    fused = resolved.config.engine.fused_optimizer is not False  # auto: true
    optim, device = resolved.config.optim, resolved.world.device
    optimizer = OPTIMIZERS[optim.name](model.parameters(), optim, fused=fused)
    with clock.account("compile"):
        setup.warm_up(model, ddp, optimizer, resolved)
    return Training(
        resolved=resolved,
        model=model,
        ddp=ddp,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=resolved.precision == "fp16"),
        criterion=criterion(resolved.config.train.label_smoothing),
        autocast=setup.autocast(resolved),
        counts=TrainMetrics(min(resolved.config.log.every_steps, resolved.steps_per_epoch), device),
        clock=clock,
        control=control,
        peers=StragglerDetector(resolved.world),
    )


def train_step(t: Training, batches: Iterator[Batch]) -> None:
    """Take one step of SGD over a global batch; the host reads nothing from the device."""
    accumulate, phase = t.resolved.split.accumulate, t.clock.phase
    for micro in range(accumulate):
        with phase("wait for data"):
            batch = next(batches)
        setup.seed_dropout(t.resolved, t.step * accumulate + micro)
        # Only the last backward pass of a step averages the gradients over the ranks.
        with t.ddp.no_sync() if micro < accumulate - 1 else nullcontext():
            with phase("forward"), t.autocast:
                logits = t.ddp(*t.model.inputs(batch))
            with phase("loss"):
                loss = t.criterion(logits.float(), batch.labels)
            with phase("backward"):
                t.scaler.scale(loss / accumulate).backward()
        with phase("counts"):
            t.counts.add(loss, logits, batch.labels, share=1 / accumulate)
            t.digest.add(batch.rows)
    with phase("optimizer"):
        set_lr(t.optimizer, t.resolved.lr(t.step, t.events))
        t.scaler.step(t.optimizer)
        t.scaler.update()
        setup.clear_gradients(t.optimizer, t.resolved)
    t.counts.next_step()
    t.step += 1


def train_epoch(
    t: Training,
    batches: Iterator[Batch],
    write: Callable[[Row], object] = lambda row: None,
    save: Callable[[Training, bool], object] = lambda t, must: None,
) -> None:
    """Train to the end of the epoch or of the run.

    Args:
        save: called where a checkpoint is due within the epoch, and with True where it must be
            taken, as the run stops.

    Raises:
        StopAgreed: after the last checkpoint.
    """
    config = t.resolved.config
    every, save_every = config.log.every_steps, config.checkpoint.every_steps
    t.model.train()
    t.peers.begin()
    t.clock.mark()
    while True:
        if t.profile is not None and t.profile.before(t.step):
            t.clock.skip_interval()
        train_step(t, batches)
        t.clock.mark()
        stop, due, end = t.control.poll()
        if end:
            t.events.append(Event("time is up", t.step))
        ends = t.ends_epoch
        if ends or t.step % every == 0:
            write(_log_point(t))
        if ends:  # the epoch's digest and checkpoint come next, and only then a stop
            break
        if stop or due or (save_every > 0 and t.step % save_every == 0):
            save(t, stop)
            t.clock.skip_interval()
        if stop:
            raise StopAgreed
    t.clock.stop_timer()


def evaluate(
    model: nn.Module,
    batches: Iterator[Batch],
    images: int,
    resolved: Resolved,
    control: StepControl,
) -> Score:
    """Score the validation set, each image exactly once; the host reads once, at the end.

    Raises:
        StopAgreed: the score is incomplete; the model is unchanged.
    """
    world, views = resolved.world, resolved.eval_views
    # Each rank has seen different batches: the model's running statistics are those of rank 0.
    world.broadcast_(list(model.buffers()))
    counts = EvalMetrics(world.device)
    model.eval()
    for _ in range(-(-images // (resolved.eval_images * world.size))):
        if control.poll().stop:
            raise StopAgreed
        # Outside of inference mode: a tensor created inside is of another kind and recompiles.
        batch = next(batches)
        with torch.inference_mode():
            with setup.autocast(resolved):
                logits = model(batch.images)
            counts.add(mean_of_views(logits.float(), views), batch.labels[::views])
    score = counts.read(world)
    assert score.images == images, f"{score.images} validation images counted, not {images}"
    return score


def decide_by_scores(t: Training, scores: Sequence[tuple[float, Score]]) -> None:
    """Let the schedule decide by (epochs done, score) of every validation; a collective.

    Only rank 0 has the scores of earlier attempts.
    """
    history = History(t.events, scores=[(epoch, score.top1_pct) for epoch, score in scores])
    decided = decide(history, t.resolved.config.schedule, t.step)
    t.events += t.resolved.world.from_main(decided)


def end_epoch(t: Training, train_set: Images) -> EpochDigest:
    """Combine the ranks' digests of this epoch, and check them against the dataset's.

    Raises:
        RunFailed: an image was missed or shown twice.
    """
    world = t.resolved.world
    sums = world.sum_(torch.from_numpy(t.digest.words()).to(world.device))
    images, in_order, samples = sums.tolist()
    t.digest.clear()
    epoch = (t.step - 1) // t.resolved.steps_per_epoch
    ids = order(t.resolved.config.run.seed, epoch, len(train_set))
    tail = digest_of(ids[images:])
    if (samples + tail - digest_of(np.arange(len(train_set)))) % 2**64:
        raise RunFailed(
            f"epoch {epoch}: the images seen and those left out do not make up the data set; "
            "please report this with the run folder"
        )
    return EpochDigest(
        epoch=epoch,
        images=images,
        order=hexadecimal(in_order),
        samples=hexadecimal(samples),
        tail=hexadecimal(tail),
    )


def _log_point(t: Training) -> Row:
    """Read the metrics and make a row; only here does the host wait for the device."""
    period = t.counts.read(t.resolved.world, t.step)
    history = History(t.events, train_top1_pct=period.top1_pct)
    t.events += decide(history, t.resolved.config.schedule, t.step)
    times = t.clock.read_period()
    steps_ms = torch.tensor(times.steps_ms, dtype=torch.float64)
    rate, used = period.images / times.train_s, t.utilization
    return Row(
        kind="train",
        attempt=t.attempt,
        epoch=t.epoch,
        step=t.step,
        images_seen=t.images_seen,
        train_s=t.clock.train_s,
        wall_s=t.clock.wall_s,
        lr=t.resolved.lr(t.step - 1, t.events),
        loss=period.loss,
        train_top1_pct=period.top1_pct,
        train_top5_pct=period.top5_pct,
        images_per_second=rate,
        mfu_pct=used.mfu_pct(rate) if used else None,
        memory_pct=used.memory_pct(rate) if used else None,
        step_ms_mean=steps_ms.mean().item(),
        step_ms_p50=steps_ms.quantile(0.5).item(),
        step_ms_p95=steps_ms.quantile(0.95).item(),
        data_wait_pct=100 * times.data_wait_s / times.train_s,
        loss_scale=t.scaler.get_scale() if t.scaler.is_enabled() else None,
        memory_peak_gib=memory_peak_gib(t.resolved.world),
        events=t.decided_here,
        **t.peers.read(times, period.images),
    )
