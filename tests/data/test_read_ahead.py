"""Read-ahead: the same batches in the same order, sooner asked for, errors where they are due."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pipelines import RESIZED, dali, pixels, samples_of

from harness.data.dataset import Read, open_folder
from harness.data.files import Bytes, read_ahead
from harness.data.stream import Samples
from harness.errors import RunFailed


def batches(count: int, size: int = 40) -> Iterator[Samples]:
    none = np.zeros((size, 4), dtype=np.int64)
    for k in range(count):
        ids = np.arange(k * size, (k + 1) * size)
        yield Samples(ids, ids, ids, none, none[:, :2], none[:, :2], none[:, 0])


def encoded(sample: int) -> Bytes:
    return np.array([sample % 256], dtype=np.uint8)


@pytest.mark.parametrize("ahead", [0, 1, 3, 20])
def test_batches_come_whole_and_in_order(ahead: int) -> None:
    got = list(read_ahead(batches(7), encoded, ahead))
    assert len(got) == 7
    for (samples, content), expected in zip(got, batches(7), strict=True):
        np.testing.assert_array_equal(samples.ids, expected.ids)
        assert [int(each[0]) for each in content] == [k % 256 for k in expected.ids]


@pytest.mark.parametrize("ahead", [0, 1, 4])
def test_exactly_so_many_batches_are_asked_for_ahead(ahead: int) -> None:
    asked: set[int] = set()

    def read(sample: int) -> Bytes:
        asked.add(sample // 40)
        return encoded(sample)

    made = read_ahead(batches(10), read, ahead)
    for k in range(6):
        next(made)
        deadline = time.monotonic() + 5
        while len(asked) < k + 1 + ahead and time.monotonic() < deadline:
            time.sleep(0.001)
        assert asked == set(range(k + 1 + ahead))
    made.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("ahead", [0, 3])
def test_an_error_comes_with_its_batch(ahead: int) -> None:
    def read(sample: int) -> Bytes:
        if sample == 90:
            raise RunFailed("gone")
        return encoded(sample)

    made = read_ahead(batches(5), read, ahead)
    assert [samples.ids[0] for samples, _ in (next(made), next(made))] == [0, 40]
    with pytest.raises(RunFailed, match="gone"):
        next(made)


def test_its_threads_end_with_it() -> None:
    earlier = set(threading.enumerate())  # those of other tests, until they are collected
    made = read_ahead(batches(50), encoded, 2)
    next(made)
    threads = set(threading.enumerate()) - earlier
    assert any(thread.name.startswith("read-ahead") for thread in threads)
    made.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 30
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
        assert not thread.is_alive(), thread.name


def test_a_source_that_answers_slowly_is_asked_at_once() -> None:
    def read(sample: int) -> Bytes:
        time.sleep(0.005)
        return encoded(sample)

    def took_s(ahead: int) -> float:
        began = time.perf_counter()
        for _ in read_ahead(batches(6), read, ahead):
            time.sleep(0.02)  # as long as the batch is trained on
        return time.perf_counter() - began

    assert took_s(0) > 6 * 40 * 0.005
    assert took_s(4) < 0.5 * took_s(0)


@pytest.mark.parametrize("read", ["mmap", "pread"])
@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_images_are_the_same_with_it(photos: Path, read: Read, ahead: int) -> None:
    data = open_folder(photos)
    expected = pixels(dali(data, RESIZED, ahead=0))
    np.testing.assert_array_equal(pixels(dali(data, RESIZED, read=read, ahead=ahead)), expected)


def test_a_file_that_is_gone_ends_the_run_in_one_line(photos: Path, tmp_path: Path) -> None:
    from shutil import copytree

    data = open_folder(copytree(photos, tmp_path / "photos"))
    first = next(samples_of(data, RESIZED, 10)).ids[3]
    Path(data.where(int(first))).unlink()
    with pytest.raises(RunFailed, match=rf"^{data.where(int(first))}: No such file or directory"):
        list(dali(data, RESIZED))
