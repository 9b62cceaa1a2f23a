"""Laws of training: exact resume, exact evaluation, no host read in the step, honest accounts."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from shutil import copy
from typing import Any

import pytest
import torch
from ranks import in_ranks
from torch._inductor import config as inductor
from torch.utils._python_dispatch import TorchDispatchMode
from trainings import alone, fresh, here, make_config, make_resolved

from harness import config as cfg
from harness.data.stream import PADDING
from harness.distributed import World, from_environment, process_group
from harness.errors import BadInput, RunFailed
from harness.logging.schema import Row
from harness.trainer import setup
from harness.trainer.loop import evaluate, train_epoch, train_step
from harness.trainer.metrics import EvalMetrics, TrainMetrics
from harness.trainer.resolve import resolve_precision, split_batch

pytestmark = pytest.mark.gpu_too


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """Every fourth of the photos: 26."""
    folder = tmp_path_factory.mktemp("few")
    for path in sorted(photos.rglob("*.jp*g"))[::4]:
        (folder / path.parent.name).mkdir(exist_ok=True)
        copy(path, folder / path.parent.name)
    return folder


def score_in_world(folder: Path) -> tuple[int, int, int, float]:
    world = here()
    resolved, _train_set, val_set = make_resolved(make_config(folder), world)
    with process_group(world, 60):
        t = fresh(resolved)
        if world.rank:  # what a rank has seen since: rank 0's statistics must win
            for buffer in t.model.net.buffers():
                buffer.add_(1)
        batches = resolved.loader.eval(val_set, resolved.config.eval.local_batch)
        first = evaluate(t.model, batches, len(val_set), resolved, t.control)
        again = evaluate(t.model, batches, len(val_set), resolved, t.control)
    assert first == again, "the loader starts again after each evaluation"
    return first.images, first.correct1, first.correct5, first.loss


def test_evaluation_is_exact_at_any_world_size(few: Path) -> None:
    """26 images on 3 ranks, batches of 7: neither divides."""
    with alone(make_config(few)) as (t, resolved, _, val_set):
        counts = dict.fromkeys(("images", "correct1", "correct5"), 0)
        loss = 0.0
        t.model.eval()
        for batch in itertools.islice(resolved.loader.eval(val_set, 1), len(val_set)):
            with torch.inference_mode(), setup.autocast(resolved):
                logits = t.model(batch.images).float()
            label = int(batch.labels)
            ranked = logits[0].argsort(descending=True).tolist()
            counts["images"] += 1
            counts["correct1"] += ranked[0] == label
            counts["correct5"] += label in ranked[:5]
            loss += -float(logits[0].log_softmax(0)[label])
    expected = (26, counts["correct1"], counts["correct5"])
    for images, correct1, correct5, mean_loss in in_ranks(3, score_in_world, few):
        assert (images, correct1, correct5) == expected
        assert mean_loss == pytest.approx(loss / 26, rel=2e-2)


def score_ten_crops(folder: Path) -> tuple[int, int, int, float]:
    world = here()
    config = make_config(
        folder, eval={"views": "ten_crop", "local_batch": 35}, engine={"precision": "fp32"}
    )
    resolved, _train_set, val_set = make_resolved(config, world)
    with process_group(world, 60):
        t = fresh(resolved)
        batches = resolved.loader.eval(val_set, resolved.eval_images)
        score = evaluate(t.model, batches, len(val_set), resolved, t.control)
    return score.images, score.correct1, score.correct5, score.loss


def test_ten_crops_are_one_guess_per_image(few: Path) -> None:
    """The mean of the views' probabilities, Krizhevsky et al. 2012, 4.1; three images a batch."""
    config = make_config(few, eval={"views": "ten_crop"}, engine={"precision": "fp32"})
    with alone(config) as (t, resolved, _, val_set):
        t.model.eval()
        correct1, loss = 0, 0.0
        for batch in itertools.islice(resolved.loader.eval(val_set, 1), len(val_set)):
            assert len(batch.images) == len(set(map(tuple, batch.rows[:, 9:]))) == 10
            with torch.inference_mode():
                probabilities = t.model(batch.images).softmax(dim=1).mean(dim=0)
            correct1 += int(probabilities.argmax()) == int(batch.labels[0])
            loss -= float(probabilities[batch.labels[0]].log())
    for images, right, _, mean_loss in in_ranks(3, score_ten_crops, few):
        assert (images, right) == (26, correct1)
        assert mean_loss == pytest.approx(loss / 26, rel=1e-4)


