"""Laws of augmentation against what papers and torchvision say."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from harness.data import augment, stream
from harness.data.stream import Samples, Stream


def uniform(n: int, words: int = augment.WORDS) -> augment.Floats:
    return np.random.default_rng(1).random((n, words))


def sides(n: int, px: int) -> augment.Ints:
    return np.full(n, px, dtype=np.int64)


def test_scale_jitter_shows_every_length_and_every_place() -> None:
    n = 20_000
    seen = augment.scale_jitter(256, 480, 224, flip=True).of(
        uniform(n), sides(n, 500), sides(n, 400)
    )
    width, height = seen.resized.T
    assert set(height) == set(range(256, 481)), "the shorter side, each length from 256 to 480"
    assert np.array_equal(width, height * 500 // 400), "the ratio is kept, as torchvision rounds"
    np.testing.assert_array_equal(seen.window, np.tile([0, 0, 500, 400], (n, 1)))
    for axis in (0, 1):
        spare = seen.resized[:, axis] - 224
        assert (seen.cut[:, axis] >= 0).all()
        assert (seen.cut[:, axis] <= spare).all()
        assert (seen.cut[:, axis] == 0).any()
        assert (seen.cut[:, axis] == spare).any()
        assert abs((seen.cut[:, axis] / spare).mean() - 0.5) < 0.01
    assert 0.48 < seen.flip.mean() < 0.52


@given(st.integers(40, 300), st.integers(40, 300), st.sampled_from([0, 40, 56]))
def test_ten_views_are_torchvisions(width: int, height: int, resize_px: int) -> None:
    image = torch.arange(3 * height * width).reshape(3, height, width).float() % 251
    seen = augment.ten_crop(resize_px, 32).of(uniform(1), sides(1, width), sides(1, height))
    resize = v2.Resize(resize_px) if resize_px else v2.Identity()
    resized = resize(image)
    assert (seen.resized == resized.shape[:0:-1]).all()
    for expected, cut, flip in zip(v2.TenCrop(32)(resized), seen.cut, seen.flip, strict=True):
        x, y = cut
        ours = resized[:, y : y + 32, x : x + 32]
        assert torch.equal(ours.flip(2) if flip else ours, expected)


def test_a_batch_has_all_views_of_each_image() -> None:
    law = augment.ten_crop(0, 32)
    images = Stream(0, np.array([3, 4, 5]), sides(3, 40), sides(3, 40), law)
    samples = images.in_order(2, 2)
    assert samples.ids.tolist() == [2] * 10 + [0] * 10
    assert samples.labels.tolist() == [5] * 10 + [stream.PADDING] * 10
    assert samples.flip.tolist() == 2 * (5 * [0] + 5 * [1])
    assert len({tuple(row) for row in samples.rows()[:10, 9:]}) == 10


def test_color_is_alexnets() -> None:
    shift = augment.pca_color(0.1)(uniform(200_000, 4)) / augment.COLOR_UNITS
    covariance = np.cov(shift.T)
    vectors = np.array(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    )
    expected = vectors @ np.diag((0.1 * np.array([0.2175, 0.0188, 0.0045])) ** 2) @ vectors.T
    np.testing.assert_allclose(covariance, expected, atol=3e-6)
    np.testing.assert_allclose(shift.mean(axis=0), 0, atol=2e-4)


def test_color_is_in_the_rows_and_a_function_of_the_position() -> None:
    law = augment.resized_crop((0.08, 1), (3 / 4, 4 / 3), 32, flip=True)
    plain = Stream(7, np.arange(100), sides(100, 40), sides(100, 40), law)
    colored = Stream(
        7, plain.labels, plain.width, plain.height,
        augment.Augmentation(law.of, law.steps, color=augment.pca_color(0.1)),
    )  # fmt: skip
    rows = colored.shuffled(2, 0, 100).rows()
    assert rows.shape == (100, 15)
    np.testing.assert_array_equal(rows[:, :12], plain.shuffled(2, 0, 100).rows())
    np.testing.assert_array_equal(rows[40:60], colored.shuffled(2, 40, 20).rows())
    again = Samples.from_rows(rows)
    np.testing.assert_array_equal(again.rows(), rows)
    assert len(np.unique(rows[:, 12])) > 90
    assert not np.array_equal(rows[:, 12:], colored.shuffled(3, 0, 100).rows()[:, 12:])


def test_what_is_held_out_is_the_same_in_every_run() -> None:
    stay, out = stream.held_out(1000, 100)
    assert len(out) == 100
    assert sorted([*stay, *out]) == list(range(1000))
    np.testing.assert_array_equal(out, stream.held_out(1000, 100)[1])
    assert np.abs(np.diff(out)).max() > 1, "not one piece of the classes in their order"
