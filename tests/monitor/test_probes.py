"""Probes: real measurements with the right units; what never answers is left behind."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import packs
import pytest
import torch
import torch.distributed as dist
from ranks import in_ranks
from trainings import here

from harness.config import Model
from harness.data.dataset import open_folder
from harness.data.files import TreeFiles
from harness.data.prepare.sample import some_files
from harness.distributed import process_group
from harness.errors import BadInput
from harness.models import build
from harness.monitor import peaks, probes
from harness.system import pagecache
from harness.system.deadline import NoAnswer, within
from harness.system.pagecache import Extent

CPU = torch.device("cpu")


# deadlines


def test_an_answer_comes_back_and_so_does_an_error() -> None:
    assert within(10, lambda: {"n": np.float64(1.5), "big": b"x" * 10**6})["n"] == 1.5
    with pytest.raises(BadInput, match=r"^no such thing$"):
        within(10, lambda: refuse())
    with pytest.raises(FileNotFoundError) as error:
        within(10, lambda: Path("/no/such/file").read_text())
    assert error.value.strerror == "No such file or directory"


def refuse() -> None:
    raise BadInput("no such thing")


def test_what_hangs_or_dies_is_no_answer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    pids = tmp_path / "pid"

    def hang() -> None:
        pids.write_text(str(os.getpid()))
        (tmp_path / "fifo").read_bytes()

    with pytest.raises(NoAnswer, match=r"^no answer within 0.5 s$"):
        within(0.5, hang)
    assert not Path(f"/proc/{pids.read_text()}").exists()
    with pytest.raises(NoAnswer):
        within(10, lambda: os._exit(3))


def test_nothing_is_printed_by_a_probe(capfd: pytest.CaptureFixture[str]) -> None:
    within(10, lambda: os.system("echo out; echo err >&2"))
    assert capfd.readouterr() == ("", "")


# disks


def test_writing_leaves_nothing(tmp_path: Path) -> None:
    assert probes.write_speed(tmp_path, 8, limit_s=5) > 1e5
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="No such file"):
        probes.write_speed(tmp_path / "no", 1, limit_s=5)


def some(photos: Path, most: int, seed: int) -> TreeFiles:
    files = some_files(photos, most, seed)
    assert isinstance(files, TreeFiles)
    return files


def extents(files: TreeFiles) -> list[Extent]:
    return [files.extent(n) for n in range(len(files.labels))]


@pytest.mark.parametrize("how", ["mapped", "read"])
def test_reading_counts_every_image_once(photos: Path, how: str) -> None:
    files = some(photos, 1000, seed=1)
    where = extents(files)
    assert len(where) == 101
    os.sync()  # pages that are not on the disk yet cannot be dropped
    reading = probes.read_speed(getattr(files, how), where, threads=3, limit_s=60)
    assert reading.files == 101
    assert reading.size_bytes == sum(path.stat().st_size for path, *_ in where)
    assert reading.seconds > 0
    warm = pagecache.cached_pct(where)
    assert warm == 100
    assert reading.cached_pct is not None
    assert reading.cached_pct <= warm


def test_reading_ends_with_its_time(photos: Path) -> None:
    where = extents(some(photos, 1000, seed=1))

    def slowly(number: int) -> np.ndarray:
        time.sleep(0.1)
        return np.zeros(7, dtype=np.uint8)

    reading = probes.read_speed(slowly, where, threads=2, limit_s=0.25)
    assert 2 <= reading.files <= 8
    assert reading.size_bytes == 7 * reading.files


def test_a_sample_is_random_and_of_real_files(photos: Path, tmp_path: Path) -> None:
    first, again, other = (some(photos, 20, seed) for seed in (1, 1, 2))
    assert list(first.names) == list(again.names) != list(other.names)
    assert len({first.where(n) for n in range(20)}) == 20
    assert all(os.stat(first.where(n)).st_size == first.size_bytes[n] for n in range(20))
    (tmp_path / "class0").mkdir()
    with pytest.raises(BadInput, match="class0: holds no image"):
        some_files(tmp_path, 20, seed=1)


def test_a_sample_of_shards_needs_their_index(tmp_path: Path) -> None:
    members = {f"{n}.{kind}": packs.jpeg(n) if kind == "jpg" else b"0"
               for n in range(30) for kind in ("jpg", "cls")}  # fmt: skip
    packs.tar(tmp_path / "a.tar", members)
    assert some_files(tmp_path, 10, seed=1) is None
    whole = open_folder(tmp_path)
    files = some_files(tmp_path, 10, seed=1)
    assert files is not None
    found = {bytes(files.mapped(n)) for n in range(10)}
    assert len(found) == 10
    assert found <= {whole.content(n) for n in range(30)}
    reading = probes.read_speed(
        files.mapped, [files.extent(n) for n in range(10)], threads=2, limit_s=60
    )
    assert (reading.files, reading.size_bytes) == (10, int(files.size_bytes.sum()))


# computing


@pytest.mark.gpu_too
def test_a_matrix_product_has_a_rate(device: torch.device) -> None:
    torch.set_num_threads(1)
    rate = probes.matmul_flops(device, torch.float32, limit_s=0.2)
    assert 1e8 < rate < (1e13 if device.type == "cpu" else 1e15)


@pytest.mark.gpu
def test_a_copy_on_a_gpu_comes_near_what_is_printed() -> None:
    """Timed one by one, copies of a fast memory seem a tenth slower than they are."""
    device = torch.device("cuda", 0)
    printed = peaks.printed_for(device, "bf16")
    if printed is None:
        pytest.skip("not in the table of peaks")
    assert 0.8 < probes.copy_speed(device) / printed.bytes_per_s < 1.02


@pytest.mark.parametrize("bucket_mb", [25, 1, 4.5])
@pytest.mark.parametrize("name", ["resnet50", "resnet18", "resnet20"])
def test_buckets_are_those_that_ddp_would_make(name: str, bucket_mb: float) -> None:
    with torch.device("meta"):
        network = build(Model(name=name), 1000 if name != "resnet20" else 10)  # type: ignore[arg-type]
    ours = probes.bucket_bytes(network.parameters(), bucket_mb)
    parameters = list(reversed(list(network.parameters())))
    limits = [dist._DEFAULT_FIRST_BUCKET_BYTES, int(bucket_mb * 2**20)]
    theirs, _ = dist._compute_bucket_assignment_by_size(
        [torch.empty(p.shape) for p in parameters], limits
    )
    assert ours == [sum(parameters[n].numel() * 4 for n in bucket) for bucket in theirs]
    assert sum(ours) == 4 * sum(p.numel() for p in network.parameters())


def _measure_together() -> dict[str, object]:
    world = here()
    with process_group(world, timeout_s=60):
        took_s = probes.all_reduce_s(world, 2**20, limit_s=0.2)
        return {"took_s": took_s, "offsets": probes.clock_offsets(world, trips=5)}


@pytest.mark.gpu_too
@pytest.mark.slow
def test_ranks_measure_together() -> None:
    found = in_ranks(3, _measure_together)
    assert found[0] == found[1] == found[2]
    assert 0 < found[0]["took_s"] < 30
    for offset_s, sure_s in found[0]["offsets"]:
        assert abs(offset_s) <= sure_s + 1e-3  # one clock
    # 2 (n - 1) / n of the bytes go over each link.
    assert probes.bus_bandwidth(100, 1.0, 4) == 150
