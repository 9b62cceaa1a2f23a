"""Rank 0 and rank 255 of Goyal et al.'s 256, one after the other in this process.

Torch's fake process group stands in for the other ranks: its collectives return at once. What they
would have brought is put in their place here, in `Others`.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from harness import distributed as worlds
from harness.config import load
from harness.data.stream import Digest, Ints, order
from harness.distributed import World
from harness.logging import rank_log
from harness.logging.schema import Result, Row
from harness.trainer import setup
from harness.trainer.run import run as run_it

SIZE, LOCAL_SIZE, LOCAL_BATCH, STEPS, EPOCHS = 256, 8, 32, 2, 2
GLOBAL_BATCH, IMAGES = SIZE * LOCAL_BATCH, STEPS * SIZE * LOCAL_BATCH + 100
FLAGS = {
    "model.name": "resnet20", "model.zero-gamma": "false", "data.source": "synthetic",
    "data.image-px": 8, "data.eval-resize-px": 8, "data.synthetic-images": IMAGES,
    "data.synthetic-val-images": 4 * SIZE, "eval.local-batch": 4, "schedule.epochs": EPOCHS,
    "schedule.warmup-epochs": 1, "train.global-batch": GLOBAL_BATCH, "log.every-steps": 1,
    "log.wandb": "off", "engine.compile": "false", "engine.device": "cpu", "engine.threads": 1,
    "run.name": "hour",
}  # fmt: skip
ADD = Digest.add


class Others:
    """The 255 ranks that are not here: they see their slices and count what this one counts."""

    def __init__(self, rank: int, said_by_main: list[Any]) -> None:
        self.rank, self.said = rank, said_by_main
        self.heard = iter(list(said_by_main))
        self.seen: list[Ints] = []
        self.whole: list[int] = []

    def from_main(self, world: World, value: Any) -> Any:
        if world.is_main:
            self.said.append(value)
            return value
        return next(self.heard)

    def sum_(self, world: World, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if tensor.tolist() == self.whole else tensor.mul_(world.size)

    def words(self, digest: Digest) -> Ints:
        """Of all ranks: each other one's images, mixed into what this one has seen."""
        if digest.images:
            epoch = len(self.seen) // STEPS - 1
            everybody = Digest()
            for rows in self.seen[-STEPS:]:
                ADD(everybody, rows)
            mine = np.concatenate([rows[:, 0] for rows in self.seen[-STEPS:]])
            rows = rows_of(epoch)
            ADD(everybody, np.delete(rows, mine, axis=0))
            words = [everybody.images, everybody.order, everybody.samples]
            self.whole = np.array(words, dtype=np.uint64).view(np.int64).tolist()
            return np.array(self.whole)
        return np.zeros(3, dtype=np.int64)


def rows_of(epoch: int) -> Ints:
    """Of all images of an epoch that steps show, in their order."""
    from harness.data.sets import open_sets
    from harness.data.stream import train_samples
    from harness.trainer.resolve import Split

    train_set, _ = open_sets(load.load(words(Path())))
    assert train_set is not None
    alone = Split(GLOBAL_BATCH, GLOBAL_BATCH, 1, 1)
    samples = train_samples(train_set.stream, alone, 0, epoch=epoch, step=0, epochs=epoch + 1)
    return np.concatenate([each.rows() for each in samples])


def words(root: Path) -> list[str]:
    config = str(Path(__file__).parents[2] / "configs" / "resnet50_90ep.yaml")
    flags = FLAGS | {"run.root": root}
    return [config, *(str(word) for key, value in flags.items() for word in (f"--{key}", value))]