class HostReads(TorchDispatchMode):
    """Counts what makes the host wait for the device's numbers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.count = 0
        for name in ("tolist", "cpu", "item", "__bool__", "__float__", "__int__"):
            monkeypatch.setattr(torch.Tensor, name, self._counted(getattr(torch.Tensor, name)))

    def _counted(self, method: Any) -> Any:
        def counted(*args: Any) -> Any:
            self.count += 1
            return method(*args)

        return counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default):
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("max_local_batch", [None, 4])
def test_the_host_reads_nothing_between_log_points(
    photos: Path, monkeypatch: pytest.MonkeyPatch, max_local_batch: int | None
) -> None:
    config = make_config(photos, train={"max_local_batch": max_local_batch})
    with alone(config) as (t, resolved, train_set, _):
        batches = resolved.loader.train(train_set, resolved.split, epoch=0, step=0, epochs=1)
        train_step(t, batches)
        with HostReads(monkeypatch) as reads:
            for _ in range(3):
                train_step(t, batches)
                t.clock.mark()
            assert reads.count == 0
            t.counts.read(resolved.world, t.step)
            assert reads.count > 0, "the log point reads, or this test would see nothing"


@pytest.mark.gpu
def test_the_gpu_is_never_waited_for_between_log_points(photos: Path) -> None:
    world = here({})
    config = make_config(photos)
    resolved, train_set, _ = make_resolved(config, world)
    with process_group(world, 60):
        t = fresh(resolved)
        batches = resolved.loader.train(train_set, resolved.split, epoch=0, step=0, epochs=1)
        train_step(t, batches)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                train_step(t, batches)
                t.clock.mark()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_the_warm_up_leaves_no_trace(photos: Path) -> None:
    config = make_config(photos)
    world = here({})
    resolved, train_set, _ = make_resolved(config, world)
    setup.set_up_torch(resolved)
    untouched = setup.place(setup.network(resolved, train_set.classes), resolved).state_dict()
    with alone(config) as (t, *_):
        drawn = torch.rand(1)
        for key, value in t.model.state_dict().items():
            assert torch.equal(value, untouched[key]), key
        assert all(p.grad is None for p in t.model.parameters())
        assert not any(s["momentum_buffer"].any() for s in t.optimizer.state.values())
    setup.network(resolved, train_set.classes)
    assert torch.equal(drawn, torch.rand(1)), "random state"


@pytest.mark.parametrize(("cores", "given", "workers"), [(5, None, 5), (64, None, 32), (5, "9", 0)])
def test_ranks_share_the_cores_to_compile_on(
    photos: Path, monkeypatch: pytest.MonkeyPatch, cores: int, given: str | None, workers: int
) -> None:
    monkeypatch.setattr(World, "cores", lambda self: cores)
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", given)
    config = make_config(photos, engine={"compile": True, "threads": 1, "bucket_mb": 1})
    resolved, train_set, _ = make_resolved(config, from_environment("cpu", {}))
    net = setup.network(resolved, train_set.classes)
    with inductor.patch(compile_threads=0):
        setup.place(net, resolved)
        assert inductor.compile_threads == workers, "0: inductor reads the variable by itself"


def test_accumulating_two_halves_is_one_step_on_the_whole(photos: Path) -> None:
    """In evaluation mode, where BN does not see the difference between halves."""
    found = []
    for max_local_batch in (None, 6):
        config = make_config(photos, train={"max_local_batch": max_local_batch},
                             engine={"precision": "fp32"})  # fmt: skip
        with alone(config) as (t, resolved, train_set, _):
            t.model.eval()
            batches = resolved.loader.train(train_set, resolved.split, epoch=0, step=0, epochs=1)
            train_step(t, batches)
            period = t.counts.read(resolved.world, t.step)
            found.append((period, [p.detach().clone() for p in t.model.parameters()]))
    assert found[0][0].images == found[1][0].images == 12
    assert found[0][0].loss == pytest.approx(found[1][0].loss, rel=1e-5)
    for whole, halves in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(whole, halves, rtol=1e-4, atol=1e-6)


def test_rows_and_accounts_add_up(photos: Path) -> None:
    with alone(make_config(photos, log={"every_steps": 4})) as (t, resolved, train_set, _):
        batches = resolved.loader.train(train_set, resolved.split, epoch=0, step=0, epochs=3)
        rows: list[Row] = []
        for _ in range(2):
            with t.clock.account("train"):
                train_epoch(t, batches, rows.append)
        accounts, wall_s = t.clock.accounts_s, t.clock.wall_s
    assert resolved.steps_per_epoch == 8
    assert [row.step for row in rows] == [4, 8, 12, 16]
    assert [row.images_seen for row in rows] == [48, 96, 144, 192]
    assert [row.epoch for row in rows] == [0.5, 1.0, 1.5, 2.0]
    assert rows[-1].lr == resolved.lr(15)
    assert sum(accounts.values()) == pytest.approx(wall_s, abs=0.05)
    seconds = sum(48 / row.images_per_second for row in rows if row.images_per_second)
    assert seconds == pytest.approx(accounts["train"], rel=0.1, abs=0.05)


def test_a_loss_that_is_not_finite_names_its_step() -> None:
    world = here({})
    counts = TrainMetrics(8, world.device)
    logits = torch.zeros(4, 10, device=world.device)
    labels = torch.zeros(4, dtype=torch.int64, device=world.device)
    with process_group(world, 60):
        for loss in (1.0, 2.0, math.nan, math.inf, 1.0):
            counts.add(torch.tensor(loss, device=world.device), logits, labels, share=1.0)
            counts.next_step()
        with pytest.raises(RunFailed, match="step 103: the loss is nan"):
            counts.read(world, steps_done=105)


def test_padding_is_never_counted() -> None:
    world = here({})
    counts = EvalMetrics(world.device)
    logits = torch.eye(6)
    labels = torch.tensor([0, 1, 5, PADDING, PADDING, 0], device=world.device)
    counts.add(logits.to(world.device), labels)
    with process_group(world, 60):
        score = counts.read(world)
    assert (score.images, score.correct1) == (4, 2)
    assert score.top1_pct == 50
    softmax = torch.log_softmax(logits.double(), 1)
    assert score.loss == pytest.approx(
        -sum(float(softmax[i, k]) for i, k in ((0, 0), (1, 1), (2, 5), (5, 0))) / 4
    )


@pytest.mark.host
@pytest.mark.parametrize(
    ("global_batch", "world", "most", "local", "accumulate"),
    [(256, 1, None, 256, 1), (256, 8, None, 32, 1), (256, 1, 100, 64, 4), (96, 3, 10, 8, 4),
     (8192, 8, 256, 256, 4), (7, 7, None, 1, 1), (14, 2, 7, 7, 1)],
)  # fmt: skip
def test_batches_are_cut_as_memory_allows(
    global_batch: int, world: int, most: int | None, local: int, accumulate: int
) -> None:
    split = split_batch(cfg.Train(global_batch=global_batch, max_local_batch=most), world)
    assert (split.local_batch, split.accumulate) == (local, accumulate)


@pytest.mark.host
def test_micro_batches_of_next_to_nothing_are_refused() -> None:
    with pytest.raises(BadInput, match="127 images per rank cannot be cut evenly"):
        split_batch(cfg.Train(global_batch=254, max_local_batch=64), 2)


@pytest.mark.host
def test_auto_precision_on_a_cpu_follows_the_instruction_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for has, precision in (({"avx512_bf16": True}, "bf16"), ({"avx512_f": True}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: has)
        assert resolve_precision("auto", on_gpu=False) == precision
