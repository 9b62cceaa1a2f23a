"""Laws of resuming: the same bits from the file on, the same data in any world."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import small_net
import torch
from ranks import in_ranks
from trainings import bits, bn_bits, fresh, here, make_config, make_resolved

from harness.checkpoint.saver import Staging
from harness.checkpoint.store import State, newest, publish
from harness.data.sets import Images
from harness.distributed import process_group
from harness.monitor.clock import Clock
from harness.trainer import checkpointing
from harness.trainer import setup as engine
from harness.trainer.loop import Training, train_step
from harness.trainer.metrics import TrainMetrics

pytestmark = pytest.mark.gpu_too


def train_some(t: Training, train_set: Images, *, steps: int) -> None:
    epoch, step = divmod(t.step, t.resolved.steps_per_epoch)
    batches = t.resolved.loader.train(train_set, t.resolved.split, epoch=epoch, step=step, epochs=3)
    for _ in range(steps):
        train_step(t, batches)


def through_a_file(t: Training, folder: Path) -> State | None:
    """What rank 0 reads back of a checkpoint of all ranks."""
    sums = checkpointing.open_sums(t)
    if not t.resolved.world.is_main:
        return None
    about = {"step": t.step, "epochs_done": None}
    folder.mkdir(exist_ok=True)
    publish(folder, checkpointing.state_dict(t, sums, Staging()), about)
    found = newest(folder, print)
    assert found is not None
    return found.state


def open_period(t: Training) -> dict[str, Any]:
    period = t.counts.read(t.resolved.world, t.step)
    words = torch.from_numpy(t.digest.words()).clone().to(t.resolved.world.device)
    seen = t.resolved.world.sum_(words).tolist()
    return {"period": period, "seen": seen}


def resume_in_the_middle(
    photos: Path, folder: Path, changes: dict[str, Any], warm: bool
) -> dict[str, Any]:
    """Bits after 7 steps of an epoch of 8: undisturbed, and ended and gone on with after 4."""
    world = here()
    if not warm:
        engine.warm_up = lambda *args: None
    resolved, train_set, _ = make_resolved(make_config(photos, **changes), world)
    with process_group(world, 60):
        whole = fresh(resolved)
        train_some(whole, train_set, steps=7)
        half = fresh(resolved)
        train_some(half, train_set, steps=4)
        state = through_a_file(half, folder)
        resumed = fresh(resolved)
        checkpointing.load_state_dict(resumed, state, spent_s=0.0)
        train_some(resumed, train_set, steps=3)
        sums = open_period(whole), open_period(resumed)
    sizes = whole.ddp._get_ddp_logging_data()["rebuilt_bucket_sizes"]
    return {
        "buckets": len(str(sizes).split(",")),
        "whole": (bits(whole), bn_bits(whole) if world.is_main else None, sums[0]),
        "resumed": (bits(resumed), bn_bits(resumed) if world.is_main else None, sums[1]),
        "statistics": bn_bits(whole),
        "steps": (whole.step, resumed.step),
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"engine": {"static_graph": True}}, marks=pytest.mark.slow),
        pytest.param({"train": {"max_local_batch": 2}}, marks=pytest.mark.slow),
        pytest.param(
            {"engine": {"static_graph": True}, "train": {"max_local_batch": 2}},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"engine": {"send_gradients": "bf16", "bucket_view": False, "fused_optimizer": False}},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["plain", "static graph", "accumulating", "static graph, accumulating", "switches"],
)
def test_a_resumed_run_has_the_same_bits(
    photos: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Three ranks, since a sum of two commutes and would hide every order of summation.

    The log period is still open when the checkpoint is taken: its losses are the same bits too.
    """
    ranks = in_ranks(3, resume_in_the_middle, photos, tmp_path, changes, True)
    for rank in ranks:
        assert rank["buckets"] > 3
        assert rank["steps"] == (7, 7)
        assert rank["whole"] == rank["resumed"]
    assert len({rank["whole"][0] for rank in ranks}) == 1, "weights agree between ranks"
    assert len({rank["statistics"] for rank in ranks}) == 3, "BN's statistics do not"


@pytest.mark.slow
def test_it_is_the_warm_up_that_makes_it_so(photos: Path, tmp_path: Path) -> None:
    """Without throw-away steps DDP rebuilds its buckets later in a resumed run: other sums."""
    ranks = in_ranks(3, resume_in_the_middle, photos, tmp_path, {}, False)
    assert all(rank["whole"][0] != rank["resumed"][0] for rank in ranks)


def begin(photos: Path, folder: Path, changes: dict[str, Any], steps: int) -> dict[str, Any]:
    """Go on from what lies in `folder`, if anything, and leave a checkpoint there."""
    world = here()
    resolved, train_set, _ = make_resolved(make_config(photos, **changes), world)
    with process_group(world, 60):
        t = fresh(resolved)
        found = newest(folder, print) if world.is_main else None
        if world.from_main(found is not None):
            checkpointing.load_state_dict(t, found.state if found else None, spent_s=0.0)
        before = t.digest.words()
        train_some(t, train_set, steps=steps)
        through_a_file(t, folder)
        sums = open_period(t)
    return sums | {"step": t.step, "bits": bits(t), "before": before.tolist()}


@pytest.mark.slow
def test_a_checkpoint_is_taken_up_whatever_the_switches(photos: Path, tmp_path: Path) -> None:
    """Four steps with one setting, three with another: there and back."""
    whole = in_ranks(2, begin, photos, tmp_path / "whole", {}, 7)[0]
    switches: dict[str, Any] = {
        "engine": {"send_gradients": "bf16", "bucket_view": False, "fused_optimizer": False}
    }
    for first, then in (({}, switches), (switches, {})):
        folder = tmp_path / str(len(first))
        in_ranks(2, begin, photos, folder, first, 4)
        ranks = in_ranks(2, begin, photos, folder, then, 3)
        assert (ranks[0]["step"], ranks[0]["seen"]) == (7, whole["seen"])
        assert ranks[0]["bits"] == ranks[1]["bits"] != whole["bits"]
        assert ranks[0]["period"].loss == pytest.approx(whole["period"].loss, rel=0.05)