@pytest.fixture
def fake_group(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    real_init, real_group = dist.init_process_group, dist.new_group
    monkeypatch.setattr(worlds, "_store", lambda *_: FakeStore())
    monkeypatch.setattr(
        dist, "init_process_group", lambda **given: real_init(**given | {"backend": "fake"})
    )
    monkeypatch.setattr(
        dist, "new_group", lambda **given: real_group(**given | {"backend": "fake"})
    )
    real_ddp = setup.data_parallel

    def data_parallel(*given: Any) -> DistributedDataParallel:
        ddp = real_ddp(*given)
        ddp.register_comm_hook(None, lambda _, bucket: reduced_at_once(bucket))
        return ddp

    monkeypatch.setattr(setup, "data_parallel", data_parallel)
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()
                if number not in (signal.SIGKILL, signal.SIGSTOP)}  # fmt: skip
    threads = torch.get_num_threads()
    yield monkeypatch
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        if handler is not None:
            signal.signal(number, handler)


def reduced_at_once(bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """The mean over ranks with equal gradients: the fake group's own reduction gives nothing."""
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def test_rank_0_and_rank_255_of_256(
    fake_group: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[Any] = []
    config = load.load(words(tmp_path))
    others: dict[int, Others] = {}
    diverted: list[int] = []
    before: dict[Path, bytes] = {}
    spoken: dict[int, str] = {}
    fake_group.setattr(rank_log, "divert", lambda path, rank, attempt: diverted.append(rank))
    for rank in (0, SIZE - 1):
        mine = others[rank] = Others(rank, said)
        fake_group.setattr(World, "from_main", lambda w, value, o=mine: o.from_main(w, value))
        fake_group.setattr(World, "sum_", lambda w, tensor, o=mine: o.sum_(w, tensor))
        fake_group.setattr(World, "gather", lambda w, value: [value] * w.size)
        fake_group.setattr(
            World, "gather_tensor", lambda w, tensor: tensor.expand(w.size, -1).clone()
        )
        fake_group.setattr(Digest, "words", lambda digest, o=mine: o.words(digest))

        def seen(digest: Digest, rows: Ints, o: Others = mine) -> None:
            o.seen.append(rows)
            ADD(digest, rows)

        fake_group.setattr("harness.trainer.loop.Digest.add", seen)
        world = World(rank, rank % LOCAL_SIZE, SIZE, LOCAL_SIZE, torch.device("cpu"))
        run_it(config, world)
        spoken[rank] = capfd.readouterr().out
        if rank == 0:
            before = files(tmp_path)
    assert files(tmp_path) == before, "rank 255 writes nothing of the record"
    assert spoken[SIZE - 1] == ""
    assert "8192 = 256 ranks x 1 accumulated x 32 local" in spoken[0]
    assert diverted == [SIZE - 1]
    check_slices(others)
    check_record(tmp_path / "hour")


def check_slices(others: dict[int, Others]) -> None:
    for rank, mine in others.items():
        assert len(mine.seen) == STEPS * EPOCHS
        for number, rows in enumerate(mine.seen):
            epoch, step = divmod(number, STEPS)
            first = step * GLOBAL_BATCH + rank * LOCAL_BATCH
            assert rows[:, 0].tolist() == list(range(first, first + LOCAL_BATCH))
            ids = order(0, epoch, IMAGES)[first : first + LOCAL_BATCH]
            assert rows[:, 1].tolist() == ids.tolist()


def check_record(folder: Path) -> None:
    result = Result.model_validate_json((folder / "result.json").read_text())
    assert (result.world_size, result.local_batch, result.accumulate) == (SIZE, LOCAL_BATCH, 1)
    assert (result.steps, result.images_seen) == (STEPS * EPOCHS, STEPS * EPOCHS * GLOBAL_BATCH)
    assert result.val_images == 4 * SIZE
    rows = [Row.model_validate_json(line) for line in (folder / "rows.jsonl").open()]
    rates = [row.lr for row in rows if row.kind == "train"]
    # 0.1 per 256 images: from 0.1 to 3.2 in one epoch, one increment per step.
    assert rates == pytest.approx([0.1, 0.1 + 3.1 / 2, 3.2, 3.2])


def files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
