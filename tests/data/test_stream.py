"""The stream is a pure function: of (seed, epoch, position), whoever asks for which slice."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from harness.config import STREAM_VERSION
from harness.data import augment, stream
from harness.data.stream import PADDING, Digest, Samples, Split, Stream, digest_of

IMAGENET = {"area": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}


def make_stream(n: int = 1000, seed: int = 3, law: stream.Augmentation | None = None) -> Stream:
    rng = np.random.default_rng(0)
    width, height = rng.integers(40, 600, (2, n)).astype(np.int32)
    labels = rng.integers(0, 10, n).astype(np.int32)
    law = law or augment.resized_crop(**IMAGENET, out_px=224, flip=True)
    return Stream(seed, labels, width, height, law)


def rows_of_steps(images: Stream, world_size: int, accumulate: int, batch: int) -> np.ndarray:
    """All rows of two epochs, put together step by step from what each rank computed."""
    split = Split(batch, batch // (world_size * accumulate), accumulate, world_size)
    ranks = [
        [s.rows() for s in stream.train_samples(images, split, rank, epoch=0, step=0, epochs=2)]
        for rank in range(world_size)
    ]
    steps = len(ranks[0]) // accumulate
    return np.concatenate(
        [
            ranks[rank][step * accumulate + micro]
            for step in range(steps)
            for rank in range(world_size)
            for micro in range(accumulate)
        ]
    )


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (3, 1), (8, 1), (1, 4), (3, 2)])
def test_the_global_batches_are_the_same_at_any_world_size(
    world_size: int, accumulate: int
) -> None:
    images = make_stream()
    alone = rows_of_steps(images, 1, 1, 48)
    assert len(alone) == 2 * (1000 // 48) * 48
    np.testing.assert_array_equal(rows_of_steps(images, world_size, accumulate, 48), alone)


def test_each_epoch_shows_each_image_once_in_another_order() -> None:
    first, second = (stream.order(5, epoch, 1000) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(1000))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, stream.order(6, 0, 1000))


def test_resuming_at_a_step_gives_what_an_undisturbed_run_gives() -> None:
    images, split = make_stream(), Split(48, 16, 1, 3)
    whole = list(stream.train_samples(images, split, 1, epoch=0, step=0, epochs=3))
    resumed = list(stream.train_samples(images, split, 1, epoch=1, step=7, epochs=3))
    for a, b in zip(whole[20 + 7 :], resumed, strict=True):
        np.testing.assert_array_equal(a.rows(), b.rows())


@settings(max_examples=60)
@given(first=st.integers(0, 900), count=st.integers(1, 99), seed=st.integers(0, 2**63 - 1))
def test_a_slice_equals_that_slice_of_the_whole(first: int, count: int, seed: int) -> None:
    images = make_stream(seed=seed)
    whole = images.shuffled(2, 0, 1000).rows()
    np.testing.assert_array_equal(images.shuffled(2, first, count).rows(), whole[first:][:count])


def test_golden_bits() -> None:
    """Changed bits mean another STREAM_VERSION: old results can no longer be compared."""
    digest = hashlib.sha256()
    for law in (
        augment.resized_crop(**IMAGENET, out_px=224, flip=True),
        augment.pad_crop(4, 32, flip=True),
    ):
        digest.update(make_stream(seed=17, law=law).shuffled(4, 100, 300).rows().tobytes())
    digest.update(stream.draws(17, 4, "augment", 5, 7, 24).tobytes())
    assert STREAM_VERSION == 1
    assert digest.hexdigest()[:16] == "2b05fe2077e970b5"
    assert stream.order(0, 0, 10).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]


def test_advancing_is_the_same_as_drawing_and_dropping() -> None:
    whole = stream.draws(1, 2, "augment", 0, 50, 24)
    np.testing.assert_array_equal(stream.draws(1, 2, "augment", 31, 19, 24), whole[31:])


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (1000, 100), (90, 900), (224, 224)])
def test_the_crop_law_is_torchvisions(size: tuple[int, int]) -> None:
    """The quantiles of area, position and ratio agree with 6,000 crops by torchvision."""
    n, (width, height) = 6_000, size
    u = stream.draws(0, 0, "augment", 0, n, 24)
    law = augment.resized_crop(**IMAGENET, out_px=224, flip=True)
    ours = law.of(u, np.full(n, width), np.full(n, height)).window
    torch.manual_seed(0)
    crop, image = v2.RandomResizedCrop(224), torch.empty(3, height, width)
    windows = (crop.make_params([image]) for _ in range(n))
    theirs = np.array([[p["left"], p["top"], p["width"], p["height"]] for p in windows])
    ratios = (ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3])
    for column in (*zip(ours.T, theirs.T, strict=True), ratios):
        mine, other = (np.sort(values) for values in column)
        # Kolmogorov-Smirnov distance; 0.0356 is its 0.1 % point for two samples of 6,000.
        both = np.concatenate([mine, other])
        distance = np.abs(
            np.searchsorted(mine, both, side="right") - np.searchsorted(other, both, side="right")
        ).max() / n  # fmt: skip
        assert distance < 0.0356


@settings(max_examples=200)
@given(width=st.integers(1, 3000), height=st.integers(1, 3000), position=st.integers(0, 10**9))
def test_windows_lie_within_the_image(width: int, height: int, position: int) -> None:
    u = stream.draws(0, 0, "augment", position, 4, 24)
    law = augment.resized_crop(**IMAGENET, out_px=224, flip=True)
    x, y, w, h = law.of(u, np.full(4, width), np.full(4, height)).window.T
    assert (x >= 0).all()
    assert (y >= 0).all()
    assert (w > 0).all()
    assert (h > 0).all()
    assert (x + w <= width).all()
    assert (y + h <= height).all()


def test_half_are_flipped_and_none_when_switched_off() -> None:
    u = stream.draws(0, 0, "augment", 0, 10_000, 24)
    size = np.full(10_000, 32)
    assert 0.48 < augment.pad_crop(4, 32, flip=True).of(u, size, size).flip.mean() < 0.52
    assert augment.pad_crop(4, 32, flip=False).of(u, size, size).flip.sum() == 0


def test_pad_crop_reaches_every_place_alike() -> None:
    u = stream.draws(0, 0, "augment", 0, 81_000, 24)
    size = np.full(len(u), 32)
    cuts = augment.pad_crop(4, 32, flip=True).of(u, size, size).cut
    places, counts = np.unique(cuts, axis=0, return_counts=True)
    assert places.min() == -4
    assert places.max() == 4
    assert len(places) == 81
    assert abs(counts / 1000 - 1).max() < 0.15


@settings(max_examples=300)
@given(width=st.integers(20, 1200), height=st.integers(20, 1200))
def test_the_centre_crop_is_torchvisions(width: int, height: int) -> None:
    geometry = augment.center_crop(256, 224).of(
        np.zeros((1, 24)), np.array([width]), np.array([height])
    )
    image = torch.zeros(1, height, width, dtype=torch.uint8)
    resized = v2.Resize(256)(image)
    assert tuple(geometry.resized[0]) == (resized.shape[2], resized.shape[1])
    columns = torch.arange(resized.shape[2]).expand(1, resized.shape[1], -1).int()
    rows = torch.arange(resized.shape[1])[None, :, None].expand_as(columns).int()
    cut = v2.CenterCrop(224)
    assert tuple(geometry.cut[0]) == (cut(columns)[0, 0, 0], cut(rows)[0, 0, 0])


@pytest.mark.parametrize("n", [1, 7, 64, 65, 101])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_validation_shows_each_image_exactly_once(n: int, world_size: int) -> None:
    images = make_stream(n)
    batches = [
        list(stream.eval_samples(images, 16, rank, world_size)) for rank in range(world_size)
    ]
    assert len({len(rank) for rank in batches}) == 1, "ranks must meet in the same collectives"
    samples = [s for rank in batches for s in rank]
    assert all(len(s) == 16 for s in samples), "static shapes"
    real = np.concatenate([s.ids[s.labels != PADDING] for s in samples])
    assert real.tolist() == list(range(n))


def test_digests_prove_what_was_seen() -> None:
    images = make_stream()
    alone, ranks = Digest(), [Digest() for _ in range(3)]
    split = Split(48, 16, 1, 3)
    for step in range(20):
        alone.add(images.shuffled(0, step * 48, 48).rows())
        for rank, digest in enumerate(ranks):
            digest.add(images.shuffled(0, split.first(step, rank, 0), 16).rows())
    summed = sum(digest.words() for digest in ranks)
    np.testing.assert_array_equal(summed, alone.words())
    tail = digest_of(stream.order(3, 0, 1000)[960:])
    assert (alone.samples + tail) % 2**64 == digest_of(np.arange(1000))


def test_the_order_digest_depends_on_order_crop_and_flip() -> None:
    samples = make_stream().shuffled(0, 0, 50)

    def order_digest(changed: Samples) -> int:
        digest = Digest()
        digest.add(changed.rows())
        return digest.order

    swapped = np.r_[1, 0, np.arange(2, 50)]
    variants = [
        samples,
        replace(samples, ids=samples.ids[swapped]),
        replace(samples, window=samples.window + np.eye(50, 4, dtype=np.int64)),
        replace(samples, flip=1 - samples.flip),
    ]
    assert len({order_digest(each) for each in variants}) == 4
    by_batches = Digest()
    for rows in np.split(samples.rows(), 5)[::-1]:
        by_batches.add(rows)
    assert by_batches.order == order_digest(samples), "the order of folding must not matter"


def test_rows_round_trip() -> None:
    samples = make_stream().shuffled(0, 0, 5)
    np.testing.assert_array_equal(Samples.from_rows(samples.rows()).rows(), samples.rows())