def resume_compiled(photos: Path, folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    small_net.shrink()
    return resume_in_the_middle(photos, folder, changes, warm=True)


@pytest.mark.slow
def test_a_resumed_run_of_a_compiled_ddp_has_the_same_bits(photos: Path, tmp_path: Path) -> None:
    """Also those of the network compiled by itself: torch cuts both at the same places."""
    engine: dict[str, Any] = {"compile": True, "bucket_mb": 1, "send_gradients": "bf16"}
    model = {"name": "plain20"}
    found = [
        in_ranks(2, resume_compiled, photos, tmp_path / str(ddp), changes)
        for ddp in (True, False)
        for changes in [
            {
                "model": model,
                "data": {"image_px": 8, "eval_resize_px": 8},
                "engine": engine | {"compile_ddp": ddp, "precision": "fp32"},
            }
        ]
    ]
    for rank in [rank for ranks in found for rank in ranks]:
        assert rank["buckets"] == 2
        assert rank["whole"] == rank["resumed"]
    assert len({rank["whole"][0] for ranks in found for rank in ranks}) == 1


@pytest.mark.slow
def test_another_world_size_sees_the_same_images(photos: Path, tmp_path: Path) -> None:
    """Four steps on three ranks, three more on two or one: counts and digests lose nothing."""
    changes = {"engine": {"precision": "fp32"}, "train": {"max_local_batch": 6}}
    whole = in_ranks(3, begin, photos, tmp_path / "whole", changes, 7)[0]
    for size in (1, 2):
        folder = tmp_path / str(size)
        in_ranks(3, begin, photos, folder, changes, 4)
        ranks = in_ranks(size, begin, photos, folder, changes, 3)
        assert ranks[0]["seen"] == whole["seen"]
        assert ranks[0]["step"] == 7
        there, here = whole["period"], ranks[0]["period"]
        assert here.images == there.images == 7 * 12
        # BN sees other groups of images, so that only the first steps' loss is really the same.
        assert here.loss == pytest.approx(there.loss, rel=0.1)
        assert len({rank["bits"] for rank in ranks}) == 1
    for rank in ranks[1:]:
        assert rank["before"] == [0, 0, 0], "only rank 0 takes up the digest"


@pytest.mark.slow
def test_another_log_period_may_be_asked_for(photos: Path, tmp_path: Path) -> None:
    """Five steps are open when one asks for rows every two steps: they all go into the next row."""
    wide, narrow = {"log": {"every_steps": 100}}, {"log": {"every_steps": 2}}
    in_ranks(1, begin, photos, tmp_path, wide, 5)
    (found,) = in_ranks(1, begin, photos, tmp_path, narrow, 1)
    assert found["period"].images == 6 * 12


def test_an_open_period_on_fewer_ranks_has_the_same_mean() -> None:
    losses = torch.tensor([[1.0, 2.0], [3.0, 4.0], [8.0, 0.0]], dtype=torch.float64)
    world = here({})
    counts = TrainMetrics(4, world.device)
    counts.load_state_dict(
        torch.tensor([[1, 2], [3, 4], [5, 6]]), losses, world, images_per_step=12
    )
    with process_group(world, 60):
        period = counts.read(world, steps_done=2)
    assert (period.correct1, period.correct5) == (9, 12)
    assert period.loss == pytest.approx((4 + 2) / 2)
    assert period.images == 2 * 12


@pytest.mark.host
def test_the_clock_goes_on_and_says_what_was_lost() -> None:
    first = Clock(torch.device("cpu"))
    with first.account("train"):
        first.mark()
        first.mark()
    first.skip_interval()  # a checkpoint
    first.mark()
    state = first.state_dict()
    assert len(state["step_ms"]) == 2
    spent_s = sum(state["accounts_s"].values()) + 12.5
    second = Clock(torch.device("cpu"))
    second.load_state_dict(state, spent_s)
    accounts = second.accounts_s
    assert accounts["lost"] == pytest.approx(12.5, abs=0.01)
    assert accounts["train"] == state["accounts_s"]["train"]
    assert sum(accounts.values()) == pytest.approx(second.total_s, abs=0.01)
    second.mark()
    second.mark()
    assert len(second.read_period().steps_ms) == 3, "the open period's steps and its own"
    third = Clock(torch.device("cpu"))
    third.load_state_dict(None, spent_s=3.0)
    assert third.accounts_s["lost"] == 3.0
    assert math.isclose(third.total_s, third.wall_s + 3, abs_tol=0.01)


def test_on_a_gpu_waiting_for_data_is_how_long_the_gpu_stands_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The host goes on at once, or waits while the GPU has work: neither counts."""
    made: list[int] = []

    class Event:
        """Passed by the GPU a quarter of a second after the one before."""

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            made.append(len(made))
            self.at_ms = 250.0 * made[-1]

        def elapsed_time(self, end: Event) -> float:
            return end.at_ms - self.at_ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = Clock(torch.device("cuda"))
    for _ in range(3):
        with clock.phase("wait for data"):
            pass
    assert clock.data_wait_s == 0, "nothing is read before the log point"
    assert clock.read_period().data_wait_s == pytest.approx(0.75)
    assert clock.read_period().data_wait_s == 0
    assert clock.state_dict()["data_wait_s"] == pytest.approx(0.75)
