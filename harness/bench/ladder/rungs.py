"""Split a training step into parts (rungs) that can be timed alone and together."""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.bench.loop import wait_for
from harness.data.batch import Batch
from harness.data.dataset import Dataset
from harness.data.sets import Images
from harness.data.synthetic import SyntheticBatches
from harness.monitor import probes
from harness.monitor.clock import Clock
from harness.optim import set_lr
from harness.trainer import setup
from harness.trainer.loop import Training, train_step
from harness.trainer.resolve import Resolved

READ_COLD, READ_WARM, DECODE, LOADER, COPY = "read, cold", "read, warm", "decode", "loader", "copy"
FORWARD, BACKWARD, OPTIMIZER = "forward", "+ backward", "+ optimizer"
ALL_REDUCE, DDP, EVERYTHING = "all-reduce", "+ DDP", "everything"

ABOUT = {
    READ_COLD: "encoded images in training order, dropped from memory before",
    READ_WARM: "the same, when they are in memory",
    DECODE: "JPEG to pixels, the windows of training, nothing else",
    LOADER: "batches as training gets them: read, decode, resize, flip",
    COPY: "a batch of pixels to the GPU",
    FORWARD: "network and loss, pixels in memory",
    BACKWARD: "the same, with gradients",
    OPTIMIZER: "the same, with SGD: one rank's step, nothing between ranks",
    ALL_REDUCE: "the sum of gradients over all ranks, in DDP's buckets, nothing else",
    DDP: "the step with DDP, counts and the ranks' vote, pixels in memory",
    EVERYTHING: "the same on real images, as in training",
}
"""What each rung does, in the order of the report."""


@dataclass(frozen=True)
class Turn:
    """One timing of a rung on this rank."""

    steps_ms: list[float]  # empty if single steps cannot be timed
    seconds: float
    cpu_s: float


Steps = Callable[[int], Turn]
"""Does and times a number of steps."""


@dataclass(frozen=True)
class Rung:
    """A part of a step."""

    name: str
    turn: Steps
    images: int  # per step, over all ranks
    size_bytes: float | None = None  # read or sent, per step and rank; None for other rungs


def rungs(t: Training, images: Images) -> tuple[list[Rung], dict[str, str]]:
    """Return the rungs that can be measured here, in order, and why others cannot, by name."""
    resolved, world, split = t.resolved, t.resolved.world, t.resolved.split
    timed, missing = _data_rungs(resolved, images)
    n, px = split.local_batch * world.size, resolved.config.data.image_px
    samples = resolved.loader.samples(images, split)
    synthetic = SyntheticBatches(
        samples, local_batch=split.local_batch, out_px=px, device=world.device
    )
    if world.on_gpu:
        pixels = torch.zeros((split.local_batch, px, px, 3), dtype=torch.uint8, pin_memory=True)
        copy = _by_steps(lambda: pixels.to(world.device, non_blocking=True), resolved)
        timed.append(Rung(COPY, copy, n, float(pixels.nbytes)))
    else:
        missing[COPY] = "no GPU: pixels are used where they are made"
    timed += _compute_rungs(t, synthetic, n)
    if world.size > 1:
        sizes = bucket_sizes(t)
        buckets = [torch.zeros(size // 4, device=world.device) for size in sizes]
        sums = _by_steps(lambda: [world.sum_(bucket) for bucket in buckets], resolved)
        # Once per optimizer step, however many batches are accumulated.
        timed.append(Rung(ALL_REDUCE, sums, split.global_batch, float(sum(sizes))))
    else:
        missing[ALL_REDUCE] = "one rank: nothing is sent"
    timed.append(_whole(DDP, t, synthetic))
    if images.dataset is None:
        missing[EVERYTHING] = "data.source is synthetic"
    else:
        timed.append(training_rung(t, images))
    return timed, missing


def training_rung(t: Training, images: Images) -> Rung:
    """Return the rung of the whole step, on the images of the run's config."""
    batches = t.resolved.loader.train(images, t.resolved.split)
    return _whole(EVERYTHING, t, batches, ahead=images.dataset is not None)


def _by_steps(
    step: Callable[[], Any],
    resolved: Resolved,
    *,
    first: int = 1,
    begin: Callable[[], Any] = lambda: None,
    apart: bool = True,
) -> Steps:
    """Return a function that does and times a number of steps; on a GPU with CUDA events.

    Before, `begin` is called once, and the `first` steps are not timed. Unless `apart`, single
    steps cannot be timed, only all together.
    """
    device = resolved.world.device
    clock = Clock(device)

    def turn(steps: int) -> Turn:
        begin()
        for _ in range(first):
            step()
        wait_for(device)
        clock.stop_timer()
        clock.mark()
        began, cpu_began = time.perf_counter(), time.process_time()
        for _ in range(steps):
            step()
            clock.mark()
        wait_for(device)
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
        steps_ms = clock.read_period().steps_ms
        return Turn(steps_ms if apart else [], seconds, cpu_s)

    return turn


def _data_rungs(resolved: Resolved, images: Images) -> tuple[list[Rung], dict[str, str]]:
    if (dataset := images.dataset) is None:
        return [], dict.fromkeys((READ_COLD, READ_WARM, DECODE, LOADER), "data.source is synthetic")
    local_batch = resolved.split.local_batch
    n, size = local_batch * resolved.world.size, float(dataset.size_bytes.mean()) * local_batch
    timed = [Rung(key, turn, n, size) for key, turn in _reading(resolved, images, dataset).items()]
    missing = {}
    # Batches that were prefetched while another rung was timed must not be timed.
    first = resolved.config.data.prefetch_batches + 1
    if decoding := resolved.loader.decoding(images, resolved.split):
        # On a GPU only the end of all batches is waited for, so that single ones have no time.
        apart = resolved.loader.decode == "cpu"
        decode = _by_steps(decoding.decode, resolved, first=first, apart=apart)
        timed.append(Rung(DECODE, decode, n))
    else:
        missing[DECODE] = "data.source is not dali"
    batches = resolved.loader.train(images, resolved.split)
    timed.append(Rung(LOADER, _by_steps(lambda: next(batches), resolved, first=first), n))
    return timed, missing


def _reading(resolved: Resolved, images: Images, dataset: Dataset) -> dict[str, Steps]:
    """Return the rungs that read local batches, with as many threads as the loader has."""
    loader, last = resolved.loader, list[int]()
    samples = loader.samples(images, resolved.split)

    def read(ids: list[int], *, cold: bool) -> Turn:
        reader, began = dataset.reader(loader.data.read), time.process_time()
        result = probes.read_speed(
            lambda n: reader(ids[n]), [dataset.files.extent(sample) for sample in ids],
            threads=loader.threads, limit_s=float("inf"), cold=cold,
        )  # fmt: skip
        return Turn([], result.seconds, time.process_time() - began)

    def cold(steps: int) -> Turn:
        last[:] = [id for batch in itertools.islice(samples, steps) for id in batch.ids.tolist()]
        return read(last, cold=True)

    def warm(steps: int) -> Turn:
        # As many images, of those that `cold` read last.
        ids = itertools.islice(itertools.cycle(last), steps * resolved.split.local_batch)
        return read(list(ids), cold=False)

    return {READ_COLD: cold, READ_WARM: warm}


def _compute_rungs(t: Training, batches: Iterator[Batch], n: int) -> list[Rung]:

    def forward() -> Tensor:
        batch = next(batches)
        with t.ddp.no_sync(), t.autocast:
            logits = t.ddp(*t.model.inputs(batch))
        loss: Tensor = t.criterion(logits.float(), batch.labels)
        return loss

    def gradients() -> None:
        loss = forward()
        with t.ddp.no_sync():
            t.scaler.scale(loss).backward()

    def backward() -> None:
        gradients()
        setup.clear_gradients(t.optimizer, t.resolved)

    def step() -> None:
        gradients()
        set_lr(t.optimizer, 0.0)
        t.scaler.step(t.optimizer)
        t.scaler.update()
        setup.clear_gradients(t.optimizer, t.resolved)

    parts = ((FORWARD, forward), (BACKWARD, backward), (OPTIMIZER, step))
    return [Rung(name, _by_steps(part, t.resolved, begin=t.model.train), n) for name, part in parts]


def bucket_sizes(t: Training) -> list[int]:
    """Return the bytes of DDP's buckets, as rebuilt after the first step; empty without DDP."""
    if isinstance(t.ddp, setup.Classifier):
        return []
    text = t.ddp._get_ddp_logging_data().get("rebuilt_bucket_sizes", "")
    sizes = [int(size) for size in str(text).split(",") if size.strip()]
    return sizes or probes.bucket_bytes(t.model.parameters(), t.resolved.config.engine.bucket_mb)


def _whole(name: str, t: Training, batches: Iterator[Batch], *, ahead: bool = False) -> Rung:
    """Return a rung of whole training steps, with the reading of counts once per log period."""
    every = min(t.resolved.config.log.every_steps, t.resolved.steps_per_epoch)

    def step() -> None:
        train_step(t, batches)
        t.control.poll()
        if t.step % every == 0:
            t.counts.read(t.resolved.world, t.step)
            t.clock.read_period()

    prefetched = t.resolved.config.data.prefetch_batches * ahead
    first = -(-prefetched // t.resolved.split.accumulate) + 1
    turn = _by_steps(step, t.resolved, first=first, begin=t.model.train)
    return Rung(name, turn, t.resolved.split.global_batch)
